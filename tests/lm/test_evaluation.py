"""Evaluation of a policy: every number against plain forward passes of what it wrote."""

import numpy as np
import pytest
import torch
from lm_helpers import PROMPTS, add_to_logits, make_lm, make_tokenizer, plain_log_probs
from ppo_helpers import count_a, make_policy, same, weights

from ppo_edu.lm import evaluate_policy

EOS = 1


def evaluate(policy=None, score_fn=count_a, **options):
    policy = policy or make_lm("gpt2")
    defaults = {"prompts": PROMPTS, "reference": make_lm("gpt2"), "max_new_tokens": 6, "tokenizer": make_tokenizer()}
    return evaluate_policy(policy, score_fn=score_fn, **(defaults | options))


def tokens_of(evaluation, longest=6):
    """Prompts and responses as tokens; responses shorter than the longest came to an end."""
    tokenizer = make_tokenizer()
    rows = []
    for prompt, response in zip(evaluation.prompts, evaluation.responses, strict=True):
        words = tokenizer(response)["input_ids"]
        rows.append((tokenizer(prompt)["input_ids"], words if len(words) == longest else [*words, EOS]))
    return rows


def no_odd_words(lm):
    """<pad> and <unk> cannot be read back from a text, so they are never written here."""
    return add_to_logits(lm, t0=-1e9, t2=-1e9)


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("value_head", [False, True])
def test_every_number_equals_plain_forward_passes_of_what_was_written(temperature, value_head):
    policy = make_policy(seed=1) if value_head else make_lm("gpt2", seed=1)
    lm = no_odd_words(policy.lm if value_head else policy)
    reference = no_odd_words(make_lm("gpt2"))
    found = evaluate(policy, reference=reference, temperature=temperature, prompts=PROMPTS * 4)
    rows = tokens_of(found)
    plain = [[plain_log_probs(model, *row, temperature=temperature).detach().numpy() for row in rows] for model in (lm, reference)]
    assert found.kl == pytest.approx(np.mean([a.sum() - b.sum() for a, b in zip(*plain, strict=True)]), rel=1e-4)
    assert found.perplexity == pytest.approx(np.exp(-np.concatenate(plain[1]).mean()), rel=1e-4)
    assert found.response_length == pytest.approx(np.mean([len(y) for _, y in rows]))
    assert found.ended == pytest.approx(np.mean([y[-1] == EOS for _, y in rows]))
    assert 0 < found.ended < 1
    assert found.kl > 0.1


def test_against_itself_the_kl_is_0():
    assert evaluate().kl == pytest.approx(0.0, abs=1e-5)
    assert evaluate(make_policy(), temperature=0.7).kl == pytest.approx(0.0, abs=1e-5)


def test_the_same_seed_gives_the_same_responses_and_another_seed_others():
    first, second, other = (evaluate(seed=seed) for seed in (0, 0, 1))
    assert first.responses == second.responses != other.responses
    assert first.perplexity == second.perplexity


def test_scores_are_of_the_responses_and_their_share_above_0_leaves_0_out():
    asked = []

    def scorer(prompts, responses):
        asked.append((prompts, responses))
        return torch.tensor([1.0, 0.0, -1.0, 2.0, 0.0, 3.0], dtype=torch.float64, requires_grad=True)

    found = evaluate(score_fn=scorer)
    assert asked == [(list(PROMPTS), found.responses)]
    assert found.scores.tolist() == [1, 0, -1, 2, 0, 3]
    assert found.score == pytest.approx(5 / 6)
    assert found.positive == 0.5
    assert found.scores.dtype == torch.float32
    assert not found.scores.requires_grad


def test_variety_is_counted_in_word_pairs_over_all_responses_together():
    """A model that says nothing but "a": 6 responses of 6 words hold one pair, 30 times."""
    found = evaluate(add_to_logits(make_lm("gpt2"), t3=1e4))
    assert found.responses == ["a a a a a a"] * 6
    assert found.distinct_2 == pytest.approx(1 / 30)
    assert found.ended == 0.0
    assert found.response_length == 6.0


def test_a_model_that_says_nothing_has_ended_and_no_variety():
    found = evaluate(add_to_logits(make_lm("gpt2"), t1=1e4))
    assert found.responses == [""] * 6
    assert (found.distinct_2, found.ended, found.response_length) == (0.0, 1.0, 1.0)


def test_looking_changes_nothing():
    policy, state = make_policy().train(), torch.get_rng_state()
    before = weights(policy)
    found = evaluate(policy)
    assert same(weights(policy), before)
    assert policy.lm.training
    assert torch.equal(torch.get_rng_state(), state)
    assert all(p.grad is None for p in policy.parameters())
    assert found.prompts == list(PROMPTS)


@pytest.mark.parametrize(("options", "message"), [({"prompts": []}, "prompts must be"), ({"max_new_tokens": 40}, "context of 32 tokens")])
def test_bad_arguments_are_one_clear_error(options, message):
    with pytest.raises(ValueError, match=message):
        evaluate(**options)
