"""The loop of supervised training: what each epoch visits, the schedule, reproducibility, kills and resumes, refusals."""

import math
import signal
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch
from ppo_helpers import contents, same, weights
from safetensors.torch import load_file
from torch import nn

from ppo_edu.lm import SupervisedConfig
from ppo_edu.lm.supervised import fit, scheduled
from ppo_edu.runs import CHECKPOINT_NAME, LOG_NAME, column, load_checkpoint, read_log, seeded

N = 10
CONFIG = SupervisedConfig(epochs=3, batch_size=4, learning_rate=0.05)  # 2 batches of 5, 6 steps


class Line(nn.Module):
    """A linear model with dropout, and the examples it sees: y = 2 x1 - x2. `visited` has the index of each batch."""

    def __init__(self, seed: int = 0, n: int = N) -> None:
        super().__init__()
        with seeded(seed):
            self.linear = nn.Linear(2, 1)
        self.visited: list[list[int]] = []
        self.x = torch.randn(n, 2, generator=torch.Generator().manual_seed(5))
        self.y = self.x @ torch.tensor([2.0, -1.0])

    def loss(self, index):
        self.visited.append(index.tolist())
        hidden = nn.functional.dropout(self.x[index], 0.2, self.training)
        return (self.linear(hidden).squeeze(1) - self.y[index]).square().mean()


def run(model=None, config=CONFIG, *, n=N, loss=None, identity=None, **options):
    model = model or Line(n=n)
    defaults = {"seed": 0, "callback": None, "log_dir": None, "resume": None, "progress": False, "tensorboard": False}
    options = defaults | {"checkpoint_every": 100} | options
    return fit("test", model, loss or model.loss, n, config, identity or asdict(config), **options)


def stop_at(update):
    return lambda state: state.update == update


# Examples and learning rate -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch_size", [1, 2, 3, 4, 7, 10, 16, 100])
def test_each_epoch_visits_each_example_once_in_another_order(batch_size):
    model = Line()
    state = run(model, SupervisedConfig(epochs=3, batch_size=batch_size))
    per_epoch = max(1, round(N / batch_size))
    assert state.update == len(model.visited) == 3 * per_epoch
    epochs = [[i for batch in model.visited[k : k + per_epoch] for i in batch] for k in range(0, 3 * per_epoch, per_epoch)]
    assert all(sorted(epoch) == list(range(N)) for epoch in epochs)
    assert len(set(map(tuple, epochs))) == 3
    sizes = [len(batch) for batch in model.visited]
    assert max(sizes) - min(sizes) <= 1, "split evenly: no last batch of one example that counts as much as a full one"


@pytest.mark.parametrize("steps", [1, 2, 3, 20, 100, 997])
def test_the_learning_rate_rises_over_the_first_twentieth_and_falls_linearly_to_nearly_0(steps):
    factors = np.array([scheduled(step, steps) for step in range(steps)])
    peak = max(1, round(0.05 * steps))
    assert factors.max() == factors[peak - 1] == 1.0
    assert factors.min() > 0
    np.testing.assert_allclose(factors[:peak], np.arange(1, peak + 1) / peak)
    np.testing.assert_allclose(factors[peak:], np.linspace(1, 0, steps - peak, endpoint=False))


def test_the_scheduled_rate_is_the_one_used_and_logged():
    """AdamW's first step moves every weight by the learning rate, whatever the gradient's size."""
    model = Line()
    before, moved = weights(model), []
    config = SupervisedConfig(epochs=20, batch_size=5, learning_rate=0.01, weight_decay=0.0)
    log = run(model, config, callback=lambda s: moved.append(weights(model)) or s.update == 30).log
    np.testing.assert_allclose((moved[0]["linear.weight"] - before["linear.weight"]).abs(), 0.005, rtol=1e-3)
    np.testing.assert_allclose(column(log, "learning_rate"), [0.01 * scheduled(step, 40) for step in range(30)])


def test_what_training_minimises_falls():
    losses = column(run(config=SupervisedConfig(epochs=100, batch_size=5, learning_rate=0.1)).log, "loss")
    assert losses[-10:].mean() < 0.3 * losses[:4].mean()


