"""The pictures of the small problems show their numbers."""

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import pytest

from ppo_edu.teach import drawings, exact


@pytest.fixture(autouse=True)
def _close_figures():
    yield
    plt.close("all")


def texts_of(axes) -> list[str]:
    return [text.get_text() for text in axes.texts]


def test_chain_names_states_and_rewards():
    shown = texts_of(drawings.draw_chain(exact.chain(length=3, distraction=0.25)).axes[0])
    assert {"s0", "s1", "s2"} <= set(shown)
    assert shown.count("go") == 2
    assert shown.count("go  +1") == 1
    assert shown.count("stop  +0.25") == 3


@pytest.mark.parametrize("max_letters", [2, 3])
def test_every_response_stands_in_the_tree_with_its_reward(max_letters):
    mdp = exact.language(max_letters=max_letters)
    shown = drawings.draw_response_tree(mdp).axes[0].texts
    everything = exact.enumerate_episodes(mdp, exact.softmax_policy(mdp.uniform_logits()))
    assert len(everything.probabilities) == 2 ** (max_letters + 1) - 1
    for text in exact.response_texts(everything):
        (box,) = [
            t for t in shown if t.get_text() == (text or "empty") and t.get_weight() == "bold" and t.get_bbox_patch().get_linewidth() > 1
        ]
        x, y = box.get_position()
        near = [t.get_text() for t in shown if 0 < abs(t.get_position()[0] - x) + abs(t.get_position()[1] - y) < 0.48]
        reward = exact.text_reward(text)
        assert (f"{reward:+.1f}" if reward else "0.0") in near, text


def test_maze_shows_values_and_all_best_actions():
    mdp = exact.maze()
    q = exact.optimal_action_values(mdp)
    _, axes = plt.subplots()
    drawings.draw_maze(axes, mdp, q.max(-1).values, q)
    shown = texts_of(axes)
    assert shown.count("9.00") == 3
    assert shown.count("7.29") == 1
    assert shown.count("") == 12  # arrows: two from each of four fields, one from the other four
