"""`ppo-edu lm`: each command from end to end, resuming, what transformers reads afterwards, and one line for whatever goes wrong."""

import dataclasses
import json
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from ppo_helpers import same, unmeasured, weights
from transformers import AutoModel, AutoModelForCausalLM, AutoTokenizer

pytest.importorskip("tyro")  # the library does without

from ppo_edu.cli import main
from ppo_edu.lm import LMPPOConfig, PolicyWithValue, make_gpt2, pipeline
from ppo_edu.lm import cli as lm_cli
from ppo_edu.lm.corpus import make_reviews, review_prompts, sum_prompts
from ppo_edu.lm.ppo import REFERENCE_NAME
from ppo_edu.lm.preferences import Comparison, load_comparisons, save_comparisons
from ppo_edu.lm.reward_model import RewardModel
from ppo_edu.lm.sft import train_sft
from ppo_edu.lm.supervised import SupervisedConfig
from ppo_edu.lm.tokenizer import train_tokenizer
from ppo_edu.runs import CHECKPOINT_NAME, LOG_NAME, Run, load_checkpoint, read_log

QUIET = ["--no-progress"]
SFT = ["--num-examples", "48", "--batch-size", "16", "--epochs", "1", "--evaluation-prompts", "4", "--show-every", "2", *QUIET]  # 3 steps
RM = ["--num-comparisons", "32", "--num-held-out", "12", "--batch-size", "16", "--epochs", "1", *QUIET]  # 2 steps
PPO = ["--updates", "2", "--batch-size", "4", "--minibatches", "2", "--epochs", "1", "--max-new-tokens", "6", "--show-every", "1"]
PPO += ["--missing-eos-penalty", "1", "--evaluation-prompts", "4", *QUIET]
EXAMPLES = [{"prompt": f"{a} and {b}", "response": f" are {a}{b}"} for a in "abcdef" for b in "abcdef"]


def call(*arguments: object) -> int:
    """`ppo-edu lm ...` in this process; its exit code, also where the parser exits by itself."""
    try:
        return main(["lm", *map(str, arguments)])
    except SystemExit as stop:
        return stop.code


def model_weights(run: Path) -> dict[str, torch.Tensor]:
    return weights(AutoModelForCausalLM.from_pretrained(run / "model"))


def write_lines(path: Path, rows: list) -> Path:
    path.write_text("".join((x if isinstance(x, str) else json.dumps(x)) + "\n" for x in rows), encoding="utf-8")
    return path


