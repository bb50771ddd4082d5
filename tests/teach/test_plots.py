"""Figures: the numbers behind them, and animations that play."""

import io

import gymnasium as gym
import matplotlib as mpl
import numpy as np
import pytest
import torch
from PIL import Image
from torch.distributions import Categorical

from ppo_edu.control import make_policy
from ppo_edu.control.networks import Policy

mpl.use("Agg")

import matplotlib.pyplot as plt

from ppo_edu.teach import plots

NAN = float("nan")


@pytest.fixture(autouse=True)
def _close_figures():
    with mpl.rc_context():
        yield
    plt.close("all")


def log_of(steps, values, name="x"):
    return [{"env_steps": s, name: v} for s, v in zip(steps, values, strict=True)]


def test_on_grid_interpolates_between_rows_and_skips_those_that_are_nan():
    log = log_of([0, 100, 200, 300], [1.0, NAN, 3.0, 7.0])
    assert plots.on_grid(log, "x", np.array([0, 100, 150, 250, 300])).tolist() == [1.0, 2.0, 2.5, 5.0, 7.0]


def test_a_column_without_any_number_is_drawn_as_nothing():
    """A run so short that no episode ended."""
    log = log_of([0, 100], [NAN, NAN])
    assert np.isnan(plots.on_grid(log, "x", np.array([0, 50]))).all()
    plots.plot_diagnostics([log, log], {"x": "X", "env_steps": "steps"}, {}).canvas.draw()


@pytest.mark.parametrize("runs", [1, 4, 5])
def test_plot_band_draws_the_median_and_the_range_of_the_runs(runs):
    rng = np.random.default_rng(0)
    steps = [np.sort(rng.choice(1000, 20, replace=False)) for _ in range(runs)]
    values = rng.normal(size=(runs, 20))
    _, axes = plt.subplots()
    plots.plot_band(axes, [log_of(s, v) for s, v in zip(steps, values, strict=True)], "x", label="runs")
    grid, median = axes.lines[0].get_data()
    assert grid[0] == max(s[0] for s in steps)
    assert grid[-1] == min(s[-1] for s in steps), "no run is extrapolated"
    curves = [np.interp(grid, s, v) for s, v in zip(steps, values, strict=True)]
    np.testing.assert_allclose(median, np.median(curves, axis=0))
    band = axes.collections[0].get_paths()[0].vertices
    for x in grid[1:-1]:
        drawn = band[band[:, 0] == x, 1]
        here = [np.interp(x, s, v) for s, v in zip(steps, values, strict=True)]
        assert drawn.min() == pytest.approx(min(here))
        assert drawn.max() == pytest.approx(max(here))
    assert axes.lines[0].get_label() == "runs"
    assert axes.get_xlabel() == "environment steps"


def test_plot_diagnostics_has_one_titled_panel_per_quantity_and_shades_healthy_ranges():
    log = [{"env_steps": s, **dict.fromkeys("abcd", float(s))} for s in range(5)]
    figure = plots.plot_diagnostics([log, log], {"a": "A", "b": "B", "c": "C", "d": "D"}, {"b": (1.0, 3.0)})
    visible = [axes for axes in figure.axes if axes.get_visible()]
    assert [axes.get_title(loc="left") or axes.get_title() for axes in visible] == ["A", "B", "C", "D"]
    assert [len(axes.patches) for axes in visible] == [0, 1, 0, 0]


def test_the_style_is_opaque_white_with_colours_that_differ():
    plots.use_style()
    assert mpl.rcParams["figure.facecolor"] == mpl.rcParams["axes.facecolor"] == mpl.rcParams["savefig.facecolor"] == "white"
    assert len(set(plots.COLOURS)) == len(plots.COLOURS)


def test_draw_loop_shows_every_text():
    figure = plots.draw_loop([("Collect", "T steps"), ("Improve", "K epochs"), ("Repeat", "again")], "new policy")
    texts = {text.get_text() for text in figure.axes[0].texts}
    assert texts == {"Collect", "T steps", "Improve", "K epochs", "Repeat", "again", "new policy"}
    figure.canvas.draw()


# Animations -------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def policy():
    torch.manual_seed(0)
    env = gym.make("CartPole-v1")
    return make_policy(env.observation_space, env.action_space, (8,))


def frames_of(gif):
    image = Image.open(io.BytesIO(gif))
    durations = []
    for i in range(image.n_frames):
        image.seek(i)
        durations.append(image.info["duration"])
    return image, durations


@pytest.mark.parametrize(("every", "milliseconds"), [(1, 20), (2, 40), (5, 100)])
def test_an_animation_moves_in_real_time_for_ever(policy, every, milliseconds):
    gif, total = plots.animate_policy(policy, "CartPole-v1", max_steps=20, every=every, width=120)
    image, durations = frames_of(gif)
    assert image.format == "GIF"
    assert image.width == 120
    assert image.info["loop"] == 0
    assert image.n_frames > 1
    drawn = -(-int(total) // every) + 1  # every so many steps, and the last one
    assert sum(durations) == drawn * milliseconds  # frames that look alike may have been joined
    assert set(durations) <= {milliseconds * n for n in range(1, drawn)}


def test_an_animation_is_of_the_episode_of_its_seed_and_returns_its_return(policy):
    first, again, other = (plots.animate_policy(policy, "CartPole-v1", seed=s, max_steps=500, every=5, width=100) for s in (1, 1, 2))
    assert first == again
    assert first[0] != other[0]
    env = gym.make("CartPole-v1")
    observation, _ = env.reset(seed=1)
    total, done = 0.0, False
    while not done:
        action = policy.mode(torch.as_tensor(observation)).item()
        observation, reward, terminated, truncated, _ = env.step(action)
        total, done = total + reward, terminated or truncated
    assert first[1] == total


def test_max_steps_cuts_an_animation_and_sampling_leaves_the_callers_random_state(policy):
    state = torch.get_rng_state()
    _, total = plots.animate_policy(policy, "CartPole-v1", max_steps=5, width=60, greedy=False)
    assert total == 5.0
    assert torch.equal(torch.get_rng_state(), state)


def test_discrete_observations_are_one_hot_as_in_training():
    class Down(Policy):
        def distribution(self, observations):
            assert observations.shape == (16,)
            assert observations.sum() == 1
            return Categorical(logits=torch.tensor([0.0, 5.0, 0.0, 0.0]))

    gif, _ = plots.animate_policy(Down(16, 4, ()), "FrozenLake-v1", max_steps=3, every=1, width=80)
    assert frames_of(gif)[0].n_frames >= 1


def test_a_gif_is_embedded_whole_with_its_alternative_text():
    html = plots.show_gif(b"GIF89a...", 'a "pole" & <cart>').data
    assert 'src="data:image/gif;base64,R0lGODlhLi4u"' in html
    assert 'alt="a &quot;pole&quot; &amp; &lt;cart&gt;"' in html
