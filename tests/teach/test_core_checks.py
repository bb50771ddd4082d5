"""The checkers of the mathematics: the right function passes, each known mistake is told by name, readers may go wrong in any way."""

import pytest
import torch

import ppo_edu
from ppo_edu.teach.checks import CHECKERS, check_clipped_surrogate, check_gae, check_policy_gradient
from ppo_edu.teach.checks.engine import keyword_only
from ppo_edu.teach.pitfalls import PITFALLS, pitfalls_of

RIGHT = {
    "gae": ppo_edu.gae,
    "discounted_return": ppo_edu.discounted_return,
    "policy_gradient": ppo_edu.policy_gradient_loss,
    "clipped_surrogate": ppo_edu.clipped_surrogate_loss,
    "kl_estimate": ppo_edu.kl_estimate,
}
MISTAKES = [entry for entry in PITFALLS.values() if entry.target in RIGHT]


@pytest.mark.parametrize("name", RIGHT)
def test_the_right_function_passes(name):
    result = CHECKERS[name](RIGHT[name])
    assert result.passed, result
    assert len(pitfalls_of(name)) >= 8


@pytest.mark.parametrize("entry", MISTAKES, ids=lambda entry: entry.name)
def test_each_mistake_is_named(entry):
    result = CHECKERS[entry.target](entry.wrong)
    assert not result.passed  # so it differs from the right function on at least one case
    assert result.pitfall is entry, result
    assert entry.mistake in repr(result)


def test_smallest_failing_case_comes_first():
    wrong = next(entry.wrong for entry in MISTAKES if entry.name == "advantage-outside-the-min")
    report = repr(check_clipped_surrogate(wrong))
    assert "The smallest case that fails: ratio 0.5, A = -1: clipped." in report


def test_a_loss_of_the_right_value_without_a_gradient_fails():
    result = check_policy_gradient(lambda log_probs, advantages: -(log_probs * advantages).mean().item())
    assert "the gradient with respect to log_probs" in repr(result)


def test_another_way_to_write_the_clipped_surrogate_passes():
    def loss(new, old, A, *, clip_range):
        ratio = (new - old.detach()).exp()
        limit = torch.where(A > 0, ratio.clamp(max=1 + clip_range), ratio.clamp(min=1 - clip_range))
        return -(limit * A.detach()).mean()

    assert check_clipped_surrogate(loss)


def test_a_loss_per_sample_is_told_to_be_a_scalar():
    result = check_policy_gradient(lambda log_probs, advantages: -log_probs * advantages.detach())
    assert "In loss: The result must have shape [], got [1]." in repr(result)


def test_a_result_that_is_no_loss_is_not_called_one():
    assert "In value:" in repr(CHECKERS["entropy"](lambda logits: logits.sum()))


@pytest.mark.parametrize("name", RIGHT)
@pytest.mark.parametrize("output", [None, "text", [1, 2], torch.ones(7), 1j, {"loss": 0}, torch.ones(2).to_sparse()])
def test_any_output_is_survived(name, output):
    result = CHECKERS[name](lambda *args, **kwargs: output)
    assert not result.passed
    assert result.pitfall is None


@pytest.mark.parametrize("name", RIGHT)
def test_exceptions_and_missing_parameters_are_reported(name):
    assert "It raised TypeError" in repr(CHECKERS[name](lambda: None))


def test_constants_come_by_keyword_and_in_no_other_way():
    seen = []

    def fn(*args, **kwargs):
        seen.append((len(args), sorted(kwargs)))

    check_gae(fn)
    assert set(map(str, seen)) == {"(5, ['gamma', 'lam'])"}
    assert keyword_only("b")(lambda a, *, b: a - b, {"b": 1, "a": 3}) == 2


def test_changes_in_place_are_reported_in_losses_too():
    def loss(log_probs, old_log_probs, advantages, *, clip_range):
        with torch.no_grad():
            advantages *= 2
        return ppo_edu.clipped_surrogate_loss(log_probs, old_log_probs, advantages, clip_range=clip_range)

    assert "changed its argument advantages in place" in repr(check_clipped_surrogate(loss))
