"""The debugging lab: each sick run shows its own signs and no other's, the healthy one none, and a guess is answered truly."""

import math
import re

import matplotlib as mpl
import numpy as np
import pytest
import torch
from matplotlib.patches import FancyBboxPatch

from ppo_edu.control import PPOConfig, probe
from ppo_edu.teach import lab
from ppo_edu.teach.pitfalls import PITFALLS, planted
from ppo_edu.teach.pitfalls.planting import right_function

mpl.use("Agg")

import matplotlib.pyplot as plt

PLANTED = dict(enumerate(lab._PLANTED, start=1))
each_run = pytest.mark.parametrize("number", PLANTED)


def suspects_of(log):
    return [name for name, suspect in lab.SUSPECTS.items() if suspect.shown_by(log)]


def check_signature(number, seed):
    log = lab.sick_run(number, seed=seed)
    question = lab.follow_chart(log)
    if number == 0:
        assert suspects_of(log) == []
        assert question is None
    else:
        assert suspects_of(log) == [PLANTED[number]]
        assert question.suspects == (PLANTED[number],)


# The runs ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [0, *PLANTED])
def test_a_run_shows_the_signs_of_its_own_mistake_and_no_others_and_the_chart_leads_to_it(number):
    check_signature(number, seed=0)


@pytest.mark.verify
@pytest.mark.parametrize("seed", range(1, 6))
@pytest.mark.parametrize("number", [0, *PLANTED])
def test_over_seeds_a_run_shows_the_signs_of_its_own_mistake_and_no_others(number, seed):
    check_signature(number, seed)


def test_there_are_ten_different_mistakes_of_the_catalogue_all_of_them_suspects():
    assert len(PLANTED) == 10
    assert {*PLANTED.values()} == {*lab.SUSPECTS}
    assert [*lab.SUSPECTS] == sorted(lab.SUSPECTS), "the order gives nothing away"
    assert all(name == suspect.name and name in PITFALLS for name, suspect in lab.SUSPECTS.items())
    assert sorted(name for question in lab.CHART for name in question.suspects) == sorted(lab.SUSPECTS)


@pytest.mark.parametrize("number", [0, *PLANTED])
def test_a_run_is_a_training_with_its_mistake_in_place_and_leaves_no_trace(number, monkeypatch):
    """With a `train` that trains nothing and looks at what it would train with."""
    right = {name: right_function(PITFALLS[name]) for name in lab.SUSPECTS}
    seen = {}

    def spy(**arguments):
        seen.update(arguments, wrong=[name for name, fn in right.items() if right_function(PITFALLS[name]) is not fn])
        return type("Result", (), {"log": [{"update": 1.0}]})

    monkeypatch.setattr(lab, "train", spy)
    monkeypatch.setattr(lab, "_trained", lab.cache(lab._trained.__wrapped__))  # its rows must not stay behind for other tests
    assert lab.sick_run(number, seed=7) == [{"update": 1.0}]
    lab.sick_run(number, seed=7)[0]["update"] = 2.0
    assert lab.sick_run(number, seed=7) == [{"update": 1.0}], "a reader may write into the rows"
    replaced = PITFALLS[PLANTED[number]].replaces if number else None  # by two or three of the lab's mistakes
    assert seen == {"seed": 7, "progress": False, "wrong": [name for name in lab.SUSPECTS if PITFALLS[name].replaces == replaced]}
    assert all(right_function(PITFALLS[name]) is fn for name, fn in right.items())


# The answers ------------------------------------------------------------------------------------------------------------


@each_run
def test_only_the_planted_mistake_is_called_right(number):
    answers = {guess: lab.diagnose(number, guess) for guess in lab.SUSPECTS}
    assert [guess for guess, answer in answers.items() if answer] == [PLANTED[number]]
    right = answers.pop(PLANTED[number])
    entry = PITFALLS[PLANTED[number]]
    assert right.text.startswith(f"Run {number} is {entry.name}. Right!")
    assert entry.mistake in right.text
    assert entry.exposed_by in right.text
    assert right.text.count("Here it is") == len(lab.SUSPECTS[entry.name].signs)
    for guess, answer in answers.items():
        assert answer.text.startswith(f"Run {number} is not {guess}")
        assert answer.text.count("Here it is") >= 1, "what is missing is shown"
        assert lab.SUSPECTS[guess].why in answer.text
        assert entry.name not in answer.text, "the answer is not given away"
        assert entry.mistake not in answer.text


