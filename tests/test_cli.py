"""The command line: three commands, one readable error and a telling exit code for everything that can go wrong."""

import dataclasses
import os
import signal
import subprocess
import sys
import time
from importlib.metadata import PackageNotFoundError

import numpy as np
import pytest
from control_helpers import same_tensors, tiny, without_seconds

from ppo_edu import cli
from ppo_edu.cli import main
from ppo_edu.control import PPOConfig, presets, train
from ppo_edu.runs import CHECKPOINT_NAME, LOG_NAME, load_checkpoint, read_log

SMALL = ["--num-envs", "4", "--num-steps", "16", "--minibatch-size", "32", "--epochs", "2", "--hidden-sizes", "8"]
SMALL += ["--total-steps", "480", "--no-progress"]


def call(*arguments: str) -> int:
    """`main` in this process; its exit code, also where the parser exits by itself."""
    try:
        return main([str(x) for x in arguments])
    except SystemExit as stop:
        return stop.code


def start(*arguments: str) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-m", "ppo_edu", *map(str, arguments)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


# The commands -----------------------------------------------------------------------------------------------------------


def test_train_then_evaluate_then_resume(tmp_path, capsys):
    assert call("train", "cartpole", *SMALL, "--log-dir", tmp_path, "--seed", "3") == 0
    text = capsys.readouterr().out
    assert "trained 4" in text
    assert "return over 100 episodes: mean " in text

    assert call("evaluate", tmp_path, "--episodes", "7", "--no-greedy") == 0
    assert "return over 7 episodes: mean " in capsys.readouterr().out

    assert call("train", "cartpole", *SMALL, "--resume", tmp_path) == 0
    log = train(tiny(), seed=3, progress=False).log
    assert without_seconds(read_log(tmp_path / LOG_NAME)) == without_seconds(log)


def test_the_command_line_trains_the_config_of_its_options(monkeypatch):
    seen = []
    monkeypatch.setattr(cli, "train", lambda config, **options: seen.append((config, options)) or sys.exit(0))
    assert call("train", "Acrobot-v1", *SMALL, "--gamma", "0.5", "--target-kl", "0.02", "--no-normalize-advantages", "--seed", "9") == 0
    config, options = seen[0]
    assert config == tiny(env_id="Acrobot-v1", gamma=0.5, target_kl=0.02, normalize_advantages=False)
    assert type(config) is PPOConfig
    assert options == {"seed": 9, "log_dir": None, "resume": None, "progress": False, "tensorboard": False}


def test_the_command_line_evaluates_with_its_options(tmp_path, monkeypatch):
    train(tiny(total_steps=60), log_dir=tmp_path, progress=False)
    seen = []
    monkeypatch.setattr(cli, "evaluate", lambda policy, env_id, **options: seen.append((env_id, options)) or np.ones(3))
    assert call("evaluate", tmp_path) == 0
    assert call("evaluate", tmp_path, "--episodes", "7", "--seed", "5", "--no-greedy") == 0
    assert seen[0] == ("CartPole-v1", {"episodes": 100, "seed": 0, "greedy": True})
    assert seen[1] == ("CartPole-v1", {"episodes": 7, "seed": 5, "greedy": False})


def test_without_options_the_default_config_is_trained(monkeypatch):
    seen = []
    monkeypatch.setattr(cli, "train", lambda config, **options: seen.append(config) or sys.exit(0))
    assert call("train") == 0
    assert seen == [PPOConfig()]


@pytest.mark.parametrize("name", ["cartpole", "acrobot", "pendulum", "text"])
@pytest.mark.parametrize("order", [1, -1])
def test_a_short_name_brings_the_options_that_solve_the_task_and_others_still_count(name, order, monkeypatch):
    seen = []
    monkeypatch.setattr(cli, "train", lambda config, **options: seen.append(config) or sys.exit(0))
    preset = getattr(presets, name.upper())
    assert call("train", name) == 0
    assert call("train", *[name, "--gamma=0.5"][::order], "--num-envs", "8", "--num-steps", "64", "--minibatch-size", "500") == 0
    changed = dataclasses.replace(preset, gamma=0.5, num_envs=8, num_steps=64, minibatch_size=500)
    assert seen == [preset, changed]
    assert type(seen[0]) is PPOConfig