def test_max_grad_norm_and_weight_decay_have_their_effect():
    def after(**changes):
        model = Line()
        log = run(model, SupervisedConfig(epochs=1, batch_size=10, learning_rate=0.1, **changes)).log
        return model, log[0]["grad_norm"]

    for bound in (0.01, None):
        model, logged = after(max_grad_norm=bound)
        norm = math.sqrt(sum(float(p.grad.square().sum()) for p in model.parameters()))
        assert norm == pytest.approx(bound or logged, rel=1e-4)
        assert logged > 0.1, "the log shows the norm before"
    start, (free, _), (decayed, _) = Line(), after(weight_decay=0.0), after(weight_decay=0.5)
    torch.testing.assert_close(free.linear.weight - decayed.linear.weight, 0.1 * 0.5 * start.linear.weight)


# Reproducibility ----------------------------------------------------------------------------------------------------------


def test_the_same_seed_gives_the_same_weights_bit_for_bit_and_another_seed_others():
    torch.manual_seed(1)
    first = run(seed=3)
    torch.manual_seed(2)
    second = run(seed=3)
    assert same(weights(first.model), weights(second.model))
    other = run(seed=4)
    assert not same(weights(first.model), weights(other.model))
    assert first.model.visited != other.model.visited


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("fails", [True, False])
def test_random_state_and_training_mode_are_given_back_also_after_a_failure(training, fails):
    model, seen = Line().train(training), []
    state = torch.get_rng_state()

    def look(state):
        seen.append(model.training)
        return 1 / 0 if fails else False

    try:
        run(model, callback=look)
    except ZeroDivisionError:
        assert fails
    assert torch.equal(torch.get_rng_state(), state)
    assert model.training is training
    assert seen[0] is True


def test_one_row_per_step_and_the_time_of_callbacks_is_not_counted():
    started = time.perf_counter()
    state = run(callback=lambda state: time.sleep(0.05))
    assert state.seconds < time.perf_counter() - started - 0.28
    assert column(state.log, "update").tolist() == [1, 2, 3, 4, 5, 6]
    assert (np.diff(column(state.log, "seconds")) > 0).all()
    for row in state.log:
        assert row.keys() == {"update", "seconds", "loss", "grad_norm", "learning_rate"}
        assert all(type(x) in (int, float) and math.isfinite(x) for x in row.values())


# Stopping and resuming ----------------------------------------------------------------------------------------------------


def assert_same_run(a: Path, b: Path) -> None:
    one, two = (load_checkpoint(x / CHECKPOINT_NAME, kind="test") for x in (a, b))
    assert one.update == two.update
    assert same(*({name: x for name, x in y.tensors.items() if name != "seconds"} for y in (one, two)))
    logs = [[{k: x for k, x in row.items() if k != "seconds"} for row in read_log(x / LOG_NAME)] for x in (a, b)]
    assert logs[0] == logs[1]


def test_a_callback_that_returns_true_stops_the_training_and_any_other_value_does_not():
    assert run(callback=stop_at(3)).update == 3
    assert run(callback=lambda state: None).update == 6


@pytest.mark.parametrize("update", [1, 2, 5])
def test_a_stopped_run_continues_bit_for_bit_within_an_epoch_too(tmp_path, update):
    whole = run(log_dir=tmp_path / "whole", seed=3)
    run(log_dir=tmp_path / "parts", seed=3, callback=stop_at(update))
    torch.manual_seed(99)
    resumed = run(Line(seed=9), resume=tmp_path / "parts", seed=77)  # all state comes from the checkpoint, the seed too
    assert same(weights(resumed.model), weights(whole.model))
    assert_same_run(tmp_path / "parts", tmp_path / "whole")
    assert resumed.model.visited == whole.model.visited[update:]


def test_a_run_that_its_callback_stopped_stays_where_it_is_under_the_same_callback(tmp_path):
    """So a pipeline called again does not train beyond the point it chose."""
    first = run(log_dir=tmp_path, callback=stop_at(4))
    again = run(Line(seed=9), resume=tmp_path, callback=stop_at(4))
    assert again.update == 4
    assert again.model.visited == []
    assert same(weights(again.model), weights(first.model))