@each_run
def test_a_hint_names_nothing(number):
    hint = lab.diagnose(number)
    assert not hint
    assert hint.text == f"A hint for run {number}. {lab.SUSPECTS[PLANTED[number]].hint}"
    assert not any(name in hint.text for name in lab.SUSPECTS)


def test_a_missing_sign_is_shown_with_what_was_found():
    log = lab.sick_run(1)
    sign = lab.SUSPECTS["value-sign-reversed"].signs[0]
    answer = repr(lab.diagnose(1, "value-sign-reversed"))
    assert f"at least 100000. Here it is {np.median([row['value_loss'] for row in log[-round(0.2 * len(log)) :]]):.2g}." in " ".join(
        answer.split()
    )
    assert str(sign) == "value loss, median over the last fifth of the run: at least 100000"


def test_an_answer_prints_as_lines_that_fit_a_page():
    for number, guess in ((1, None), (1, "ratio-detached"), (2, "ratio-detached")):
        assert max(map(len, repr(lab.diagnose(number, guess)).splitlines())) <= 75


@pytest.mark.parametrize("run", [0, 11, -1, True, 1.0, "1", None])
def test_a_run_that_is_none_is_refused(run):
    with pytest.raises(ValueError, match=r"^the number of a run must be an int from 1 to 10, got " + re.escape(repr(run))):
        lab.diagnose(run, "ratio-detached")
    if run != 0:
        with pytest.raises(ValueError, match=r"^the number of a run must be an int from 0 to 10, got"):
            lab.sick_run(run)


@pytest.mark.parametrize("guess", ["healthy", "", "reward-minus-value", 3, ["ratio-detached"]])
def test_an_unknown_guess_is_answered_with_the_list_of_suspects(guess):
    with pytest.raises(ValueError, match=r"^guess must be one of \[.*\], got " + re.escape(repr(guess))) as error:
        lab.diagnose(1, guess)
    assert all(name in str(error.value) for name in lab.SUSPECTS)


@pytest.mark.parametrize("seed", [-1, 0.0, False, [0]])
def test_a_bad_seed_is_named_also_where_its_equal_was_trained_before(seed):
    lab.sick_run(1, seed=0)
    with pytest.raises(ValueError, match="seed must be an int"):
        lab.sick_run(1, seed=seed)
    with pytest.raises(ValueError, match="seed must be an int"):
        lab.diagnose(1, "ratio-detached", seed=seed)


@pytest.mark.verify
@pytest.mark.parametrize("name", lab.SUSPECTS)
@pytest.mark.parametrize("seed", range(3))
def test_what_the_probes_suspect_is_what_the_lab_says(name, seed):
    with planted(PITFALLS[name]):
        assert probe(seed=seed).suspect in (lab.SUSPECTS[name].probed or (None,))


# What the explanations claim ----------------------------------------------------------------------------------------------


def test_a_softmax_taken_twice_has_the_floor_that_the_lab_names():
    logits = torch.tensor([[0.0, 0.0], [5.0, -5.0], [50.0, -50.0]], dtype=torch.float64)
    p = torch.softmax(torch.softmax(logits, -1), -1)
    entropy = -(p * p.log()).sum(-1)
    assert p.max().item() == pytest.approx(1 / (1 + math.exp(-1)), abs=1e-6)
    assert entropy.min().item() == pytest.approx(0.582, abs=5e-4)
    assert "0.73" in lab.SUSPECTS["probabilities-for-logits"].why
    assert "0.582" in lab.SUSPECTS["probabilities-for-logits"].why


def test_the_default_run_is_the_one_that_the_signs_were_measured_on():
    config = PPOConfig()
    assert (config.env_id, config.total_steps, config.learning_rate, config.clip_range) == ("CartPole-v1", 40_000, 1e-2, 0.2)
    assert (config.num_envs, config.num_steps, config.epochs, config.minibatch_size) == (32, 32, 8, 512)


# Signs ------------------------------------------------------------------------------------------------------------------


def log_of(values, name="entropy"):
    return [{"env_steps": 1000.0 * i, name: float(x)} for i, x in enumerate(values)]


@pytest.mark.parametrize(
    ("name", "expected"),
    [("early", range(2)), ("middle", range(4, 6)), ("late", range(8, 10)), ("second half", range(5, 10)), ("whole", range(10))],
)
def test_a_sign_is_the_median_over_its_stretch(name, expected):
    log = log_of(range(10))
    assert lab.stretch(log, "entropy", name).tolist() == [*expected]
    assert lab.Sign("entropy", name).found(log) == np.mean(expected)


