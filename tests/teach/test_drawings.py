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


def test_a_policy_stands_on_the_branches_of_the_tree():
    mdp = exact.language()
    pi = exact.softmax_policy(exact.random_logits(mdp, 0))
    shown = texts_of(drawings.draw_response_tree(mdp, pi).axes[0])
    for s in range(len(mdp.states)):
        assert f"a {pi[s, 0]:.2f}" in shown
        assert f"b {pi[s, 1]:.2f}" in shown
        assert any(text.startswith(f"stop {pi[s, 2]:.2f}: ") for text in shown)


@pytest.mark.parametrize(("prompt", "response"), [("x", "ab"), ("wx", "abc")])
def test_an_arrow_leads_from_the_logits_before_each_response_token(prompt, response):
    axes = drawings.draw_token_shift(prompt, response).axes[0]
    arrows = [p for p in axes.patches if hasattr(p, "get_arrowstyle")]
    starts = [arrow._posA_posB[0][0] for arrow in arrows]
    assert [int(x) for x in starts] == list(range(len(prompt) - 1, len(prompt) + len(response) - 1))
    assert texts_of(axes).count("logits") == len(prompt) + len(response)


def test_a_batch_shows_its_responses_twice_and_frames_their_last_tokens():
    axes = drawings.draw_batch(["x", "wx"], ["abe", "e"]).axes[0]
    shown = texts_of(axes)
    assert [shown.count(token) for token in "wxabe"] == [1, 2, 2, 2, 4]
    heavy = [p.get_xy() for p in axes.patches if p.get_linewidth() == 4.0]
    assert len(heavy) == 4  # each response's last token, in both pictures


def test_maze_shows_values_and_all_best_actions():
    mdp = exact.maze()
    q = exact.optimal_action_values(mdp)
    _, axes = plt.subplots()
    drawings.draw_maze(axes, mdp, q.max(-1).values, q)
    shown = texts_of(axes)
    assert shown.count("9.00") == 3
    assert shown.count("7.29") == 1
    assert shown.count("") == 12  # arrows: two from each of four fields, one from the other four


def test_the_rlhf_loop_names_every_model_and_marks_the_frozen_ones():
    axes = drawings.draw_rlhf_loop().axes[0]
    assert {"policy", "reference", "reward model", "value head", "credit", "improve"} <= set(texts_of(axes))
    frozen = [box for box in axes.patches if hasattr(box, "get_width") and box.get_linestyle() == "--"]
    assert len(frozen) == 2