@pytest.fixture(scope="module", autouse=True)
def _few_prompts():
    """PPO reads all its prompts before it starts; the tests need few of them."""
    with pytest.MonkeyPatch.context() as patch:
        for name, task in lm_cli.TASKS.items():
            patch.setitem(lm_cli.TASKS, name, dataclasses.replace(task, num_prompts=200))
        yield


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Runs for the others to start from: `reviews` and `sums` of sft, and a reward model `rm`. Not to be changed."""
    folder = tmp_path_factory.mktemp("runs")
    assert call("sft", folder / "reviews", *SFT, "--num-examples", "320") == 0  # enough to write words, not bytes
    assert call("sft", folder / "sums", "--task", "addition", *SFT) == 0
    assert call("reward-model", folder / "rm", "--model", folder / "reviews", *RM) == 0
    return folder


@pytest.fixture
def interrupt(monkeypatch):
    """From when it is called on, Ctrl-C comes while the first row of a run is logged."""
    append = Run.append

    def append_then_interrupt(self, row):
        append(self, row)
        if row["update"] == 1:
            os.kill(os.getpid(), signal.SIGINT)

    return lambda: monkeypatch.setattr(Run, "append", append_then_interrupt)


# sft ----------------------------------------------------------------------------------------------------------------------


def test_sft_trains_what_the_library_would_and_transformers_reads_it(tmp_path, capsys):
    assert call("sft", tmp_path / "run", *SFT) == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert "step 2: loss " in out
    assert out.count(" |") == 2, "two samples, prompt and response"
    assert "trained 3 steps in " in out
    assert "on 4 held-out prompts: mean score " in out

    examples = make_reviews(48, seed=0)
    tokenizer = train_tokenizer(x.text for x in examples)
    lm = make_gpt2(tokenizer, seed=0)
    config = dataclasses.replace(pipeline.REVIEW_SFT, batch_size=16, epochs=1)
    train_sft(lm, tokenizer, examples, config, progress=False)
    assert same(model_weights(tmp_path / "run"), weights(lm))
    assert AutoTokenizer.from_pretrained(tmp_path / "run" / "model").get_vocab() == tokenizer.get_vocab()
    assert json.loads((tmp_path / "run" / "options.json").read_text())["num_examples"] == 48


def test_sft_on_examples_of_your_own_and_from_a_model(finished, tmp_path, capsys):
    file = write_lines(tmp_path / "examples.jsonl", [*EXAMPLES, "", {"prompt": "x" * 50, "response": " \u2028y" * 30, "more": 1}])
    assert call("sft", tmp_path / "own", "--examples", file, *SFT) == 0
    assert "a and a |" in capsys.readouterr().out, "samples continue the file's prompts"
    lm = AutoModelForCausalLM.from_pretrained(tmp_path / "own" / "model")
    assert lm.config.n_positions > 64, "made for the longest example"

    assert call("sft", tmp_path / "more", "--examples", file, "--model", tmp_path / "own", *SFT) == 0
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "more" / "model")
    assert again.config.vocab_size == lm.config.vocab_size
    assert not same(weights(again), weights(lm))
    assert call("sft", tmp_path / "folder", "--model", finished / "reviews" / "model", *SFT) == 0


# reward-model -------------------------------------------------------------------------------------------------------------


def test_reward_model_on_simulated_comparisons(finished, tmp_path, capsys):
    assert call("reward-model", tmp_path / "run", "--model", finished / "reviews", "--noise", "0.5", *RM) == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert "trained 2 steps in " in out
    assert "of 12 held-out comparisons right, calibration error 0." in out
    assert "(best possible " in out
    assert out.index("highest held-out score ") < out.index("lowest held-out score ")
    assert [len(load_comparisons(tmp_path / "run" / name)) for name in ("comparisons.jsonl", "held-out.jsonl")] == [32, 12]
    assert {x.prompt for x in load_comparisons(tmp_path / "run" / "held-out.jsonl")} <= set(review_prompts(12, seed=0, held_out=True))
    AutoModel.from_pretrained(tmp_path / "run" / "model")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "run" / "model")
    scores = RewardModel.from_pretrained(tmp_path / "run" / "model").scores(tokenizer, ["I bought this tent."] * 2, [" Good.", " Bad."])
    assert scores.isfinite().all()


@pytest.mark.parametrize(("preferred", "message"), [("first", "100.0% of 2 held-out comparisons right"), ("tie", "are all ties")])
def test_reward_model_on_comparisons_of_your_own(finished, tmp_path, capsys, preferred, message):
    file = tmp_path / "comparisons.jsonl"
    save_comparisons(file, [Comparison(f"I bought this {x}.", " I love it.", " I hate it.", preferred) for x in "abcdefghijklmnopqrst"])
    assert call("reward-model", tmp_path / "run", "--model", finished / "reviews", "--comparisons", file, *RM, "--epochs", "4") == 0
    out = capsys.readouterr().out
    assert message in out
    assert "best possible" not in out


# ppo ----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("start", "options", "message"),
    [
        ("reviews", ["--reward-model", "rm"], "on 4 held-out prompts: mean score "),
        ("reviews", ["--reward", "gold"], "on 4 held-out prompts: mean score "),
        ("sums", ["--task", "addition"], "on 4 held-out prompts: mean score "),
        ("reviews", ["--reward-model", "rm", "--prompts", "prompts.txt"], "on 2 prompts: mean score "),
    ],
    ids=lambda x: " ".join(x) if isinstance(x, list) else "",
)
def test_ppo_with_every_kind_of_reward(finished, tmp_path, capsys, start, options, message):
    write_lines(tmp_path / "prompts.txt", ["I bought this tent.", "", "It is here."])
    places = {"rm": finished / "rm", "prompts.txt": tmp_path / "prompts.txt"}
    assert call("ppo", tmp_path / "run", "--model", finished / start, *(places.get(x, x) for x in options), *PPO) == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert [out.count(f"update {n}: reward ") for n in (1, 2, 3)] == [1, 1, 0]
    assert out.count("  score ") == 4, "two samples after each of two updates"
    assert "trained 2 updates in " in out
    assert message in out
    assert ("It is here. |" in out) == ("--prompts" in options)

    policy = PolicyWithValue.from_pretrained(tmp_path / "run" / "model")
    assert same(weights(policy.lm), model_weights(tmp_path / "run"))
    assert not same(weights(policy.lm), model_weights(finished / start))
    assert policy.value_head.weight.any()
    assert [row["update"] for row in read_log(tmp_path / "run" / LOG_NAME)] == [1, 2]


def test_ppo_continues_from_a_policy_and_hides_samples_when_asked(finished, tmp_path, capsys):
    options = ["--task", "addition", *PPO, "--show-every", "0", "--evaluation-prompts", "0"]
    assert call("ppo", tmp_path / "one", "--model", finished / "sums", *options) == 0
    assert call("ppo", tmp_path / "two", "--model", tmp_path / "one", *options) == 0
    out = capsys.readouterr().out
    assert "update" not in out.replace("updates", "")
    assert " |" not in out
    assert "mean score" not in out


# sample -------------------------------------------------------------------------------------------------------------------


def test_sample_continues_held_out_prompts_of_the_runs_task(finished, capsys):
    for run, prompts in (("reviews", review_prompts(8, seed=3, held_out=True)), ("sums", sum_prompts(8, seed=3, held_out=True))):
        texts = []
        for _ in range(2):
            assert call("sample", finished / run, "--seed", "3") == 0
            texts.append(capsys.readouterr().out)
        assert [line.split(" |")[0] for line in texts[0].splitlines() if " |" in line] == prompts
        assert texts[0] == texts[1], "reproducible"


def test_another_seed_gives_other_samples_of_the_same_prompt(finished, capsys):
    texts = set()
    for seed in range(3):
        assert call("sample", finished / "reviews", "--prompt", "I bought this tent.", "-n", "2", "--seed", seed) == 0
        texts.add(capsys.readouterr().out)
    assert len(texts) == 3


def test_sample_continues_given_prompts_with_the_given_settings(finished, capsys):
    options = ["--max-new-tokens", "1", "--top-k", "1", "--temperature", "0.5", "--top-p", "0.9"]
    assert call("sample", finished / "reviews" / "model", "--prompt", "I bought", "It", "-n", "300", *options) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [sum(line.startswith(x) for line in lines) for x in ("I bought |", "It |")] == [300, 300]
    assert len(set(lines)) == 2, "with top_k 1 nothing is left to chance, whatever the batch"
    assert lines[0].endswith("..."), "cut at one token"
    assert call("sample", finished / "reviews" / "model", "--task", "addition", "--max-new-tokens", "2") == 0
    assert "= |" in capsys.readouterr().out


# pipeline -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("task", ["reviews", "addition"])
def test_pipeline_from_end_to_end_twice(tmp_path, capsys, monkeypatch, task):
    sizes = {"REVIEW_EXAMPLES": 320, "REVIEW_COMPARISONS": 32, "REVIEW_TOKENS": 12, "SUM_EXAMPLES": 32, "EVALUATION_PROMPTS": 16}
    for name, n in sizes.items():
        monkeypatch.setattr(pipeline, name, n)
    make = pipeline.make_review_comparisons
    monkeypatch.setattr(pipeline, "make_review_comparisons", lambda lm, tokenizer, n, **options: make(lm, tokenizer, 32, **options))
    for name in ("REVIEW_SFT", "REVIEW_REWARD_MODEL", "SUM_SFT"):
        monkeypatch.setattr(pipeline, name, SupervisedConfig(epochs=1, batch_size=16))
    for name in ("REVIEW_PPO", "SUM_PPO"):
        monkeypatch.setattr(pipeline, name, LMPPOConfig(updates=1, batch_size=4, minibatches=2, epochs=1, max_new_tokens=4))
    options = ["--task", task, "--show-every", "1", *QUIET]
    assert call("pipeline", tmp_path, *options) == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert "update 1: reward " in out
    assert "before PPO" in out
    stages = ["sft", "ppo"] + ["reward-model"] * (task == "reviews")
    assert all((tmp_path / stage / "model" / "model.safetensors").is_file() for stage in stages)
    policy = model_weights(tmp_path / "ppo")
    assert call("sample", tmp_path / "ppo", "--max-new-tokens", "2") == 0
    assert capsys.readouterr().out.startswith((review_prompts if task == "reviews" else sum_prompts)(8, seed=0, held_out=True)[0])

    assert call("pipeline", tmp_path, *options) == 0
    assert "update 1" not in capsys.readouterr().out, "it is done: nothing is trained again"
    assert same(model_weights(tmp_path / "ppo"), policy)
    assert call("pipeline", tmp_path, *options, "--seed", "1") == 2
    assert "these differ: seed (checkpoint 0, given 1)" in capsys.readouterr().err


def test_pipeline_is_given_the_options(tmp_path, monkeypatch):
    seen = []

    def run_pipeline(task, **options):
        seen.append((task, options.pop("callback") is not None, options))
        return SimpleNamespace(sft=None, reward_model=None, policy=None, report=lambda: "the report")

    monkeypatch.setattr(pipeline, "run_pipeline", run_pipeline)
    assert call("pipeline", tmp_path, "--task", "addition", "--seed", "5") == 0
    assert seen == [("addition", True, {"directory": tmp_path, "seed": 5, "progress": True})]


# Resuming -----------------------------------------------------------------------------------------------------------------

RUNS = {
    "sft": ["sft", "OUT", "--task", "addition", "--seed", "3", *SFT],
    "sft from a file": ["sft", "OUT", "--examples", "FILE", *SFT],
    "reward-model": ["reward-model", "OUT", "--model", "reviews", "--seed", "3", *RM],
    "ppo": ["ppo", "OUT", "--model", "sums", "--task", "addition", "--seed", "3", *PPO],
    "ppo with a reward model": ["ppo", "OUT", "--model", "reviews", "--reward-model", "rm", *PPO],
}


@pytest.mark.parametrize("name", RUNS)
def test_an_interrupted_run_is_resumed_without_its_options_and_ends_as_an_unbroken_one(finished, tmp_path, capsys, interrupt, name):
    places = {"FILE": write_lines(tmp_path / "examples.jsonl", EXAMPLES)} | {x: finished / x for x in ("reviews", "sums", "rm")}
    command, _, *options = (places.get(x, x) for x in RUNS[name])
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert call(command, whole, *options) == 0
    interrupt()
    assert call(command, parts, *options) == 130
    assert capsys.readouterr().err == "ppo-edu: error: interrupted; a run with a log directory can be resumed\n"
    assert not (parts / "model").exists()
    assert len(read_log(parts / LOG_NAME)) == 1

    assert call("sample", parts) == 2
    assert "must be a finished run" in capsys.readouterr().err
    assert call(command, parts, *options) == 2
    assert "continue it with --resume" in capsys.readouterr().err
    assert call(command, parts, "--resume", "--seed", "77") == 2
    assert "these differ: seed (checkpoint " in capsys.readouterr().err

    assert call(command, parts, "--resume", *QUIET) == 0
    assert unmeasured(read_log(parts / LOG_NAME)) == unmeasured(read_log(whole / LOG_NAME))
    files = [x for x in whole.rglob("*") if x.is_file() and x.name not in (LOG_NAME, CHECKPOINT_NAME, REFERENCE_NAME)]
    assert len(files) >= 6, "options, model and tokenizer"
    assert [x.name for x in files if (parts / x.relative_to(whole)).read_bytes() != x.read_bytes()] == []
    checkpoints = [load_checkpoint(x / CHECKPOINT_NAME, kind=f"lm-{command}").tensors for x in (whole, parts)]
    assert same(*({name: x for name, x in tensors.items() if name != "seconds"} for tensors in checkpoints))


def test_a_run_may_be_resumed_with_its_own_options_but_not_as_another_command(finished, capsys, monkeypatch):
    monkeypatch.delattr(pipeline, "make_review_comparisons")  # comparisons are read from the run, not made again
    assert call("reward-model", finished / "rm", "--model", finished / "reviews", *RM, "--resume") == 0
    assert call("ppo", finished / "rm", "--resume", *QUIET) == 2
    assert "must hold a run of `ppo-edu lm ppo` to resume" in capsys.readouterr().err


def test_a_process_interrupted_exits_130_and_can_be_resumed(finished, tmp_path):
    options = [*SFT, "--num-examples", "120", "--batch-size", "2", "--show-every", "0"]  # 60 steps
    command = [sys.executable, "-m", "ppo_edu", "lm", "sft", str(tmp_path / "parts"), *options]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)
    log = tmp_path / "parts" / LOG_NAME
    deadline = time.monotonic() + 120
    while not (log.exists() and log.read_bytes().count(b"\n") >= 2) and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.005)
    os.kill(process.pid, signal.SIGINT)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 130, err
    assert (out, err) == ("", "ppo-edu: error: interrupted; a run with a log directory can be resumed\n")
    assert 2 <= len(read_log(log)) < 60

    assert call("sft", tmp_path / "parts", "--resume", *QUIET) == 0
    assert call("sft", tmp_path / "whole", *options) == 0
    assert same(model_weights(tmp_path / "parts"), model_weights(tmp_path / "whole"))


# Help and options -----------------------------------------------------------------------------------------------------------

HELP = """
import sys
from ppo_edu.cli import main
main(["info"])
try:
    main(["--help"])