def test_a_sign_leaves_out_what_is_nan_and_holds_at_its_bounds():
    log = log_of([0.25, math.nan, 0.75, 0.5, math.nan])
    for bounds, shown in [((0.5, 0.5), True), ((0.51, 1.0), False), ((0.0, 0.49), False)]:
        assert lab.Sign("entropy", "whole", *bounds).shown_by(log) is shown
    assert lab.Sign("entropy", "whole", quantile=0.75).found(log) == 0.625


def test_a_suspect_must_show_all_its_signs():
    low, high = (lab.Sign("entropy", when, low=0.5) for when in ("early", "late"))
    suspect = lab.Suspect("x", (low, high), "", "", None)
    assert suspect.shown_by(log_of([1.0] * 10))
    assert not suspect.shown_by(log_of([1.0] * 5 + [0.0] * 5))
    assert not suspect.shown_by(log_of([0.0] * 5 + [1.0] * 5))


@pytest.mark.parametrize(
    ("sign", "text"),
    [
        (lab.Sign("approx_kl", "whole", high=1e-9), "approximate KL, median over the whole of the run: at most 1e-09"),
        (lab.Sign("entropy", "second half", low=2, quantile=0.9), "entropy, 90th percentile over the second half of the run: at least 2"),
        (lab.Sign("entropy", "late", low=0.58, high=0.63), "entropy, median over the last fifth of the run: from 0.58 to 0.63"),
    ],
)
def test_a_sign_reads_as_a_sentence(sign, text):
    assert str(sign) == text


def test_what_cannot_be_measured_is_said():
    with pytest.raises(ValueError, match=r"^name must be one of \['early', .*\], got 'end'"):
        lab.stretch(log_of([1.0]), "entropy", "end")
    with pytest.raises(ValueError, match=r"^quantity must be a column of the log .*, got 'kl'"):
        lab.stretch(log_of([1.0] * 10), "kl", "late")


# Figures ----------------------------------------------------------------------------------------------------------------


@pytest.fixture
def _style():
    with mpl.rc_context():
        lab.plt.rcParams["figure.constrained_layout.use"] = True
        yield
    plt.close("all")


@pytest.mark.usefixtures("_style")
def test_a_run_is_drawn_over_the_band_of_the_healthy_ones():
    rng = np.random.default_rng(0)
    steps = np.arange(1, 11) * 4000.0
    logs = [[{"env_steps": s, **{name: rng.random() for name in lab.QUANTITIES}} for s in steps] for _ in range(3)]
    logs[0][4]["episode_return"] = math.nan
    figure = lab.draw_run(logs[0], logs[1:], "Run 3")
    assert [axes.get_title(loc="left") or axes.get_title() for axes in figure.axes] == [*lab.QUANTITIES.values()]
    for axes, name in zip(figure.axes, lab.QUANTITIES, strict=True):
        (line,) = axes.lines
        known = [row for row in logs[0] if not math.isnan(row[name])]
        np.testing.assert_array_equal(line.get_xydata(), [[row["env_steps"], row[name]] for row in known])
        band = axes.collections[0].get_paths()[0].vertices
        grid = np.linspace(steps[0], steps[-1], 60)
        both = [np.interp(grid, steps, [row[name] for row in log]) for log in logs[1:]]
        assert band[:, 1].min() == pytest.approx(np.min(both))
        assert band[:, 1].max() == pytest.approx(np.max(both))
    figure.canvas.draw()


@pytest.mark.usefixtures("_style")
def test_the_chart_shows_every_question_in_order_and_its_texts_fit_their_boxes():
    figure = lab.draw_chart()
    (axes,) = figure.axes
    renderer = figure.canvas.get_renderer()
    boxes = [patch for patch in axes.patches if isinstance(patch, FancyBboxPatch)]
    shown = [" ".join(text.get_text().split()) for text in axes.texts]
    assert [x for x in shown if x in {q.text for q in lab.CHART}] == [q.text for q in lab.CHART]
    assert len(boxes) == 2 * len(lab.CHART)
    for box, words in zip(boxes, [w for q in lab.CHART for w in (q.text, q.look)], strict=True):
        text = next(t for t in axes.texts if t.get_text().replace("\n", " ").replace("- ", "-") == words)
        outer, inner = box.get_window_extent(renderer), text.get_window_extent(renderer)
        assert outer.x0 <= inner.x0
        assert inner.x1 <= outer.x1
        assert outer.y0 <= inner.y0
        assert inner.y1 <= outer.y1
