"""The run log, checkpoints, resuming bit for bit, Ctrl-C and real kills."""

import errno
import json
import math
import os
import pickle
import signal
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from control_helpers import same_tensors, same_weights, tiny, without_seconds

from ppo_edu import runs
from ppo_edu.control import evaluate, load_policy, train
from ppo_edu.runs import (
    CHECKPOINT_NAME,
    LOG_NAME,
    Checkpoint,
    Run,
    column,
    deferred_interrupt,
    generator_tensor,
    load_checkpoint,
    load_into,
    optimizer_tensors,
    read_log,
    restore_generator,
    restore_optimizer,
    save_checkpoint,
    seeded,
    write_atomically,
)

CONFIG = tiny()
METADATA = {"format": "ppo-edu-1", "kind": "control", "config": "{}", "update": "3"}


def run(config=CONFIG, **options):
    return train(config, **({"progress": False} | options))


def stop_at(update):
    return lambda state: state.update == update


def contents(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()}


def trained_tensors(directory: Path) -> dict[str, torch.Tensor]:
    """All tensors of a run's checkpoint but the seconds it took."""
    tensors = load_checkpoint(directory / CHECKPOINT_NAME, kind="control").tensors
    return {name: x for name, x in tensors.items() if name != "seconds"}


def assert_same_run(a: Path, b: Path):
    assert same_tensors(trained_tensors(a), trained_tensors(b))
    assert without_seconds(read_log(a / LOG_NAME)) == without_seconds(read_log(b / LOG_NAME))


# The log ----------------------------------------------------------------------------------------------------------------


def test_the_log_on_disk_is_the_log_in_memory_one_json_object_per_line(tmp_path):
    result = run(log_dir=tmp_path)
    lines = (tmp_path / LOG_NAME).read_text().splitlines()
    assert len(lines) == len(result.log)
    assert str(read_log(tmp_path / LOG_NAME)) == str(result.log)
    assert all(isinstance(json.loads(line), dict) for line in lines)


def test_nan_is_written_as_null_and_read_back_as_nan(tmp_path):
    with Run("control", {}, log_dir=tmp_path) as r:
        r.append({"update": 1, "x": math.nan})
    assert (tmp_path / LOG_NAME).read_text() == '{"update": 1, "x": null}\n'
    assert math.isnan(read_log(tmp_path / LOG_NAME)[0]["x"])


def test_infinity_is_never_written(tmp_path):
    with Run("control", {}, log_dir=tmp_path) as r, pytest.raises(ValueError, match="not JSON compliant"):
        r.append({"update": 1, "x": math.inf})
    assert (tmp_path / LOG_NAME).read_text() == ""


def test_each_row_is_on_disk_before_the_next_update(tmp_path):
    def look(state):
        assert len(read_log(tmp_path / LOG_NAME)) == state.update

    run(log_dir=tmp_path, callback=look)


@pytest.mark.parametrize("tail", ['{"update": 3, "x"', '{"update": 3}', "\0\0\0", "\xff"])
def test_a_half_written_last_line_is_left_out(tmp_path, tail):
    path = tmp_path / LOG_NAME
    path.write_text('{"update": 1}\n{"update": 2}\n' + tail, encoding="latin-1")
    assert read_log(path) == [{"update": 1}, {"update": 2}]


@pytest.mark.parametrize(
    "line", ["not json", '{"update": 1', "[1, 2]", '{"update": "x"}', '{"update": [1]}', '{"x": 1}', "", "\xff\xfe", "3"]
)
def test_a_corrupt_line_is_refused_with_its_number(tmp_path, line):
    path = tmp_path / LOG_NAME
    path.write_text('{"update": 1}\n' + line + '\n{"update": 2}\n', encoding="latin-1")
    with pytest.raises(ValueError, match=r"log.jsonl must hold one JSON object of numbers per line, got .* on line 2"):
        read_log(path)


def test_a_missing_log_has_no_rows(tmp_path):
    assert read_log(tmp_path / LOG_NAME) == []


def test_a_column_holds_nan_where_a_row_has_no_such_entry():
    assert str(column([{"a": 1.0}, {"b": 2.0}], "a").tolist()) == "[1.0, nan]"


# The directory ----------------------------------------------------------------------------------------------------------


def test_a_directory_that_holds_a_run_is_refused_and_nothing_changes(tmp_path):
    run(log_dir=tmp_path, callback=stop_at(1))
    before = contents(tmp_path)
    with pytest.raises(ValueError, match="log_dir must not hold a run already"):
        run(log_dir=tmp_path)
    assert contents(tmp_path) == before