except SystemExit:
    pass
print(sorted(x for x in ("transformers", "tokenizers", "ppo_edu.lm") if x in sys.modules))
"""


def test_help_and_info_do_not_import_transformers():
    out = subprocess.run([sys.executable, "-c", HELP], capture_output=True, text=True, check=True).stdout
    assert "lm        Language models: sft, reward-model, ppo, sample and pipeline" in out
    assert out.endswith("[]\n")


def plain(text: str) -> str:
    """Text out of the boxes that the parser draws, on one line."""
    return " ".join(text.replace("│", " ").replace("|", " ").replace(",", " ").split())


def test_help_lists_the_commands(capsys):
    assert call("--help") == 0
    text = plain(capsys.readouterr().out)
    assert all(f"• {name} " in text for name in ("sft", "reward-model", "ppo", "sample", "pipeline"))


@pytest.mark.parametrize(
    ("command", "config", "default"),
    [
        ("sft", SupervisedConfig, pipeline.REVIEW_SFT),
        ("reward-model", SupervisedConfig, pipeline.REVIEW_REWARD_MODEL),
        ("ppo", LMPPOConfig, pipeline.REVIEW_PPO),
    ],
)
def test_every_config_field_has_an_option_and_its_default(command, config, default, capsys):
    assert call(command, "--help") == 0
    text = plain(capsys.readouterr().out)
    for field in dataclasses.fields(config):
        option = text[text.index(f"--{field.name.replace('_', '-')} ") :]
        assert option.split("(default: ")[1].startswith(f"{getattr(default, field.name)})"), field.name


@pytest.mark.parametrize(
    ("command", "options", "config"),
    [
        ("sft", [], pipeline.REVIEW_SFT),
        ("sft", ["--task", "addition", "--weight-decay", "0.5"], dataclasses.replace(pipeline.SUM_SFT, weight_decay=0.5)),
        ("reward-model", ["--max-grad-norm", "None"], dataclasses.replace(pipeline.REVIEW_REWARD_MODEL, max_grad_norm=None)),
        ("ppo", ["--reward", "gold", "--kl-in", "loss"], dataclasses.replace(pipeline.REVIEW_PPO, kl_in="loss")),
        ("ppo", ["--task", "addition", "--no-whiten-advantages"], dataclasses.replace(pipeline.SUM_PPO, whiten_advantages=False)),
    ],
)
def test_the_config_is_the_pipelines_for_the_task_and_what_was_asked_for(finished, tmp_path, monkeypatch, command, options, config):
    seen = []

    def stop(*args, seed, **others):
        seen.append((args[-1], seed))
        raise KeyboardInterrupt

    for name in ("train_sft", "train_reward_model", "train_ppo"):
        monkeypatch.setattr(lm_cli, name, stop)
    start = finished / ("sums" if "addition" in options else "reviews")
    small = {"sft": ["--num-examples", "8"], "reward-model": ["--num-comparisons", "8", "--num-held-out", "8"], "ppo": []}[command]
    assert call(command, tmp_path / "run", "--model", start, *small, *options, "--seed", "6") == 130
    assert seen == [(config, 6)]
    assert type(seen[0][0]) is type(config)


# What can go wrong ------------------------------------------------------------------------------------------------------------

ERRORS = [
    (["sft", "OUT", "--epochs", "0"], "epochs must be an int of at least 1"),
    (["sft", "OUT", "--learning-rate", "nan"], "learning_rate must be a finite number"),
    (["sft", "OUT", "--learning-rate", "fast"], "Error parsing --learning-rate"),
    (["sft", "OUT", "--no-such-option"], "--no-such-option"),
    (["sft", "OUT", "--task", "poems"], "--task"),
    (["sft"], "Missing from ppo-edu lm sft"),
    (["sft", "OUT", "--num-examples", "0"], "num_examples must be an int of at least 1"),
    (["sft", "OUT", "--show-every", "-1"], "show_every must be an int of at least 0"),
    (["sft", "OUT", "--seed", "-1"], "seed must be an int of at least 0"),
    (["sft", "OUT", "--device", "abacus"], "device must be one that torch can use here, got 'abacus'"),
    (["sft", "OUT", "--examples", "nowhere.jsonl"], "nowhere.jsonl must be a file of UTF-8 text: No such file"),
    (["sft", "OUT", "--examples", "TMP"], "must be a file of UTF-8 text: Is a directory"),
    (["sft", "OUT", "--examples", "BYTES"], "must be a file of UTF-8 text: 'utf-8' codec"),
    (["sft", "OUT", "--examples", "EMPTY"], "must hold at least one example"),
    (["sft", "OUT", "--examples", "BAD LINE"], "line 2 is none: Expecting property name"),
    (["sft", "OUT", "--examples", "NO RESPONSE"], "line 2 is none: it has no 'response'"),
    (["sft", "OUT", "--examples", "NUMBER"], "line 2 is none: both must be strings"),
    (["sft", "OUT", "--examples", "LIST"], "line 2 is none: list indices"),
    (["sft", "OUT", "--model", "NOWHERE"], "name_or_path must name a causal language model"),
    (["sft", "OUT", "--model", "sums", "--num-examples", "8"], "model's context of 16 tokens"),
    (["sft", "EMPTY"], "out must be a directory that can be written"),
    (["sft", "reviews"], "out must not hold a run already"),
    (["sft", "NOWHERE", "--resume"], "out must hold a run to resume"),
    (["sft", "TORN", "--resume"], "must hold a run's options as JSON"),
    (["reward-model", "OUT"], "reward-model needs --model"),
    (["reward-model", "OUT", "--model", "rm"], "a reward model, which scores"),
    (["reward-model", "OUT", "--model", "reviews", "--comparisons", "BAD LINE"], "must hold one comparison per line, line 1 is none"),
    (["reward-model", "OUT", "--model", "reviews", "--comparisons", "NOWHERE"], "must be a file of comparisons"),
    (["reward-model", "OUT", "--model", "reviews", "--comparisons", "EMPTY"], "comparisons must be at least two"),
    (["reward-model", "OUT", "--model", "reviews", "--noise", "-1"], "noise must be a finite number of at least 0"),
    (["ppo", "OUT", "--reward", "gold"], "ppo needs --model"),
    (["ppo", "OUT", "--model", "reviews"], "ppo needs a reward: --reward-model RUN, --reward gold or --task addition"),
    (["ppo", "OUT", "--model", "reviews", "--reward", "gold", "--reward-model", "rm"], "ppo needs one reward"),
    (["ppo", "OUT", "--model", "reviews", "--reward-model", "reviews"], "which holds no reward_head"),
    (["ppo", "OUT", "--model", "reviews", "--reward-model", "BROKEN"], "reward_model must be a run of"),
    (["ppo", "OUT", "--model", "reviews", "--reward", "gold", "--prompts", "EMPTY"], "must hold at least one prompt"),
    (["ppo", "OUT", "--model", "sums", "--task", "addition", "--prompts", "BAD LINE"], "prompts must read like"),
    (["ppo", "OUT", "--model", "sums", "--task", "addition", "--batch-size", "1"], "batch_size must be at least 2"),
    (["ppo", "OUT", "--model", "sums", "--task", "addition", "--max-new-tokens", "99"], "model's context of 16 tokens"),
    (["sample"], "Missing from ppo-edu lm sample"),
    (["sample", "NOWHERE"], "name_or_path must name a causal language model"),
    (["sample", "rm"], "a reward model, which scores"),
    (["sample", "MODEL"], "sample needs --prompt or --task"),
    (["sample", "reviews", "--prompt", ""], "prompts[0] must be a non-empty string"),
    (["sample", "reviews", "-n", "0"], "num_samples must be an int of at least 1"),
    (["sample", "reviews", "--top-p", "2"], "top_p must be a number above 0 and at most 1"),
    (["sample", "reviews", "--seed", "-1"], "seed must be an int of at least 0"),
    (["pipeline", "EMPTY"], "out must be a directory that can be written"),
    (["pipeline", "reviews"], "these differ: batch_size"),
    (["nonsense"], "nonsense"),
    ([], "Missing subcommand"),
]


@pytest.mark.parametrize(("arguments", "message"), ERRORS, ids=lambda x: " ".join(x) if isinstance(x, list) else "")
def test_bad_input_exits_2_with_one_readable_error(finished, tmp_path, capsys, arguments, message):
    good = json.dumps(EXAMPLES[0])
    places = {name: write_lines(tmp_path / name, rows) for name, rows in {
        "EMPTY": [],
        "BAD LINE": [good, "{"],
        "NO RESPONSE": [good, {"prompt": "a"}],
        "NUMBER": [good, {"prompt": "a", "response": 3}],
        "LIST": [good, [1, 2]],
    }.items()}  # fmt: skip
    (tmp_path / "BYTES").write_bytes(b"\xff\xfe")
    for name, file in {"TORN/options.json": "{", "TORN/checkpoint.safetensors": "", "BROKEN/model/reward_head.safetensors": ""}.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(file)
    places |= {name: tmp_path / name for name in ("OUT", "NOWHERE", "BYTES", "TORN", "BROKEN")}
    places |= {name: finished / name for name in ("reviews", "sums", "rm")} | {"TMP": tmp_path, "MODEL": finished / "reviews" / "model"}
    assert call(*(places.get(x, x) for x in arguments)) == 2
    out, err = capsys.readouterr()
    assert plain(err).count(plain(message)) == 1, err
    assert "Traceback" not in out + err
    assert len(err.splitlines()) <= 12
    assert not (tmp_path / "OUT" / CHECKPOINT_NAME).exists()


def test_a_run_that_was_trained_on_texts_of_your_own_has_no_prompts_to_sample(tmp_path, capsys):
    file = write_lines(tmp_path / "examples.jsonl", EXAMPLES)
    assert call("sft", tmp_path / "own", "--examples", file, *SFT) == 0
    assert call("sample", tmp_path / "own") == 2
    assert "sample needs --prompt: " in capsys.readouterr().err
    assert call("sample", tmp_path / "own", "--prompt", "a and b", "--max-new-tokens", "3") == 0


@pytest.mark.parametrize(
    "error",
    [
        FloatingPointError("training diverged at step 3: loss is nan"),
        OSError(28, "No space left on device"),
        torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"),
    ],
    ids=lambda x: type(x).__name__,
)
def test_a_failure_while_running_exits_1(error, tmp_path, monkeypatch, capsys):
    def fail(*args, **kwargs):
        raise error

    monkeypatch.setattr(lm_cli, "train_sft", fail)
    assert call("sft", tmp_path / "run", *SFT) == 1
    err = capsys.readouterr().err
    assert len(err.splitlines()) == 1
    assert ("lower --batch-size" if isinstance(error, torch.cuda.OutOfMemoryError) else str(error)) in err


def test_a_full_disk_exits_1_and_the_model_is_written_when_there_is_room(finished, tmp_path, capsys):
    """A limit on the size of files stands for the disk: every library writes into a real error."""
    out = tmp_path / "run"
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    limit = 300_000  # log and options fit, checkpoint and weights do not
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
        assert call("sft", tmp_path / "other", *SFT) == 1
        assert "cannot write " in capsys.readouterr().err
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert call("sft", out, *SFT) == 0
        model = {x.name: x.read_bytes() for x in (out / "model").iterdir()}
        capsys.readouterr()
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
        assert call("sft", out, "--resume", *QUIET) == 1
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    err = capsys.readouterr().err
    assert len(err.splitlines()) == 1
    assert f"cannot write {out / 'model'} (" in err
    assert {x.name: x.read_bytes() for x in (out / "model").iterdir()} == model, "the model of before stands as it was"
    assert not list(out.glob("*.part"))
    assert call("sft", out, "--resume", *QUIET) == 0
    assert {x.name: x.read_bytes() for x in (out / "model").iterdir()} == model


def test_without_transformers_one_line_says_so(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "ppo_edu.lm", None)
    assert call("--help") == 2
    assert capsys.readouterr().err == "ppo-edu: error: ppo-edu lm needs the package ppo_edu.lm, which is not installed\n"
