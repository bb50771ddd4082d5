"""The README's numbers are those of the committed measurement, and the watch asks for two passes in a row."""

from benchmarks.cartpole_vs_peers import CHECK_EVERY, NAME, Outcome, Watch, readme_table, summarise
from benchmarks.report import read_block
from ppo_edu.teach import load_result


def test_readme_shows_the_committed_result():
    assert read_block(NAME) == readme_table(load_result(NAME)).strip()


def test_summary_is_that_of_the_committed_runs():
    result = load_result(NAME)
    outcomes = {name: [Outcome(**run) for run in runs] for name, runs in result["runs"].items()}
    assert summarise(outcomes) == result["summary"]


def test_watch_wants_two_passes_in_a_row(monkeypatch):
    import numpy as np

    means = iter([480.0, 100.0, 480.0, 480.0])
    monkeypatch.setattr("benchmarks.cartpole_vs_peers.evaluate", lambda *args, **kwargs: np.array([next(means)]))
    watch = Watch(seed=0)
    assert not watch.solved(CHECK_EVERY - 1, None)  # not due yet: nothing is evaluated
    assert [watch.solved(k * CHECK_EVERY, None) for k in (1, 2, 3, 4)] == [False, False, False, True]