@pytest.mark.parametrize("name", [LOG_NAME, CHECKPOINT_NAME])
def test_half_of_a_run_is_refused_too(tmp_path, name):
    (tmp_path / name).write_text("something")
    with pytest.raises(ValueError, match="log_dir must not hold a run already"):
        run(log_dir=tmp_path)
    assert contents(tmp_path) == {name: b"something"}


@pytest.mark.parametrize("env_id", ["NoSuchEnvironment-v0", "TwoActions-v0"])
def test_a_run_that_failed_before_its_first_update_does_not_block_the_directory(tmp_path, env_id):
    with pytest.raises(ValueError, match=r"env_id|Discrete"):
        run(tiny(env_id=env_id), log_dir=tmp_path)
    run(log_dir=tmp_path)
    assert (tmp_path / CHECKPOINT_NAME).exists()


def test_a_path_below_a_regular_file_is_one_clear_error(tmp_path):
    (tmp_path / "file").write_text("a file")
    with pytest.raises(ValueError, match=r"log_dir must be writable, got .*file/run: Not a directory"):
        run(log_dir=tmp_path / "file" / "run")


def test_a_directory_and_its_parents_are_made(tmp_path):
    run(log_dir=tmp_path / "a" / "b", callback=stop_at(1))
    assert sorted(contents(tmp_path / "a" / "b")) == [CHECKPOINT_NAME, LOG_NAME]


