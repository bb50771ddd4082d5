"""The line-up names every known mistake that can be planted, clears right functions however they are written, and leaves no trace."""

import inspect
import math
import random
import subprocess
import sys

import pytest
import torch
from torch import nn

from ppo_edu.control.ppo import Batch, ppo_loss
from ppo_edu.core import whiten
from ppo_edu.runs import seeded
from ppo_edu.teach.lineup import KNOWN, name_mistake
from ppo_edu.teach.pitfalls import PITFALLS
from ppo_edu.teach.pitfalls.planting import right_function
from ppo_edu.teach.scenes import MORE, NUMBERS, SCENES
from tests.teach.mutants import gae_by_a_triangle

GAE, MINIBATCHES, IMPROVE = "ppo_edu.core.advantages.gae", "ppo_edu.control.ppo.minibatches", "ppo_edu.control.ppo.improve"


# Known mistakes, and right functions ------------------------------------------------------------------------------------


@pytest.mark.parametrize("entry", [entry for entry in PITFALLS.values() if entry.replaces], ids=lambda entry: entry.name)
def test_every_known_mistake_is_told_from_the_right_function_and_from_the_others(entry):
    result = name_mistake(entry.wrong, entry.replaces)
    assert not result
    assert result.pitfall is entry, repr(result)
    for text in (entry.replaces, entry.name, entry.mistake, entry.symptom, entry.exposed_by):
        assert text in repr(result)


@pytest.mark.parametrize("of", KNOWN)
def test_the_right_function_is_cleared(of):
    result = name_mistake(right_function(KNOWN[of][0]), of)
    assert result, repr(result)
    assert result.pitfall is None


def clipped_by_cases(log_probs, old_log_probs, advantages, *, clip_range):
    """Without a mask, which the package's own takes."""
    ratio, A = torch.exp(log_probs - old_log_probs.detach()), advantages.detach()
    held = torch.where(A > 0, ratio > 1 + clip_range, ratio < 1 - clip_range)
    return -torch.where(held, (1 + clip_range * A.sign()) * A, ratio * A).mean()


def minibatches_of_python(num_rows, minibatch_size):
    rows = list(range(num_rows))
    random.shuffle(rows)
    return [torch.tensor(rows[i : i + minibatch_size]) for i in range(0, num_rows, minibatch_size)]


def batch_row_by_row(rollout, config, advantage_fn):
    r = rollout
    advantages = advantage_fn(r.rewards, r.values, r.next_values, r.terminated, r.truncated, gamma=config.gamma, lam=config.lam)
    rows = [(t, n) for t in range(len(r.valid)) for n in range(r.valid.shape[1]) if r.valid[t, n]]
    columns = (r.observations, r.actions, r.log_probs, r.values, advantages, advantages + r.values)
    batch = Batch(*(torch.stack([x[row] for row in rows]) for x in columns))
    return batch._replace(advantages=whiten(batch.advantages)) if config.normalize_advantages else batch


def update_in_whole_epochs(state, rollout, config, remaining, advantage_fn, policy_loss_fn):
    batch = batch_row_by_row(rollout, config, advantage_fn)
    for _ in range(config.epochs):
        state.optimizer.zero_grad()
        ppo_loss(state.policy, batch, config, config.clip_range, policy_loss_fn)[0].backward()
        nn.utils.clip_grad_norm_(state.policy.parameters(), config.max_grad_norm)
        state.optimizer.step()


def last_by_length(mask):
    return torch.arange(mask.shape[1]) == mask.sum(1, keepdim=True) - 1


ANOTHER_WAY = {
    GAE: torch.no_grad()(gae_by_a_triangle),
    "ppo_edu.core.objectives.clipped_surrogate_loss": clipped_by_cases,
    MINIBATCHES: minibatches_of_python,
    "ppo_edu.control.ppo.make_batch": batch_row_by_row,
    IMPROVE: update_in_whole_epochs,
    "ppo_edu.lm.rewards.last_token": last_by_length,
}


@pytest.mark.parametrize("of", ANOTHER_WAY)
def test_a_right_function_written_another_way_is_cleared(of):
    result = name_mistake(ANOTHER_WAY[of], of)
    assert result, repr(result)


# A reader's mistakes ----------------------------------------------------------------------------------------------------


def never_shuffled(num_rows, minibatch_size):
    return torch.arange(num_rows).split(minibatch_size)


def test_a_mistake_is_known_however_it_is_written():
    result = name_mistake(never_shuffled, MINIBATCHES)
    assert result.pitfall is PITFALLS["minibatches-never-shuffled"]
    assert "In whether they come in their own order" in repr(result)