def test_a_finished_run_resumes_to_itself(tmp_path):
    whole = run(log_dir=tmp_path)
    before = contents(tmp_path)
    again = run(Line(seed=9), resume=tmp_path)
    assert same(weights(again.model), weights(whole.model))
    assert again.log == whole.log
    assert again.seconds == whole.seconds
    assert contents(tmp_path) == before


def test_checkpoints_come_before_the_first_step_every_so_many_and_at_the_end(tmp_path):
    def saved(state=None):
        return load_checkpoint(tmp_path / CHECKPOINT_NAME, kind="test").update

    seen = []
    run(log_dir=tmp_path, checkpoint_every=4, callback=lambda state: seen.append(saved()))
    assert seen == [0, 0, 0, 0, 4, 4]
    assert saved() == 6


def test_killed_at_any_moment_and_resumed_a_run_ends_bit_for_bit_as_the_whole_one(tmp_path):
    script = Path(__file__).with_name("kill_and_resume_supervised.py")
    process = subprocess.run([sys.executable, script, tmp_path], capture_output=True, text=True, timeout=300, check=False)
    assert process.returncode == 0, process.stderr
    for kind in ("sft", "reward-model"):
        whole = load_file(tmp_path / kind / "whole" / "weights.safetensors")
        directories = sorted((tmp_path / kind).iterdir())
        assert len(directories) == 5
        for directory in directories:
            assert same(load_file(directory / "weights.safetensors"), whole), directory
            assert column(read_log(directory / LOG_NAME), "update").tolist() == [1, 2, 3, 4, 5, 6]


def test_ctrl_c_ends_the_step_and_writes_a_checkpoint(tmp_path):
    def press(state):
        if state.update == 3:
            signal.raise_signal(signal.SIGINT)

    handler = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        run(log_dir=tmp_path / "parts", callback=press)
    assert signal.getsignal(signal.SIGINT) is handler
    assert load_checkpoint(tmp_path / "parts" / CHECKPOINT_NAME, kind="test").update == 3
    run(resume=tmp_path / "parts")
    run(log_dir=tmp_path / "whole")
    assert_same_run(tmp_path / "parts", tmp_path / "whole")


# Refusals -----------------------------------------------------------------------------------------------------------------


def test_what_differs_from_the_checkpoint_is_named_and_the_run_stays(tmp_path):
    run(log_dir=tmp_path, callback=stop_at(2))
    before = contents(tmp_path)
    other = SupervisedConfig(epochs=3, batch_size=5, learning_rate=0.05)
    with pytest.raises(ValueError, match=r"these differ: batch_size \(checkpoint 4, given 5\)$"):
        run(resume=tmp_path, config=other)
    with pytest.raises(ValueError, match=r"these differ: examples \(checkpoint None, given 'x'\)$"):
        run(resume=tmp_path, identity=asdict(CONFIG) | {"examples": "x"})
    with pytest.raises(ValueError, match="log_dir must not hold a run already"):
        run(log_dir=tmp_path)
    assert contents(tmp_path) == before


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_is_one_clear_error_and_the_last_checkpoint_stays(tmp_path, bad):
    model = Line()

    def loss(index):
        value = model.loss(index)
        return value * bad if len(model.visited) == 4 else value

    with pytest.raises(FloatingPointError, match=r"training diverged at step 4: loss is (nan|inf)"):
        run(model, loss=loss, log_dir=tmp_path / "parts", checkpoint_every=2)
    assert len(read_log(tmp_path / "parts" / LOG_NAME)) == 3
    run(Line(seed=9), resume=tmp_path / "parts", checkpoint_every=2)
    run(log_dir=tmp_path / "whole")
    assert_same_run(tmp_path / "parts", tmp_path / "whole")


@pytest.mark.parametrize(
    "changes",
    [{"epochs": 0}, {"batch_size": 0}, {"batch_size": 2.5}, {"learning_rate": -1.0}, {"weight_decay": math.nan}, {"max_grad_norm": 0.0}],
)
def test_settings_out_of_range_are_named(changes):
    with pytest.raises(ValueError, match=next(iter(changes))):
        SupervisedConfig(**changes)


def test_checkpoint_every_must_be_a_count():
    with pytest.raises(ValueError, match="checkpoint_every"):
        run(checkpoint_every=0)