def test_tensorboard_files_appear_when_asked_and_hold_the_log(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    def fail_at_3(state):
        if state.update == 3:
            raise RuntimeError("power failure")

    with pytest.raises(RuntimeError, match="power failure"):
        run(log_dir=tmp_path, tensorboard=True, checkpoint_every=2, callback=fail_at_3)
    log = run(resume=tmp_path, tensorboard=True).log
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    written = [(event.step, event.value) for event in events.Scalars("approx_kl")]
    assert [step for step, _ in written] == column(log, "update").tolist(), "row 3 was written twice and counts once"
    assert [value for _, value in written] == pytest.approx(column(log, "approx_kl").tolist(), rel=1e-6)


def test_tensorboard_without_a_directory_is_refused():
    with pytest.raises(ValueError, match="tensorboard needs log_dir"):
        run(tensorboard=True)


def test_a_missing_tensorboard_package_is_one_clear_error_before_anything_is_written(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(ValueError, match="needs the tensorboard package: pip install tensorboard"):
        run(log_dir=tmp_path, tensorboard=True)
    assert contents(tmp_path) == {}


# Resuming ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("update", [1, 4])
def test_a_stopped_run_continues_bit_for_bit(tmp_path, update):
    run(log_dir=tmp_path / "whole")
    run(log_dir=tmp_path / "parts", callback=stop_at(update))
    torch.manual_seed(99)
    result = run(resume=tmp_path / "parts", seed=77)  # every random state comes from the checkpoint
    assert_same_run(tmp_path / "parts", tmp_path / "whole")
    assert len(result.log) == len(read_log(tmp_path / "whole" / LOG_NAME))


def test_resuming_at_every_update_changes_nothing(tmp_path):
    run(log_dir=tmp_path / "whole")
    run(log_dir=tmp_path / "parts", callback=lambda state: True)
    for _ in range(20):
        run(resume=tmp_path / "parts", callback=lambda state: True)
    assert_same_run(tmp_path / "parts", tmp_path / "whole")


def test_log_rows_after_the_checkpoint_are_cut(tmp_path):
    def fail_at_6(state):
        if state.update == 6:
            raise RuntimeError("power failure")

    run(log_dir=tmp_path / "whole")
    with pytest.raises(RuntimeError, match="power failure"):
        run(log_dir=tmp_path / "parts", checkpoint_every=4, callback=fail_at_6)
    assert len(read_log(tmp_path / "parts" / LOG_NAME)) == 6
    assert load_checkpoint(tmp_path / "parts" / CHECKPOINT_NAME, kind="control").update == 4
    rows = []
    run(resume=tmp_path / "parts", callback=lambda state: rows.append(len(state.log)))
    assert rows[0] == 5
    assert_same_run(tmp_path / "parts", tmp_path / "whole")


def test_seconds_go_on_from_where_they_were(tmp_path):
    first = run(log_dir=tmp_path, callback=stop_at(3))
    seconds = column(run(resume=tmp_path).log, "seconds")
    assert (np.diff(seconds) > 0).all()
    assert seconds[2] == first.seconds


def test_a_finished_run_resumes_to_itself(tmp_path):
    result = run(log_dir=tmp_path)
    before = contents(tmp_path)
    again = run(resume=tmp_path)
    assert same_weights(result.policy, again.policy)
    assert (result.env_steps, result.seconds, str(result.log)) == (again.env_steps, again.seconds, str(again.log))
    assert contents(tmp_path) == before


def test_a_lost_log_does_not_lose_the_run(tmp_path):
    run(log_dir=tmp_path / "whole")
    run(log_dir=tmp_path / "parts", callback=stop_at(3))
    (tmp_path / "parts" / LOG_NAME).unlink()
    run(resume=tmp_path / "parts")
    assert same_tensors(trained_tensors(tmp_path / "parts"), trained_tensors(tmp_path / "whole"))
    assert column(read_log(tmp_path / "parts" / LOG_NAME), "update")[0] == 4


def test_resume_accepts_the_checkpoint_file_and_the_same_log_dir(tmp_path):
    run(log_dir=tmp_path, callback=stop_at(1))
    run(resume=tmp_path / CHECKPOINT_NAME, log_dir=str(tmp_path), callback=stop_at(2))
    assert load_checkpoint(tmp_path / CHECKPOINT_NAME, kind="control").update == 2


def test_resuming_into_another_directory_is_refused(tmp_path):
    run(log_dir=tmp_path / "a", callback=stop_at(1))
    with pytest.raises(ValueError, match="log_dir must be left out or be the run that resume names"):
        run(resume=tmp_path / "a", log_dir=tmp_path / "b")


def test_a_config_that_differs_names_every_field_and_changes_nothing(tmp_path):
    run(log_dir=tmp_path, callback=stop_at(1))
    before = contents(tmp_path)
    with pytest.raises(ValueError, match=r"these differ: gamma \(checkpoint .*, given 0.5\), hidden_sizes .*\[8\], given \[4\]") as caught:
        run(tiny(gamma=0.5, hidden_sizes=(4,)), resume=tmp_path)
    assert "lam" not in str(caught.value)
    assert contents(tmp_path) == before


def test_a_run_killed_in_its_first_update_can_be_resumed(tmp_path):
    def kill(*args, **kwargs):
        raise RuntimeError("killed")

    with pytest.raises(RuntimeError, match="killed"):
        run(log_dir=tmp_path / "parts", advantage_fn=kill)
    run(resume=tmp_path / "parts")
    run(log_dir=tmp_path / "whole")
    assert_same_run(tmp_path / "parts", tmp_path / "whole")


def test_an_environment_that_cannot_be_saved_warns_and_starts_fresh_episodes(tmp_path):
    config = tiny(env_id="Acrobot-v1", total_steps=150)
    run(config, log_dir=tmp_path, callback=stop_at(1))
    with pytest.warns(UserWarning, match="the state of Acrobot-v1 cannot be saved: the resumed run starts fresh episodes") as caught:
        result = run(config, resume=tmp_path)
    assert len(caught) == 1
    assert result.env_steps >= 150
    assert column(result.log, "update").tolist() == [1, 2, 3]


# Checkpoints that are not ours ------------------------------------------------------------------------------------------


class RunsCode:
    """Unpickling this writes a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.write_text, (self.path, "executed")


def foreign(content, metadata=None):
    return safetensors.torch.save({"x": torch.zeros(3)}, metadata) if content is None else content


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is not a readable checkpoint"),
        (b"random bytes" * 100, "is not a readable checkpoint"),
        (foreign(None), "must be a checkpoint of ppo-edu-1, kind control; it was written by another program"),
        (foreign(None, {**METADATA, "format": "other-2"}), "written by other-2, kind control"),
        (foreign(None, {**METADATA, "kind": "lm"}), "written by ppo-edu-1, kind lm"),
        (foreign(None, {**METADATA, "config": "{"}), "its metadata is damaged"),
        (foreign(None, {**METADATA, "config": "3"}), "its metadata is damaged"),
        (foreign(None, {**METADATA, "update": "x"}), "its metadata is damaged"),
        (foreign(None, {"format": "ppo-edu-1", "kind": "control"}), "its metadata is damaged"),
    ],
)
def test_a_foreign_checkpoint_is_refused_and_left_alone(tmp_path, content, message):
    (tmp_path / CHECKPOINT_NAME).write_bytes(content)
    for read in (lambda: run(resume=tmp_path), lambda: load_policy(tmp_path)):
        with pytest.raises(ValueError, match=message):
            read()
    assert contents(tmp_path) == {CHECKPOINT_NAME: content}


def test_a_checkpoint_cut_short_is_refused_at_every_length(tmp_path):
    run(log_dir=tmp_path, callback=stop_at(1))
    path = tmp_path / CHECKPOINT_NAME
    content = path.read_bytes()
    for length in [*range(0, 64, 9), *range(64, len(content), 997), len(content) - 1]:
        path.write_bytes(content[:length])
        with pytest.raises(ValueError, match="is not a readable checkpoint"):
            load_checkpoint(path, kind="control")


@pytest.mark.parametrize("dump", [pickle.dumps, "torch"])
def test_a_malicious_pickle_is_refused_and_never_run(tmp_path, dump):
    path, trace = tmp_path / CHECKPOINT_NAME, tmp_path / "trace"
    if dump == "torch":
        torch.save({"policy": RunsCode(trace)}, path)
    else:
        path.write_bytes(dump(RunsCode(trace)))
    with pytest.raises(ValueError, match="is not a readable checkpoint"):
        load_policy(tmp_path)
    assert not trace.exists()
    pickle.loads(pickle.dumps(RunsCode(trace)))
    assert trace.exists(), "this pickle does run code where pickles are loaded"


def test_a_checkpoint_that_lacks_tensors_names_them(tmp_path):
    run(log_dir=tmp_path, callback=stop_at(1))
    path = tmp_path / CHECKPOINT_NAME
    checkpoint = load_checkpoint(path, kind="control")
    for missing in ("torch_generator", "env_steps", "collector.done", "policy.actor.0.weight"):
        kept = {name: x for name, x in checkpoint.tensors.items() if name != missing}
        save_checkpoint(path, Checkpoint(kept, "control", checkpoint.config, 1))
        with pytest.raises(ValueError, match=missing):
            run(resume=tmp_path)


def test_a_checkpoint_of_other_sizes_does_not_fit(tmp_path):
    run(log_dir=tmp_path, callback=stop_at(1))
    checkpoint = load_checkpoint(tmp_path / CHECKPOINT_NAME, kind="control")
    save_checkpoint(tmp_path / CHECKPOINT_NAME, Checkpoint(checkpoint.tensors, "control", checkpoint.config | {"hidden_sizes": [9]}, 1))
    with pytest.raises(ValueError, match=r"the checkpoint does not fit the model: .*\n.*size mismatch"):
        load_policy(tmp_path)


def test_a_checkpoint_with_options_of_another_version_is_refused(tmp_path):
    save_checkpoint(tmp_path / CHECKPOINT_NAME, Checkpoint({"x": torch.zeros(1)}, "control", {"no_such_option": 1}, 1))
    with pytest.raises(ValueError, match=r"was written with another set of options: .*no_such_option"):
        load_policy(tmp_path)


@pytest.mark.parametrize("name", ["nowhere", "", CHECKPOINT_NAME])
def test_a_missing_checkpoint_is_one_clear_error(tmp_path, name):
    for read in (lambda: load_policy(tmp_path / name), lambda: run(resume=tmp_path / name)):
        with pytest.raises(ValueError, match="no checkpoint at"):
            read()
    assert contents(tmp_path) == {}


def test_load_into_names_what_does_not_fit():
    with pytest.raises(ValueError, match="the checkpoint does not fit the model"):
        load_into(torch.nn.Linear(2, 2), {"policy.weight": torch.zeros(2, 2)}, "policy.")


# Writing atomically -----------------------------------------------------------------------------------------------------


def fail_with(error):
    def fail(*args, **kwargs):
        raise error

    return fail


@pytest.mark.parametrize("function", ["fsync", "replace"])
@pytest.mark.parametrize("old", [None, b"old"])
def test_a_failure_while_writing_leaves_the_old_content_and_no_part(tmp_path, monkeypatch, function, old):
    path = tmp_path / "file"
    if old is not None:
        path.write_bytes(old)
    monkeypatch.setattr(runs.os, function, fail_with(OSError(errno.ENOSPC, "No space left on device")))
    with pytest.raises(OSError, match=r"cannot write .*file \(No space left on device\); what was there before is intact") as caught:
        write_atomically(path, b"new")
    assert caught.value.errno == errno.ENOSPC
    assert contents(tmp_path) == ({} if old is None else {"file": b"old"})


def test_a_ctrl_c_while_writing_leaves_the_old_content_and_no_part(tmp_path, monkeypatch):
    (tmp_path / "file").write_bytes(b"old")
    monkeypatch.setattr(runs.os, "fsync", fail_with(KeyboardInterrupt()))
    with pytest.raises(KeyboardInterrupt):
        write_atomically(tmp_path / "file", b"new")
    assert contents(tmp_path) == {"file": b"old"}


def test_the_content_is_on_disk_before_the_name_points_to_it(tmp_path, monkeypatch):
    order = []
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(runs.os, "fsync", lambda descriptor: (order.append(os.fstat(descriptor).st_size), fsync(descriptor)))
    monkeypatch.setattr(runs.os, "replace", lambda a, b: (order.append("replace"), replace(a, b)))
    write_atomically(tmp_path / "file", b"12345")
    assert order == [5, "replace"]
    assert contents(tmp_path) == {"file": b"12345"}


def test_the_log_is_on_disk_before_its_checkpoint(tmp_path, monkeypatch):
    """After a power failure the log must not be behind the checkpoint that says how many rows it has."""
    synced, fsync = [], os.fsync
    monkeypatch.setattr(runs.os, "fsync", lambda descriptor: (synced.append(os.fstat(descriptor).st_ino), fsync(descriptor)))
    run(log_dir=tmp_path, callback=stop_at(3))
    log = (tmp_path / LOG_NAME).stat().st_ino
    assert [inode == log for inode in synced] == [True, False] * 4  # before the first update, and after each


def test_a_write_below_a_regular_file_says_which_path(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match=r"cannot write .*file/below \(Not a directory\)"):
        write_atomically(tmp_path / "file" / "below", b"")


def test_a_full_disk_during_training_leaves_the_last_checkpoint_to_resume_from(tmp_path, monkeypatch):
    real = os.replace

    def full_from_3(state):
        if state.update == 3:
            monkeypatch.setattr(runs.os, "replace", fail_with(OSError(errno.ENOSPC, "No space left on device")))

    with pytest.raises(OSError, match="No space left on device"):
        run(log_dir=tmp_path / "parts", callback=full_from_3)
    monkeypatch.setattr(runs.os, "replace", real)
    assert load_checkpoint(tmp_path / "parts" / CHECKPOINT_NAME, kind="control").update == 2
    run(resume=tmp_path / "parts")
    run(log_dir=tmp_path / "whole")
    assert_same_run(tmp_path / "parts", tmp_path / "whole")


# States as tensors ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("draws", [0, 1, 2, 7])
def test_a_pcg64_generator_continues_after_any_number_of_32_bit_draws(draws):
    """An odd number of 32-bit draws leaves half of a 64-bit word waiting in the generator."""
    generator = np.random.default_rng(5)
    generator.random()
    for _ in range(draws):
        generator.integers(2**31, dtype=np.uint32)
    words = generator_tensor(generator)
    assert words.dtype == torch.int64
    other = np.random.default_rng(0)
    restore_generator(other, words)
    assert other.bit_generator.state == generator.bit_generator.state
    assert np.array_equal(other.integers(2**31, size=9, dtype=np.uint32), generator.integers(2**31, size=9, dtype=np.uint32))
    assert np.array_equal(other.random(5), generator.random(5))


@pytest.mark.parametrize("seed", range(5))
def test_all_128_bits_of_a_generator_survive_the_file(tmp_path, seed):
    generator = np.random.default_rng(seed)
    save_checkpoint(tmp_path / "c", Checkpoint({"g": generator_tensor(generator)}, "k", {}, 0))
    other = np.random.default_rng(seed + 1)
    restore_generator(other, load_checkpoint(tmp_path / "c", kind="k").tensors["g"])
    assert other.bit_generator.state == generator.bit_generator.state


def test_another_kind_of_generator_is_refused():
    with pytest.raises(ValueError, match="generator must be a PCG64, got MT19937"):
        generator_tensor(np.random.Generator(np.random.MT19937(0)))


@pytest.mark.parametrize("fused", [True, False])
def test_an_optimizer_continues_where_it_was(fused):
    def step(model, optimizer):
        optimizer.zero_grad()
        model(torch.ones(4, 3)).square().sum().backward()
        optimizer.step()

    def make():
        torch.manual_seed(0)
        model = torch.nn.Linear(3, 2)
        return model, torch.optim.Adam(model.parameters(), lr=0.1, fused=fused)

    model, optimizer = make()
    for _ in range(3):
        step(model, optimizer)
    other, restored = make()
    other.load_state_dict(model.state_dict())
    restore_optimizer(restored, {name: x.clone() for name, x in optimizer_tensors(optimizer).items()})
    for pair in ((model, optimizer), (other, restored)):
        step(*pair)
    assert same_weights(model, other)
    assert restored.param_groups[0]["lr"] == 0.1


def test_checkpoints_keep_every_dtype_and_shape(tmp_path):
    tensors = {str(dtype): torch.ones(2, 3).to(dtype) for dtype in (torch.float32, torch.float64, torch.int64, torch.bool, torch.uint8)}
    tensors |= {"scalar": torch.tensor(3), "strided": torch.arange(6.0).view(2, 3).T, "empty": torch.empty(0)}
    save_checkpoint(tmp_path / "c", Checkpoint(tensors, "k", {"a": [1, None, "x"]}, 12))
    back = load_checkpoint(tmp_path / "c", kind="k")
    assert same_tensors(back.tensors, tensors)
    assert all(back.tensors[name].dtype == x.dtype for name, x in tensors.items())
    assert (back.config, back.update) == ({"a": [1, None, "x"]}, 12)


def test_seeded_gives_the_callers_random_state_back():
    state = torch.get_rng_state()
    with seeded(5):
        a = torch.rand(3)
    assert torch.equal(torch.get_rng_state(), state)
    with seeded(5):
        assert torch.equal(torch.rand(3), a)


def test_seeding_does_not_start_cuda(monkeypatch):
    """On a machine with a GPU that takes seconds and memory which training CartPole has no use for."""

    def starts_cuda(*args):
        raise AssertionError("CUDA was touched")

    for name in ("device_count", "get_rng_state", "set_rng_state"):
        monkeypatch.setattr(torch.cuda, name, starts_cuda)
    with seeded(0):
        torch.rand(1)


# Ctrl-C -----------------------------------------------------------------------------------------------------------------


def press_ctrl_c_at(update, times=1):
    def press(state):
        if state.update == update:
            for _ in range(times):
                signal.raise_signal(signal.SIGINT)

    return press


def test_ctrl_c_ends_the_update_writes_a_checkpoint_and_is_raised_again(tmp_path):
    handler = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        run(log_dir=tmp_path / "parts", callback=press_ctrl_c_at(3), checkpoint_every=100)
    assert signal.getsignal(signal.SIGINT) is handler
    assert load_checkpoint(tmp_path / "parts" / CHECKPOINT_NAME, kind="control").update == 3
    run(resume=tmp_path / "parts")
    run(log_dir=tmp_path / "whole")
    assert_same_run(tmp_path / "parts", tmp_path / "whole")


def test_a_second_ctrl_c_interrupts_at_once_and_the_checkpoint_before_stands(tmp_path):
    handler = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        run(log_dir=tmp_path / "parts", callback=press_ctrl_c_at(3, times=2))
    assert signal.getsignal(signal.SIGINT) is handler
    assert load_checkpoint(tmp_path / "parts" / CHECKPOINT_NAME, kind="control").update == 2
    run(resume=tmp_path / "parts")
    run(log_dir=tmp_path / "whole")
    assert_same_run(tmp_path / "parts", tmp_path / "whole")


def test_training_runs_outside_the_main_thread():
    results = []
    thread = threading.Thread(target=lambda: results.append(run()))
    thread.start()
    thread.join()
    assert same_weights(results[0].policy, run().policy)


def test_deferred_interrupt_tells_whether_one_came():
    with deferred_interrupt() as interrupted:
        assert not interrupted()
        signal.raise_signal(signal.SIGINT)
        assert interrupted()
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)


# Real kills -------------------------------------------------------------------------------------------------------------


def test_killed_at_many_moments_and_resumed_a_run_ends_bit_for_bit_as_the_whole_one(tmp_path):
    script = Path(__file__).parent / "control" / "kill_and_resume.py"
    process = subprocess.run([sys.executable, script, tmp_path], capture_output=True, text=True, timeout=300, check=False)
    assert process.returncode == 0, process.stderr
    assert int(process.stdout) >= 10, "most kills must have met a living process"
    assert_same_run(tmp_path / "killed", tmp_path / "whole")
    assert sorted(contents(tmp_path / "killed")) == sorted([CHECKPOINT_NAME, LOG_NAME])
    policy, config = load_policy(tmp_path / "killed")
    assert evaluate(policy, config.env_id, episodes=10).mean() > 30  # it did learn something
