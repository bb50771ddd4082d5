"""The batch of runs for a GPU, on the smallest work there is; what its limits catch, and what a run that is cut short leaves."""

import importlib
import json
import re
import sys
import time
from types import SimpleNamespace

import pytest
import torch

from benchmarks import agreement, gpu_session, gpu_train
from benchmarks.gpu_session import Program, programs, run_program
from benchmarks.lm_workload import Workload
from benchmarks.report import ROOT
from ppo_edu.lm import GPU_SETTINGS, Sample

MICRO = Workload(
    sequences=8, prompt_tokens=3, new_tokens=4, layers=1, width=16, heads=2, vocabulary=12, prompts=10, minibatches=2, epochs=1
)


def session(monkeypatch, *options):
    monkeypatch.setattr(sys, "argv", ["gpu_session", *map(str, options)])
    gpu_session.main()


def test_the_smallest_session_writes_its_results(tmp_path, monkeypatch):
    session(monkeypatch, "--device", "cpu", "--tiny", "--stages", "agreement", "--output", tmp_path)
    (program,) = json.loads((tmp_path / "gpu_session.json").read_text())["programs"]
    assert program["status"] == 0
    assert program["command"].endswith("--output DIR/gpu_agreement.json")
    found = json.loads((tmp_path / "gpu_agreement.json").read_text())
    assert found["failed"] == []
    assert found["sizes"]["small"]["difference"] == dict.fromkeys(("log_probs", "values", "loss", "gradients"), 0.0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--stages", "speed,sleep"], "--stages must be some of .*, got 'sleep'"),
        (["--device", "cpu"], "--output must be given for a run that measures no GPU"),
        (["--device", "cuda", "--tiny"], "--output must be given"),
    ],
)
def test_a_session_refuses(options, message, monkeypatch, capsys):
    with pytest.raises(SystemExit):
        session(monkeypatch, *options)
    assert re.search(message, capsys.readouterr().err)


def test_what_fails_is_reported_and_the_rest_runs(tmp_path, monkeypatch):
    planned = [Program("tests", ["-c", "print('seen'); raise SystemExit(3)"], 30), Program("train", ["-c", "print('run')"], 30)]
    monkeypatch.setattr(gpu_session, "programs", lambda *arguments, **options: planned)
    with pytest.raises(SystemExit) as status:
        session(monkeypatch, "--device", "cpu", "--output", tmp_path)
    assert status.value.code == 1
    found = json.loads((tmp_path / "gpu_session.json").read_text())["programs"]
    assert [(program["status"], program["output"]) for program in found] == [(3, "seen\n"), (0, "run\n")]


def test_a_program_is_stopped_with_all_that_it_started(tmp_path):
    """A grandchild that lived on would hold the card's memory; here it would write a file."""
    child = f"import time, pathlib; time.sleep(2); pathlib.Path({str(tmp_path / 'lived')!r}).touch()"
    parent = f"import subprocess, sys; print('begun', flush=True); subprocess.run([sys.executable, '-c', {child!r}])"
    outcome = run_program(Program("speed", ["-c", parent], 60), seconds=1.0)
    assert outcome.status is None
    assert outcome.output == "begun\n"
    time.sleep(2.0)
    assert not (tmp_path / "lived").exists()


def test_programs_find_the_package_without_installation_or_network():
    show = "import os, ppo_edu; print(ppo_edu.__file__, os.environ['HF_HUB_OFFLINE'])"
    outcome = run_program(
        Program("tests", ["-S", "-c", "import os; print(os.environ['PYTHONPATH'], os.environ['HF_HUB_OFFLINE'])"], 30), 30
    )
    assert outcome.output.split()[0].split(":")[0] == str(ROOT)
    assert outcome.output.split()[-1] == "1"
    assert run_program(Program("tests", ["-c", show], 60), 60).output.startswith(str(ROOT / "ppo_edu"))


def test_every_stage_has_programs_and_each_a_file_of_its_own(tmp_path):
    planned = programs(list(gpu_session.STAGES), "cuda", tmp_path, tiny=False)
    assert list(dict.fromkeys(program.stage for program in planned)) == list(gpu_session.STAGES)
    outputs = [program.arguments[-1] for program in planned if program.stage != "tests"]
    assert len(set(outputs)) == len(outputs) == 8
    assert all("cuda" in program.arguments for program in planned if program.stage != "tests")