def test_advantages_are_judged_by_their_numbers_first_and_then_by_their_graph():
    truncation = PITFALLS["truncation-as-termination"]
    for wrong in (truncation.wrong, torch.no_grad()(truncation.wrong)):
        assert name_mistake(wrong, GAE).pitfall is truncation
    assert name_mistake(gae_by_a_triangle, GAE).pitfall is PITFALLS["advantages-carry-gradient"]


@pytest.mark.parametrize(
    ("fn", "of", "difference"),
    [
        (lambda x, mask=None: 2 * x.mean(), "ppo_edu.core.masking.masked_mean", "expected = 4.958\n  got      = 9.917"),
        (lambda num_rows, size: [torch.arange(num_rows).flip(0)], MINIBATCHES, "In the sizes of the minibatches"),
    ],
)
def test_an_unknown_mistake_is_said_to_be_unknown(fn, of, difference):
    result = name_mistake(fn, of)
    assert not result
    assert result.pitfall is None
    assert difference in repr(result)
    assert repr(result).endswith("differs from the right one in a way that the catalogue does not know.")


def fails(*arguments, **options):
    raise ZeroDivisionError("of all things")


@pytest.mark.parametrize("of", [MINIBATCHES, "ppo_edu.core.masking.whiten", "ppo_edu.lm.rewards.last_token"])
def test_what_a_function_raises_is_reported(of):
    result = name_mistake(fails, of)
    assert not result
    assert "It raised ZeroDivisionError: of all things" in repr(result)


def test_a_function_without_the_necessary_parameters_is_reported():
    assert "It raised TypeError" in repr(name_mistake(lambda: None, "ppo_edu.core.masking.whiten"))
    assert "A function is needed, got int 3" in repr(name_mistake(3, MINIBATCHES))


@pytest.mark.parametrize("of", ["minibatches", "ppo_edu.control.ppo.train", None, never_shuffled, [MINIBATCHES]])
def test_a_function_without_known_mistakes_is_refused(of):
    with pytest.raises(ValueError, match=r"of must be one of .*ppo_edu\.control\.ppo\.minibatches.*, got "):
        name_mistake(never_shuffled, of)


# The line-up itself -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("of", [MINIBATCHES, IMPROVE, "ppo_edu.lm.ppo.start", "ppo_edu.core.masking.whiten"])
def test_the_random_state_and_the_package_stay_as_they_were(of):
    def draws(*arguments, **options):
        torch.rand(3)
        return right(*arguments, **options)

    right = right_function(KNOWN[of][0])
    answers = []
    for seed in (0, 1):
        with seeded(seed):
            before = torch.get_rng_state()
            answers.append(repr(name_mistake(draws, of)))
            assert torch.equal(torch.get_rng_state(), before)
    assert answers[0] == answers[1]
    assert right_function(KNOWN[of][0]) is right


@pytest.mark.parametrize("of", [of for of in KNOWN if not of.startswith(tuple(SCENES))])
def test_the_numbers_fill_every_parameter_that_must_be_given(of):
    parameters = inspect.signature(right_function(KNOWN[of][0])).parameters
    assert {name for name, parameter in parameters.items() if parameter.default is parameter.empty} <= NUMBERS.keys()


def test_no_scene_and_no_number_is_left_over():
    functions = {right_function(entries[0]).__name__: of for of, entries in KNOWN.items() if not of.startswith(tuple(SCENES))}
    assert MORE.keys() <= functions.keys()
    assert all(any(of.startswith(beginning) for of in KNOWN) for beginning in SCENES)
    parameters = {name for of in functions.values() for name in inspect.signature(right_function(KNOWN[of][0])).parameters}
    assert NUMBERS.keys() <= parameters


def test_the_ratios_are_those_that_the_numbers_are_chosen_for():
    """On both sides of the interval, with advantages of both signs; one that only the interval of the logarithm leaves."""
    ratio, A = torch.exp(NUMBERS["log_probs"] - NUMBERS["old_log_probs"]), NUMBERS["advantages"]
    for side in (ratio > 1.2, ratio < 0.8):
        assert (A[side] > 0).any()
        assert (A[side] < 0).any()
    assert ((ratio > 0.8) & (ratio < math.exp(-0.2))).any()


def test_it_is_imported_without_what_only_a_scene_or_a_figure_needs():
    code = "import sys, ppo_edu.teach.lineup; print([m for m in ('transformers', 'matplotlib', 'IPython') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"
