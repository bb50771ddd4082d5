"""A run that stops, is killed or meets a full disk goes on bit for bit from its last checkpoint; memory does not grow."""

import errno
import gc
import io
import os
import resource
import signal
import subprocess
import sys
import threading
import tracemalloc
from pathlib import Path

import pytest
import torch
from lm_helpers import PROMPTS, make_lm, make_tokenizer
from ppo_helpers import assert_same_run, contents, count_a, make_policy, run, same, saved, small, weights

from ppo_edu import runs
from ppo_edu.lm.ppo import REFERENCE_NAME
from ppo_edu.runs import CHECKPOINT_NAME, LOG_NAME, Checkpoint, column, load_checkpoint, read_log, save_checkpoint

EVERY = {"checkpoint_every": 1}


def stop_at(update):
    return lambda state: state.update == update


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The directory of a run that nothing interrupted."""
    directory = tmp_path_factory.mktemp("whole")
    run(log_dir=directory)
    return directory


# Stopping and resuming ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("update", "value", "changes"),
    [
        (1, "shared", {}),
        (4, "shared", {"kl_in": "loss", "accumulation": 2}),
        (4, "separate", {"kl_target": 1.0, "kl_horizon": 50.0, "anneal_learning_rate": True}),
    ],
)
def test_a_stopped_run_continues_bit_for_bit(tmp_path, update, value, changes):
    config = small(**changes)
    whole = run(make_policy(value=value), config, log_dir=tmp_path / "whole")
    run(make_policy(value=value), config, log_dir=tmp_path / "parts", callback=stop_at(update))
    torch.manual_seed(99)
    resumed = run(make_policy(value=value, seed=9), config, resume=tmp_path / "parts", seed=77)  # all state comes from the checkpoint
    assert same(weights(resumed.policy), weights(whole.policy))
    assert_same_run(tmp_path / "parts", tmp_path / "whole")
    assert len(resumed.log) == len(whole.log) == 6


def test_resuming_at_every_update_changes_nothing(tmp_path, whole):
    run(log_dir=tmp_path / "parts", callback=lambda state: True)
    for _ in range(5):
        run(resume=tmp_path / "parts", callback=lambda state: True)
    assert_same_run(tmp_path / "parts", whole)


def test_a_reward_function_that_draws_random_numbers_continues_its_sequence(tmp_path):
    def noisy(prompts, responses):
        return count_a(prompts, responses) + torch.randn(len(responses))

    run(log_dir=tmp_path / "whole", reward_fn=noisy)
    run(log_dir=tmp_path / "parts", reward_fn=noisy, callback=stop_at(2))
    run(resume=tmp_path / "parts", reward_fn=noisy)
    assert_same_run(tmp_path / "parts", tmp_path / "whole")


def test_the_reference_of_a_resumed_run_is_the_starting_policy_and_not_the_resumed_one(tmp_path):
    policy, references = make_policy(), []
    start = weights(policy.lm)
    run(policy, log_dir=tmp_path, callback=stop_at(3))
    assert not same(weights(policy.lm), start)
    run(make_policy(seed=9), resume=tmp_path, callback=lambda state: references.append(weights(state.reference)))
    assert len(references) == 3
    assert all(same(reference, start) for reference in references)


def test_a_reference_that_was_given_is_not_stored_and_must_be_given_again(tmp_path):
    reference = make_lm("gpt2", seed=1)
    run(log_dir=tmp_path / "whole", reference=reference)
    run(log_dir=tmp_path / "parts", reference=reference, callback=stop_at(3))
    assert sorted(contents(tmp_path / "parts")) == [CHECKPOINT_NAME, LOG_NAME]
    with pytest.raises(ValueError, match=r"these differ: reference \(checkpoint 'given', given 'a copy of the policy'\)"):
        run(resume=tmp_path / "parts")
    run(resume=tmp_path / "parts", reference=reference)
    assert_same_run(tmp_path / "parts", tmp_path / "whole")


@pytest.mark.parametrize("tie_word_embeddings", [True, False])
def test_tied_and_untied_heads_both_survive_a_checkpoint(tmp_path, tie_word_embeddings):
    tied = {"tie_word_embeddings": tie_word_embeddings}
    whole = run(make_policy(**tied))
    run(make_policy(**tied), log_dir=tmp_path, callback=stop_at(2))
    resumed = run(make_policy(seed=9, **tied), resume=tmp_path).policy
    assert same(weights(resumed), weights(whole.policy))
    assert (resumed.lm.lm_head.weight is resumed.lm.transformer.wte.weight) == tie_word_embeddings


def test_log_rows_after_the_checkpoint_are_cut(tmp_path, whole):
    def fail_at_3(state):
        if state.update == 3:
            raise RuntimeError("power failure")

    with pytest.raises(RuntimeError, match="power failure"):
        run(log_dir=tmp_path / "parts", checkpoint_every=2, callback=fail_at_3)
    assert len(read_log(tmp_path / "parts" / LOG_NAME)) == 3
    assert saved(tmp_path / "parts")[0] == 2
    rows = []
    run(resume=tmp_path / "parts", callback=lambda state: rows.append(len(state.log)))
    assert rows == [3, 4, 5, 6]
    assert_same_run(tmp_path / "parts", whole)


def test_checkpoints_come_every_so_many_updates_and_at_the_end(tmp_path):
    seen = []
    run(log_dir=tmp_path, checkpoint_every=4, callback=lambda state: seen.append(saved(tmp_path)[0]))
    assert seen == [0, 0, 0, 0, 4, 4]
    assert saved(tmp_path)[0] == 6


def test_seconds_go_on_from_where_they_were_and_a_finished_run_resumes_to_itself(tmp_path):
    first = run(log_dir=tmp_path, callback=stop_at(3))
    result = run(resume=tmp_path)
    seconds = column(result.log, "seconds")
    assert (seconds[1:] > seconds[:-1]).all()
    assert seconds[2] == first.seconds
    before, policy = contents(tmp_path), make_policy(seed=9)
    again = run(policy, resume=tmp_path)
    assert same(weights(policy), weights(result.policy))
    assert again.log == result.log
    assert contents(tmp_path) == before


# What does not fit is refused, and nothing changes ------------------------------------------------------------------------


@pytest.fixture
def stopped(tmp_path):
    """The directory of a run stopped after two updates."""
    run(log_dir=tmp_path, callback=stop_at(2))
    return tmp_path


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"config": lambda: small(gamma=0.5, kl_in="loss")},
            r"differ: gamma \(.* given 0.5\), kl_in \(checkpoint 'reward', given 'loss'\)",
        ),
        ({"prompts": lambda: [*PROMPTS, "a b"]}, r"these differ: prompts \(checkpoint '\w+', given '\w+'\)"),
        ({"prompts": lambda: PROMPTS[::-1]}, "these differ: prompts"),
        ({"reference": lambda: make_lm("gpt2", seed=1)}, r"these differ: reference \(checkpoint 'a copy of the policy', given 'given'\)"),
        ({"policy": lambda: make_policy(n_layer=3)}, "the checkpoint does not fit the model: only the model has "),
        ({"policy": lambda: make_policy(n_embd=32)}, "the checkpoint does not fit the model: .*\n.*size mismatch"),
        ({"policy": lambda: make_policy("llama")}, "the checkpoint does not fit the model"),
        ({"policy": lambda: make_policy(value="separate")}, r"the checkpoint must be complete, it lacks \['policy.value_trunk"),
        ({"log_dir": lambda: "elsewhere"}, "log_dir must be left out or be the run that resume names"),
    ],
)
def test_another_config_or_other_prompts_or_another_model_are_named(stopped, options, message):
    before = contents(stopped)
    with pytest.raises(ValueError, match=message) as caught:
        run(**{name: make() for name, make in options.items()}, resume=stopped)
    assert "lam" not in str(caught.value).split()
    assert contents(stopped) == before
    run(resume=stopped)


def test_a_run_is_never_overwritten(stopped):
    before = contents(stopped)
    with pytest.raises(ValueError, match="log_dir must not hold a run already"):
        run(log_dir=stopped)
    assert contents(stopped) == before


@pytest.mark.parametrize("kind", ["control", "lm-reference", "reward-model"])
def test_a_checkpoint_of_another_trainer_is_refused(stopped, kind):
    checkpoint = load_checkpoint(stopped / CHECKPOINT_NAME, kind="lm-ppo")
    save_checkpoint(stopped / CHECKPOINT_NAME, Checkpoint(checkpoint.tensors, kind, checkpoint.config, 2))
    with pytest.raises(ValueError, match=rf"must be a checkpoint of ppo-edu-1, kind lm-ppo; it was written by ppo-edu-1, kind {kind}"):
        run(resume=stopped)


def test_a_checkpoint_that_classic_control_wrote_is_refused(tmp_path):
    pytest.importorskip("gymnasium")
    from control_helpers import tiny

    from ppo_edu.control import train

    train(tiny(total_steps=60), log_dir=tmp_path, progress=False)
    with pytest.raises(ValueError, match="kind lm-ppo; it was written by ppo-edu-1, kind control"):
        run(resume=tmp_path)


@pytest.mark.parametrize("damage", ["missing", "cut", "foreign"])
def test_a_damaged_reference_is_one_clear_error(stopped, damage):
    path = stopped / REFERENCE_NAME
    content = path.read_bytes()
    path.unlink()
    if damage == "cut":
        path.write_bytes(content[: len(content) // 2])
    elif damage == "foreign":
        path.write_bytes((stopped / CHECKPOINT_NAME).read_bytes())
    message = {"missing": "no checkpoint at .*", "cut": ".* is not a readable checkpoint", "foreign": ".* must be a checkpoint of .*"}
    with pytest.raises(ValueError, match=message[damage].replace(".*", f".*{REFERENCE_NAME}.*", 1)):
        run(resume=stopped)


# Kills, Ctrl-C and full disks ---------------------------------------------------------------------------------------------


def test_killed_at_any_moment_and_resumed_a_run_ends_bit_for_bit_as_the_whole_one(tmp_path):
    script = Path(__file__).with_name("kill_and_resume_ppo.py")
    process = subprocess.run([sys.executable, script, tmp_path], capture_output=True, text=True, timeout=300, check=False)
    assert process.returncode == 0, process.stderr
    directories = sorted(tmp_path.iterdir())
    assert len(directories) == 12
    start = make_policy(value="separate").lm
    for directory in directories:
        assert_same_run(directory, tmp_path / "whole")
        assert sorted(contents(directory)) == sorted([CHECKPOINT_NAME, LOG_NAME, REFERENCE_NAME])
        reference = load_checkpoint(directory / REFERENCE_NAME, kind="lm-reference").tensors
        assert same(reference, {name: x for name, x in weights(start).items() if name in reference})


@pytest.mark.parametrize("times", [1, 2])
def test_ctrl_c_ends_the_update_and_writes_a_checkpoint_and_a_second_one_interrupts_at_once(tmp_path, times, whole):
    def press(state):
        if state.update == 3:
            for _ in range(times):
                signal.raise_signal(signal.SIGINT)

    handler = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        run(log_dir=tmp_path / "parts", callback=press, checkpoint_every=100)
    assert signal.getsignal(signal.SIGINT) is handler
    assert saved(tmp_path / "parts")[0] == (3 if times == 1 else 0)
    run(resume=tmp_path / "parts")
    assert_same_run(tmp_path / "parts", whole)


def test_ctrl_c_in_the_reward_function_ends_the_update_first(tmp_path):
    def scorer(prompts, responses):
        if len(calls) == 2:
            signal.raise_signal(signal.SIGINT)
        calls.append(len(responses))
        return count_a(prompts, responses)

    calls = []
    with pytest.raises(KeyboardInterrupt):
        run(log_dir=tmp_path, reward_fn=scorer)
    assert saved(tmp_path)[0] == 3 == len(read_log(tmp_path / LOG_NAME))


def test_training_runs_outside_the_main_thread():
    results = []
    thread = threading.Thread(target=lambda: results.append(run()))
    thread.start()
    thread.join()
    assert same(weights(results[0].policy), weights(run().policy))


FULL = OSError(errno.ENOSPC, "No space left on device")


class FullFile(io.BytesIO):
    def __init__(self, path, mode):
        super().__init__()

    def write(self, content):
        raise FULL


def fail(*args, **kwargs):
    raise FULL


@pytest.mark.parametrize(("place", "name", "replacement"), [("os", "fsync", fail), ("os", "replace", fail), ("", "open", FullFile)])
@pytest.mark.parametrize("update", [0, 3])
def test_a_full_disk_is_one_clear_error_and_the_last_checkpoint_stays(tmp_path, monkeypatch, place, name, replacement, update, whole):
    parts = tmp_path / "parts"
    with monkeypatch.context() as full:
        module = runs.os if place else runs

        def fill(state=None):
            if state is None or state.update == update:
                full.setattr(module, name, replacement, raising=False)

        if update == 0:  # while the reference is written
            real = runs.Run._open
            full.setattr(runs.Run, "_open", lambda self, resuming: (real(self, resuming), fill()))
        with pytest.raises(OSError, match="No space left on device") as caught:
            run(log_dir=parts, callback=fill, **EVERY)
    assert caught.value.errno == errno.ENOSPC
    if update == 0:
        assert contents(parts) == {LOG_NAME: b""}
        run(log_dir=parts)
    else:
        assert sorted(contents(parts)) == sorted([CHECKPOINT_NAME, LOG_NAME, REFERENCE_NAME])
        assert saved(parts)[0] == 2
        run(resume=parts)
    assert_same_run(parts, whole)


def test_a_log_that_cannot_grow_is_one_clear_error_and_the_run_resumes(tmp_path, whole):
    """Nothing is replaced here: the operating system itself ends the file in the middle of a row."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    parts = tmp_path / "parts"

    def limit(state):
        if state.update == 3:
            resource.setrlimit(resource.RLIMIT_FSIZE, ((parts / LOG_NAME).stat().st_size + 40, hard))

    try:
        with pytest.raises(OSError, match="File too large"):
            run(log_dir=parts, callback=limit, checkpoint_every=2)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert saved(parts)[0] == 2
    assert (parts / LOG_NAME).read_bytes().count(b"\n") == 3
    run(resume=parts)
    assert_same_run(parts, whole)