@pytest.mark.parametrize("stage", ["roofline", "scaling", "speed", "train", "agreement"])
@pytest.mark.parametrize("tiny", [True, False])
def test_the_programs_understand_their_options(stage, tiny, tmp_path, monkeypatch):
    """Each is asked for its help with the very options, so that a session does not end at a misspelled one."""
    for program in programs([stage], "cpu", tmp_path, tiny=tiny):
        _, module, *options = program.arguments
        monkeypatch.setattr(sys, "argv", [module, *options, "--help"])
        with pytest.raises(SystemExit) as status:
            importlib.import_module(module).main()
        assert status.value.code == 0


# Agreement --------------------------------------------------------------------------------------------------------------


def test_numbers_above_their_limits_are_named():
    good = {"difference": dict.fromkeys(("log_probs", "values", "loss", "gradients"), 0.0)}
    good["drift"] = {
        kind: {"sampling_mismatch": 0.0, "largest_ratio_deviation": 0.0} for kind in ("float32", "bfloat16", "bfloat16_recomputed")
    }
    assert agreement.above({"3m": good}) == []
    bad = json.loads(json.dumps(good))
    bad["difference"]["loss"] = 0.5
    bad["difference"]["values"] = float("nan")
    bad["drift"]["bfloat16_recomputed"]["largest_ratio_deviation"] = 1e-9
    assert [line.split(" above ")[0] for line in agreement.above({"3m": bad})] == [
        "3m: values nan",
        "3m: loss 0.5",
        "3m: bfloat16_recomputed largest_ratio_deviation 1e-09",
    ]


def test_a_device_that_computes_otherwise_is_noticed(monkeypatch):
    """The second computation is of a policy whose last layer was moved a little."""
    original, calls = agreement.computed, []

    def faulty(policy, batch, config):
        if calls:
            with torch.no_grad():
                policy.lm.transformer.h[-1].mlp.c_proj.weight.mul_(-2.0)
        calls.append(1)
        return original(policy, batch, config)

    monkeypatch.setattr(agreement, "computed", faulty)
    found = agreement.difference(MICRO, "cpu")
    assert all(found[name] > agreement.LIMITS[name] for name in ("log_probs", "values", "loss", "gradients"))


# Recorded training --------------------------------------------------------------------------------------------------------


def test_a_tiny_training_is_recorded(tmp_path):
    output = tmp_path / "train.json"
    result = gpu_train.run("addition", "cpu", tiny=True, seconds=100.0, seed=0, output=output, command="a command")
    stored = json.loads(output.read_text())
    assert stored["log"] == result["log"]
    header, *lines = map(json.loads, output.with_suffix(".jsonl").read_text().splitlines())
    assert header["settings"] == stored["settings"]
    assert [{name: x for name, x in line.items() if name != "samples"} for line in lines] == stored["log"]
    assert [sample for line in lines for sample in line.get("samples", [])] == stored["samples"]
    assert {sample["update"] for sample in stored["samples"]} == {1, 6}
    assert {"score", "kl", "perplexity"} <= stored["before"].keys() == stored["after"].keys()
    assert output.stat().st_size < 1e6


def test_a_recorded_training_ends_at_its_deadline(tmp_path):
    state = SimpleNamespace(update=1, log=[{"update": 1, "reward": 0.5}], samples=[Sample("a", "b", 1.0, 0.1)] * 9)
    late, early = (gpu_train.Recorder(tmp_path / "log.jsonl", time.perf_counter() + wait, {}) for wait in (-1.0, 100.0))
    assert late(state)
    assert not early(state)
    assert len(early.samples) == gpu_train.SAMPLES


@pytest.mark.parametrize("task", ["reviews", "addition"])
def test_a_gpu_trains_with_its_settings_and_about_30_million_parameters(task):
    plan = gpu_train.plan(task, "cuda", tiny=False)
    assert all(getattr(plan.ppo, name) == x for name, x in GPU_SETTINGS.items())
    assert 25e6 < 12 * plan.size["layers"] * plan.size["width"] ** 2 < 35e6