def test_an_environments_own_name_brings_no_preset(monkeypatch):
    seen = []
    monkeypatch.setattr(cli, "train", lambda config, **options: seen.append(config) or sys.exit(0))
    assert call("train", "Pendulum-v1", "--log-dir", "pendulum") == 0
    assert call("train", "mountaincar") == 0
    assert seen == [PPOConfig(env_id="Pendulum-v1"), PPOConfig(env_id="MountainCar-v0")]


def test_every_config_field_has_an_option_with_its_text(capsys):
    assert call("train", "--help") == 0
    text = " ".join(capsys.readouterr().out.replace("│", " ").split())
    for field in dataclasses.fields(PPOConfig):
        assert "[STR] Gymnasium environment" if field.name == "env_id" else f"--{field.name.replace('_', '-')} " in text.replace(",", " ")
    assert "Discount per step." in text


def test_evaluate_is_reproducible(tmp_path, capsys):
    call("train", "cartpole", *SMALL, "--log-dir", tmp_path)
    capsys.readouterr()
    texts = [(call("evaluate", tmp_path / CHECKPOINT_NAME, "--seed", "5"), capsys.readouterr().out)[1] for _ in range(2)]
    assert texts[0] == texts[1]


def test_info_says_what_is_not_installed(monkeypatch, capsys):
    def version(name):
        if name == "transformers":
            raise PackageNotFoundError
        return "1.2.3"

    monkeypatch.setattr(cli, "version", version)
    assert call("info") == 0
    out = capsys.readouterr().out
    assert "transformers  not installed" in out
    assert "torch         1.2.3" in out


def test_module_info_prints_versions_and_device():
    import torch

    process = start("info")
    out, err = process.communicate(timeout=120)
    assert (process.returncode, err) == (0, "")
    lines = dict(line.split(maxsplit=1) for line in out.splitlines())
    assert lines["torch"] == torch.__version__
    assert {"ppo-edu", "gymnasium", "numpy", "transformers", "python", "device"} <= lines.keys()


# Bad values -------------------------------------------------------------------------------------------------------------

BAD_OPTIONS = [
    (["--num-envs", "0"], "num_envs must be an int of at least 1"),
    (["--num-envs", "-3"], "num_envs must be an int of at least 1"),
    (["--num-steps", "1.5"], "Error parsing --num-steps: invalid literal"),
    (["--total-steps", "many"], "Error parsing --total-steps: invalid literal"),
    (["--minibatch-size", "1"], "minibatch_size must be from 2"),
    (["--minibatch-size", "1000000"], "minibatch_size must be from 2"),
    (["--learning-rate", "nan"], "learning_rate must be a finite number"),
    (["--gamma", "1.5"], "gamma must be a number in [0, 1]"),
    (["--clip-range", "0"], "clip_range must be a finite number above 0"),
    (["--hidden-sizes", "8", "0"], "hidden_sizes[1] must be"),
    (["--seed", "-1"], "seed must be an int"),
    (["--no-such-option"], "--no-such-option"),
    (["--tensorboard"], "tensorboard needs log_dir"),
    (["--resume", "nowhere"], "no checkpoint at nowhere"),
    (["NoSuchEnvironment-v0"], "env_id must name an environment"),
    (["not an id"], "env_id must name an environment"),
    (["TwoActions-v0"], "actions must be Discrete, counted from 0, or a Box"),
    (["Image-v0"], "observations must be vectors"),
    (["NaNReward-v0"], "reward must be finite"),
]


@pytest.mark.parametrize(("options", "message"), BAD_OPTIONS, ids=lambda x: " ".join(x) if isinstance(x, list) else "")
def test_a_bad_value_exits_2_with_one_readable_error(options, message, capsys):
    assert call("train", *options, "--no-progress") == 2
    out, err = capsys.readouterr()
    text = " ".join(err.replace("│", " ").replace("|", " ").split())  # what a box around the message breaks into lines
    assert text.count(message) == 1
    assert "Traceback" not in out + err
    assert len(err.splitlines()) <= 12