# Memory -------------------------------------------------------------------------------------------------------------------


def live_tensors() -> int:
    gc.collect()
    return sum(issubclass(type(x), torch.Tensor) for x in gc.get_objects())


def test_no_update_leaves_a_tensor_behind():
    counts = {}

    def look(state):
        if state.update in (3, 20):
            counts[state.update] = live_tensors()

    run(config=small(updates=20, kl_in="loss"), callback=look)
    assert counts[3] == counts[20] > 0


@pytest.mark.verify
def test_memory_is_flat_over_500_updates(tmp_path):
    """The log itself grows, by about 2 kB per row."""
    measured = []

    def look(state):
        if state.update in (100, 500):
            tensors = live_tensors()
            pages = int(Path("/proc/self/statm").read_text().split()[1])
            measured.append((tensors, tracemalloc.get_traced_memory()[0], pages * os.sysconf("SC_PAGE_SIZE")))

    tracemalloc.start()
    try:
        run(make_policy(value="separate"), small(updates=500), log_dir=tmp_path, callback=look, tokenizer=make_tokenizer())
    finally:
        tracemalloc.stop()
    (tensors, python, resident), (tensors_after, python_after, resident_after) = measured
    growth = f"\nfrom update 100 to 500: Python {(python_after - python) / 1e6:.2f} MB, resident {(resident_after - resident) / 1e6:.2f} MB"
    print(growth)
    assert tensors_after == tensors
    assert python_after - python < 2e6
    assert resident_after - resident < 20e6
