"""The numbers of the interactive figures against values worked out by hand."""

import math

import matplotlib.pyplot as plt
import pytest
import torch

from ppo_edu.teach import explore

approx = pytest.approx


# The clipped objective -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("advantage", "ratio", "objective", "slope", "case"),
    [
        (2.0, 0.5, 1.0, 2.0, 1),
        (2.0, 1.1, 2.2, 2.0, 2),
        (2.0, 1.5, 2.4, 0.0, 3),
        (-2.0, 0.5, -1.6, 0.0, 4),
        (-2.0, 1.1, -2.2, -2.0, 5),
        (-2.0, 1.5, -3.0, -2.0, 6),
        (0.0, 1.5, 0.0, 0.0, 0),
    ],
)
def test_clip_in_its_six_cases(advantage, ratio, objective, slope, case):
    shown = explore.clip(0.2, advantage, ratio)
    assert shown["objective"] == approx(objective)
    assert shown["slope"] == approx(slope)
    assert shown["gradient"] == approx(slope * ratio)  # d ratio / d log pi = ratio
    assert shown["case"] == case
    assert shown["meaning"] == explore.CASES[case]
    assert shown["objective"] == approx(min(shown["unclipped"], shown["clipped"]))


@pytest.mark.parametrize("percent", range(5, 51))
@pytest.mark.parametrize("advantage", [1.0, -1.0])
def test_the_ends_of_the_interval_belong_to_it(percent, advantage):
    epsilon = percent / 100
    for ratio in (round(1 - epsilon, 2), round(1 + epsilon, 2)):
        shown = explore.clip(epsilon, advantage, ratio)
        assert shown["slope"] == approx(advantage), ratio
        assert shown["case"] in (2, 5)


@pytest.mark.parametrize("ratio", [0.5, 0.9, 1.1, 1.5])
@pytest.mark.parametrize("advantage", [-1.0, 0.7])
def test_slope_is_that_of_the_objective(ratio, advantage):
    h = 1e-6
    difference = (explore.clip(0.2, advantage, ratio + h)["objective"] - explore.clip(0.2, advantage, ratio - h)["objective"]) / (2 * h)
    assert explore.clip(0.2, advantage, ratio)["slope"] == approx(difference, abs=1e-5)


# GAE -----------------------------------------------------------------------------------------------------------------


def test_gae_with_gamma_1_and_lambda_1_is_return_minus_value():
    """Returns by hand: episode one 3, 2, 2; episode two, cut where V = 4: 5, 5, 5; the third bootstraps from V = 1: 3, 3."""
    shown = explore.gae(1.0, 1.0)
    assert shown["advantages"] == approx([3 - 2, 2 - 1, 2 - 3, 5 - 1, 5 - 2, 5 - 3, 3 - 1, 3 - 2])


def test_gae_with_lambda_0_is_the_residual():
    shown = explore.gae(0.9, 0.0)
    assert shown["residuals"] == approx([1 + 0.9 - 2, 2.7 - 1, 2 - 3, 1.8 - 1, 2.7 - 2, 1 + 3.6 - 3, 1.8 - 1, 2 + 0.9 - 2])
    assert shown["advantages"] == approx(shown["residuals"])
    assert shown["weights"] == torch.eye(8).tolist()


def test_gae_with_gamma_0_is_reward_minus_value():
    assert explore.gae(0.0, 0.9)["advantages"] == approx([-1, -1, -1, -1, -2, -2, -1, 0])


def test_weights_fall_by_gamma_lambda_and_stop_at_the_end_of_the_episode():
    weights = explore.gae(0.9, 0.5)["weights"]
    assert weights[0] == approx([1, 0.45, 0.45**2, 0, 0, 0, 0, 0])
    assert weights[4] == approx([0, 0, 0, 0, 1, 0.45, 0, 0])
    assert weights[5] == approx([0, 0, 0, 0, 0, 1, 0, 0])
    assert weights[6] == approx([0, 0, 0, 0, 0, 0, 1, 0.45])


@pytest.mark.parametrize(("gamma", "lam"), [(0.9, 0.8), (1.0, 1.0), (0.3, 0.0), (0.99, 0.95)])
def test_advantages_are_weighted_residuals(gamma, lam):
    shown = explore.gae(gamma, lam)
    for t in range(8):
        total = sum(w * d for w, d in zip(shown["weights"][t], shown["residuals"], strict=True))
        assert shown["advantages"][t] == approx(total)


# KL ------------------------------------------------------------------------------------------------------------------


def test_generator():
    """mulberry32 with seed 1: 2693262067, 11749833 and 2265367787 over 2^32, as its author's JavaScript gives them."""
    assert [round(x * 2**32) for x in explore.uniforms(1, 3)] == [2693262067, 11749833, 2265367787]


def test_samples_are_distributed_as_p():
    p = torch.tensor(explore.LOGITS_P, dtype=torch.float64).softmax(0)
    shares = torch.bincount(torch.tensor(explore.kl(n=20_000)["samples"]), minlength=3) / 20_000
    assert shares.tolist() == approx(p.tolist(), abs=0.01)


def test_kl_by_hand():
    """p = (1/2, 1/4, 1/4), q = (1/4, 1/4, 1/2): KL = 1/2 ln 2 - 1/4 ln 2 = 1/4 ln 2."""
    ln2 = math.log(2)
    shown = explore.kl((ln2, 0.0, 0.0), (0.0, 0.0, ln2), seed=5, n=400)
    assert shown["exact"] == approx(ln2 / 4)
    assert shown["expectation"] == approx({"k1": ln2 / 4, "k2": 0.75 * 0.5 * ln2**2, "k3": ln2 / 4})
    assert shown["spread"]["k1"] == approx(ln2 * math.sqrt(3 / 4 - 1 / 16))
    each = {
        "k1": (ln2, 0, -ln2),
        "k2": (ln2**2 / 2, 0, ln2**2 / 2),
        "k3": (0.5 - 1 + ln2, 0, 2 - 1 - ln2),
    }
    for kind, of_outcome in each.items():
        total = 0.0
        for n, (outcome, mean) in enumerate(zip(shown["samples"], shown[kind], strict=True), start=1):
            total += of_outcome[outcome]
            assert mean == approx(total / n)


def test_running_means_reach_their_expectation():
    shown = explore.kl(n=20_000)
    for kind in explore.KINDS:
        standard_error = shown["spread"][kind] / math.sqrt(20_000)
        assert abs(shown[kind][-1] - shown["expectation"][kind]) < 4 * standard_error


# Figures -------------------------------------------------------------------------------------------------------------


def test_figures_show_the_numbers():
    figure = explore.plot_clip(0.2, -1.0, 0.5)
    (point,) = [line for line in figure.axes[0].lines if line.get_marker() == "o"]
    assert (*point.get_xdata(), *point.get_ydata()) == (0.5, -0.8)
    figure = explore.plot_gae(0.9, 0.8, step=3)
    heights = [[bar.get_height() for bar in axes.containers[0]] for axes in figure.axes]
    shown = explore.gae(0.9, 0.8)
    assert heights == [approx(shown["residuals"]), approx(shown["weights"][3]), approx(shown["advantages"])]
    figure = explore.plot_kl(n=50)
    shown = explore.kl(n=50)
    for line, kind in zip(figure.axes[1].lines, explore.KINDS, strict=False):
        assert list(line.get_ydata()) == approx(shown[kind])
    plt.close("all")