@pytest.mark.parametrize(
    "arguments",
    [[], ["nonsense"], ["evaluate"], ["evaluate", "nowhere"], ["evaluate", "nowhere", "--episodes", "x"]],
    ids=" ".join,
)
def test_a_bad_command_exits_2(arguments, capsys):
    assert call(*arguments) == 2
    assert "Traceback" not in "".join(capsys.readouterr())


@pytest.mark.parametrize("option", [("--episodes", "0"), ("--seed", "-1")])
def test_bad_options_of_evaluate_exit_2(tmp_path, capsys, option):
    call("train", "cartpole", *SMALL, "--log-dir", tmp_path)
    assert call("evaluate", tmp_path, *option) == 2
    assert f"{option[0].removeprefix('--')} must be an int" in capsys.readouterr().err


def test_a_corrupt_checkpoint_exits_2(tmp_path, capsys):
    (tmp_path / CHECKPOINT_NAME).write_bytes(b"\x80random bytes")
    assert call("evaluate", tmp_path) == 2
    assert "is not a readable checkpoint" in capsys.readouterr().err


def test_a_directory_that_cannot_be_written_exits_2(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert call("train", *SMALL, "--log-dir", tmp_path / "file" / "run") == 2
    assert "log_dir must be writable" in capsys.readouterr().err


@pytest.mark.parametrize(
    "error", [FloatingPointError("training diverged at update 3: policy_loss is nan"), OSError(28, "No space left on device")]
)
def test_a_failure_while_running_exits_1(error, monkeypatch, capsys):
    def fail(*args, **kwargs):
        raise error

    monkeypatch.setattr(cli, "train", fail)
    assert call("train") == 1
    assert capsys.readouterr().err == f"ppo-edu: error: {error}\n"


def test_divergence_exits_1(capsys):
    assert call("train", *SMALL, "--learning-rate", "1e30") == 1
    assert "training diverged at update" in capsys.readouterr().err


def test_a_keyboard_interrupt_exits_130(monkeypatch, capsys):
    def interrupt(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "train", interrupt)
    assert call("train") == 130
    assert "can be resumed" in capsys.readouterr().err


# Through a process of its own -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("arguments", [["train", "cartpole", "--num-envs", "0"], ["train", "NoSuchEnvironment-v0"]], ids=" ".join)
def test_module_exits_2_without_a_traceback(arguments):
    process = start(*arguments)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 2
    assert out == ""
    assert err
    assert "Traceback" not in err


def test_module_interrupted_exits_130_and_the_run_continues_bit_for_bit(tmp_path):
    config = tiny(total_steps=20_000)
    options = [*SMALL, "--total-steps", "20000", "--seed", "4"]
    process = start("train", "cartpole", *options, "--log-dir", tmp_path / "parts")
    log = tmp_path / "parts" / LOG_NAME
    deadline = time.monotonic() + 120
    while not (log.exists() and log.read_bytes().count(b"\n") >= 5) and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.005)
    os.kill(process.pid, signal.SIGINT)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 130, err
    assert err == "ppo-edu: error: interrupted; a run with a log directory can be resumed\n"
    assert out == ""

    checkpoint = load_checkpoint(tmp_path / "parts" / CHECKPOINT_NAME, kind="control")
    rows = read_log(log)
    assert checkpoint.update == rows[-1]["update"] >= 5
    assert rows[-1]["env_steps"] < 20_000, "the signal must have come before the end"
    train(config, resume=tmp_path / "parts", progress=False)
    train(config, seed=4, log_dir=tmp_path / "whole", progress=False)
    parts, whole = (load_checkpoint(tmp_path / name / CHECKPOINT_NAME, kind="control").tensors for name in ("parts", "whole"))
    assert same_tensors(*({name: x for name, x in tensors.items() if name != "seconds"} for tensors in (parts, whole)))
    assert without_seconds(read_log(log)) == without_seconds(read_log(tmp_path / "whole" / LOG_NAME))
