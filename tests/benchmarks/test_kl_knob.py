"""The benchmark of the price on KL: what it notes per update, and that the stored result is the one chapter 13 reads."""

from types import SimpleNamespace

import pytest

from benchmarks import kl_knob
from ppo_edu.lm import Sample, make_reviews
from ppo_edu.teach import load_result


def test_the_watch_notes_true_score_and_variety_of_the_batch():
    examples = make_reviews(8, seed=0)
    samples = [Sample(example.prompt, example.response, score=1.0, kl=0.5) for example in examples]
    watch = kl_knob.Watch()
    watch(SimpleNamespace(samples=samples, log=[{"reward": 1.0, "kl": 0.5}]))
    assert watch.curves["reward"] == [1.0]
    assert watch.curves["kl"] == [0.5]
    assert -1.0 <= watch.curves["gold"][0] <= 1.0
    assert 0.0 < watch.curves["distinct_2"][0] <= 1.0


def test_an_opening_is_three_words():
    assert kl_knob.opening(" I love the lid.") == "I love the"


@pytest.fixture(scope="module")
def stored():
    return load_result(kl_knob.NAME)


def test_the_stored_result_says_how_it_was_made(stored):
    assert stored["command"].startswith("python -m benchmarks.kl_knob")
    assert {"date", "processor", "versions"} <= stored["metadata"].keys()


def test_a_lower_price_buys_more_kl(stored):
    for seed in stored["seeds"]:
        runs = sorted(seed["runs"], key=lambda run: run["kl_coef"])
        assert [run["kl"] for run in runs] == sorted((run["kl"] for run in runs), reverse=True)
        assert all(len(run["curves"]["kl"]) == len(runs[0]["curves"]["kl"]) for run in runs)
