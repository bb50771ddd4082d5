"""Sampling: the log-probabilities are those of the distribution sampled from, and what counts is exactly what was sampled."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from lm_helpers import (
    ARCHITECTURES,
    PROMPTS,
    add_to_logits,
    all_responses,
    make_lm,
    make_tokenizer,
    plain_log_probs,
    seeded_generator,
    texts_as_tokens,
)
from torch.testing import assert_close

from ppo_edu.lm import PolicyWithValue, generate, sequence_log_probs
from ppo_edu.lm.generation import check_context

PAD, EOS, UNK, A = range(4)
WRAPPERS = {
    "plain": lambda lm: lm,
    "shared trunk": PolicyWithValue,
    "value model": lambda lm: PolicyWithValue(lm, make_lm("gpt2", seed=9)),
}


def sample(policy, tokenizer, prompts=PROMPTS, **changes):
    settings = {"max_new_tokens": 8, "temperature": 0.7, "generator": seeded_generator(4)}
    return generate(policy, tokenizer, prompts, **(settings | changes))


def next_distribution(lm, tokens, *, temperature=1.0, top_k=None, top_p=None):
    """Probabilities of the next token, [V] float64 NumPy: a plain forward pass, then the definitions of top-k and top-p."""
    with torch.no_grad():
        logits = lm(input_ids=torch.tensor([tokens])).logits[0, -1].double().numpy() / temperature
    p = np.exp(logits - logits.max())
    order = np.argsort(-p)
    if top_k is not None:
        p[order[top_k:]] = 0.0
    p /= p.sum()
    if top_p is not None:
        likelier = np.cumsum(p[order]) - p[order]  # probability of all tokens before this one
        p[order[likelier >= top_p]] = 0.0
    return p / p.sum()


# Log-probabilities ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("wrapper", WRAPPERS)
@pytest.mark.parametrize("temperature", [0.7, 1.0])
def test_log_probs_equal_those_of_a_plain_unpadded_uncached_forward_pass(lm, tokenizer, wrapper, temperature):
    responses = sample(WRAPPERS[wrapper](lm), tokenizer, 2 * PROMPTS, temperature=temperature)
    assert not responses.prompt_mask.all(), "some prompts must be padded"
    assert not responses.mask.all(), "some responses must be padded"
    for (prompt, response), text, log_probs in zip(texts_as_tokens(responses), 2 * PROMPTS, responses.log_probs, strict=True):
        assert prompt == tokenizer(text)["input_ids"]
        expected = plain_log_probs(lm, prompt, response, temperature=temperature)
        assert_close(log_probs[: len(response)].double(), expected.detach(), atol=1e-5, rtol=0)


FILTERS = [{"top_k": 3}, {"top_p": 0.6}, {"top_k": 4, "top_p": 0.8}, {"top_k": 1}, {"top_k": 99, "top_p": 1.0}, {"top_p": 1e-6}]


@pytest.mark.parametrize("options", FILTERS, ids=str)
@pytest.mark.parametrize("name", ["gpt2", "qwen2"])
def test_with_top_k_and_top_p_log_probs_are_those_of_the_filtered_distribution(name, tokenizer, options):
    lm = make_lm(name)
    responses = sample(lm, tokenizer, **options)
    for (prompt, response), log_probs in zip(texts_as_tokens(responses), responses.log_probs, strict=True):
        for t, token in enumerate(response):
            p = next_distribution(lm, prompt + response[:t], temperature=0.7, **options)
            assert p[token] > 0, "a token outside the set was sampled"
            assert_close(float(log_probs[t]), float(np.log(p[token])), atol=1e-5, rtol=0)


@pytest.mark.parametrize("options", [{}, {"top_k": 3}, {"top_p": 0.6}], ids=str)
def test_tokens_come_as_often_as_their_probabilities_say(options):
    """Both tokens of 20,000 responses of at most two, against the exact joint distribution."""
    tokenizer, lm = make_tokenizer(("a", "b")), make_lm("gpt2", vocab_size=5)
    n = 20_000
    responses = sample(lm, tokenizer, ["b a"] * n, max_new_tokens=2, **options)
    prompt = tokenizer("b a")["input_ids"]
    counts: dict[tuple[int, ...], int] = {}
    for _, response in texts_as_tokens(responses):
        counts[tuple(response)] = counts.get(tuple(response), 0) + 1
    chi_square, cells = 0.0, 0
    for response in all_responses(5, EOS, 2):
        p = 1.0
        for t, token in enumerate(response):
            p *= next_distribution(lm, prompt + response[:t], temperature=0.7, **options)[token]
        count = counts.pop(tuple(response), 0)
        if p == 0.0:
            assert count == 0
            continue
        assert n * p > 5, "too rare for a chi-square"
        chi_square += (count - n * p) ** 2 / (n * p)
        cells += 1
    assert not counts, "responses that cannot be"
    freedom = cells - 1
    assert chi_square < freedom + 4.0 * np.sqrt(2 * freedom)  # four standard deviations above the mean


def test_stored_log_probs_are_what_sequence_log_probs_finds_again(lm, tokenizer):
    responses = sample(lm, tokenizer)
    assert_close(sequence_log_probs(lm, responses, temperature=0.7).detach(), responses.log_probs, atol=1e-5, rtol=0)


def test_a_sampled_pad_token_is_a_token_like_any_other(tokenizer):
    """A model may sample the pad token. It was an action: it counts, is attended to, and takes up a position."""
    lm = add_to_logits(make_lm("gpt2"), t0=2.0)
    responses = sample(lm, tokenizer)
    inside = responses.mask[:, 1:] & (responses.tokens == PAD)[:, :-1]
    assert inside.any(), "some response must go on after a sampled pad"
    for (prompt, response), log_probs in zip(texts_as_tokens(responses), responses.log_probs, strict=True):
        expected = plain_log_probs(lm, prompt, response, temperature=0.7).detach()
        assert_close(log_probs[: len(response)].double(), expected, atol=1e-5, rtol=0)


def test_more_padding_changes_no_number(lm, tokenizer):
    """A longer prompt beside the others pads them more. top_k=1 leaves nothing to chance, and the log-probs are 0 then."""
    alone, beside = (sample(lm, tokenizer, prompts, top_k=1) for prompts in (PROMPTS, [*PROMPTS, "a b c d e f g " * 3]))
    assert beside.prompt_tokens.shape[1] == 21
    assert texts_as_tokens(beside)[:-1] == texts_as_tokens(alone)
    assert len({tuple(response) for _, response in texts_as_tokens(alone)}) > 1, "the prompts must matter"


# What counts ------------------------------------------------------------------------------------------------------------


def first_end(row):
    """Index of the first end token in a list of tokens, or None."""
    return row.index(EOS) if EOS in row else None


@pytest.mark.parametrize("pad_token", ["<pad>", "<eos>"])
def test_the_mask_takes_in_the_end_token_and_nothing_after(pad_token):
    tokenizer = make_tokenizer(pad_token=pad_token)
    responses = sample(make_lm("gpt2"), tokenizer, PROMPTS * 4)
    ends = [first_end(row) for row in responses.tokens.tolist()]
    assert None in ends, "some response must be cut"
    assert any(end is not None for end in ends), "some response must end"
    for i, end in enumerate(ends):
        length = 8 if end is None else end + 1
        assert responses.mask[i].tolist() == [t < length for t in range(8)]
        assert responses.ended[i] == (end is not None)
    assert (responses.tokens[~responses.mask] == tokenizer.pad_token_id).all()
    assert (responses.log_probs[~responses.mask] == 0).all()
    assert (responses.log_probs[responses.mask] < 0).all()


def test_padding_with_the_end_token_changes_nothing_that_counts():
    own, same = (sample(make_lm("gpt2"), make_tokenizer(pad_token=x), ["<eos> a", *PROMPTS]) for x in ("<pad>", "<eos>"))
    assert texts_as_tokens(own) == texts_as_tokens(same)
    assert torch.equal(own.mask, same.mask)
    assert torch.equal(own.ended, same.ended)
    assert_close(own.log_probs, same.log_probs, atol=1e-6, rtol=0)


def test_a_response_that_ends_with_its_last_token_has_ended_and_one_cut_there_has_not(tokenizer):
    responses = sample(make_lm("gpt2"), tokenizer, PROMPTS * 10, max_new_tokens=1)
    assert responses.mask.all()
    assert torch.equal(responses.ended, responses.tokens[:, 0] == EOS)
    assert 0 < responses.ended.sum() < len(responses)


def test_a_response_that_never_ends_is_cut_at_max_new_tokens(tokenizer):
    responses = sample(add_to_logits(make_lm("gpt2"), t1=-1e9), tokenizer)
    assert responses.tokens.shape == (len(PROMPTS), 8)
    assert responses.mask.all()
    assert not responses.ended.any()


class Calls:
    """Records how many tokens a model reads at each call."""

    def __init__(self, lm):
        self.widths = []
        lm.register_forward_pre_hook(lambda module, args, kwargs: self.widths.append(kwargs["input_ids"].shape[1]), with_kwargs=True)


def test_sampling_stops_when_all_have_ended(tokenizer):
    lm = add_to_logits(make_lm("gpt2"), t1=50.0)
    calls = Calls(lm)
    responses = sample(lm, tokenizer, max_new_tokens=20)
    assert responses.tokens.tolist() == [[EOS]] * len(PROMPTS)
    assert responses.ended.all()
    assert len(calls.widths) == 1


def test_the_longest_response_sets_the_width(tokenizer):
    lm = add_to_logits(make_lm("gpt2"), t1=2.0)
    calls = Calls(lm)
    responses = sample(lm, tokenizer, max_new_tokens=20)
    longest = int(responses.lengths.max())
    assert responses.tokens.shape[1] == len(calls.widths) == longest
    assert 1 < longest < 20


def test_after_the_prompt_one_token_is_read_at_a_time(tokenizer):
    lm = add_to_logits(make_lm("gpt2"), t1=-1e9)
    calls = Calls(lm)
    sample(lm, tokenizer)
    assert calls.widths == [5] + [1] * 7


def test_shapes_and_types(lm, tokenizer):
    responses = sample(PolicyWithValue(lm), tokenizer)
    B, T = responses.tokens.shape
    assert responses.prompt_tokens.shape == responses.prompt_mask.shape == (B, 5) == (len(PROMPTS), 5)
    assert responses.mask.shape == responses.log_probs.shape == (B, T)
    assert responses.ended.shape == (B,)
    assert responses.tokens.dtype == responses.prompt_tokens.dtype == torch.int64
    assert responses.mask.dtype == responses.prompt_mask.dtype == responses.ended.dtype == torch.bool
    assert responses.log_probs.dtype == torch.float32
    assert not responses.log_probs.requires_grad


def test_a_bfloat16_model_gives_float32_log_probs(tokenizer):
    responses = sample(make_lm("llama").to(torch.bfloat16), tokenizer)
    assert responses.log_probs.dtype == torch.float32
    assert (responses.log_probs[responses.mask] < 0).all()


# Chance -----------------------------------------------------------------------------------------------------------------


def test_the_same_generator_state_gives_the_same_responses_and_another_others(lm, tokenizer):
    first, again, other = (sample(lm, tokenizer, generator=seeded_generator(seed)) for seed in (0, 0, 1))
    assert torch.equal(first.tokens, again.tokens)
    assert torch.equal(first.log_probs, again.log_probs)
    assert first.tokens.shape != other.tokens.shape or not torch.equal(first.tokens, other.tokens)


def test_a_generator_moves_on_from_call_to_call(gpt2, tokenizer):
    generator = seeded_generator(0)
    first, second = (texts_as_tokens(sample(gpt2, tokenizer, generator=generator)) for _ in range(2))
    assert first != second


def test_a_generator_leaves_torchs_own_random_state_alone_and_none_means_that_one(gpt2, tokenizer):
    torch.manual_seed(0)
    state = torch.get_rng_state()
    sample(gpt2, tokenizer, generator=seeded_generator(0))
    assert torch.equal(torch.get_rng_state(), state)
    first = sample(gpt2, tokenizer, generator=None)
    assert not torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(0)
    assert texts_as_tokens(sample(gpt2, tokenizer, generator=None)) == texts_as_tokens(first)


# Dropout ----------------------------------------------------------------------------------------------------------------


def with_dropout():
    """A policy that would sample otherwise in training mode."""
    lm = make_lm("gpt2", resid_pdrop=0.5, embd_pdrop=0.5, attn_pdrop=0.5)
    ids = torch.tensor([[A, EOS, A]])
    assert not torch.allclose(lm.train()(ids).logits, lm.eval()(ids).logits)
    return lm


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("wrapper", ["plain", "shared trunk"])
def test_dropout_is_off_while_sampling_and_the_mode_is_given_back(tokenizer, training, wrapper):
    lm = with_dropout()
    policy = WRAPPERS[wrapper](lm)
    expected = sample(policy.eval(), tokenizer)
    responses = sample(policy.train(training), tokenizer)
    assert torch.equal(responses.tokens, expected.tokens)
    assert torch.equal(responses.log_probs, expected.log_probs)
    assert all(module.training == training for module in policy.modules())


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_the_mode_is_given_back_when_sampling_fails_half_way(tokenizer, error):
    lm = with_dropout().train()
    calls = []

    def fail(module, inputs):
        calls.append(module)
        if len(calls) == 3:
            raise error

    lm.register_forward_pre_hook(fail)
    with pytest.raises(error):
        sample(lm, tokenizer)
    assert len(calls) == 3
    assert all(module.training for module in lm.modules())


@pytest.mark.parametrize("changes", [{"prompts": []}, {"max_new_tokens": 99}, {"temperature": 0.0}, {"top_k": 0}, {"top_p": 0.0}], ids=str)
def test_a_refused_call_leaves_the_mode_alone(tokenizer, changes):
    lm = with_dropout().train()
    with pytest.raises(ValueError):
        sample(lm, tokenizer, **changes)
    assert lm.training


# Bad input --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"prompts": []}, "prompts must be a non-empty list"),
        ({"prompts": "a b"}, "prompts must be a non-empty list"),
        ({"prompts": ["a", ""]}, r"prompts\[1\] must be a non-empty string"),
        ({"prompts": ["a", " "]}, r"prompts\[1\] must have at least one token"),
        ({"max_new_tokens": 0}, "max_new_tokens must be an int of at least 1, got int 0"),
        ({"max_new_tokens": 8.0}, "max_new_tokens must be an int"),
        ({"temperature": 0.0}, "temperature must be a finite number above 0, got float 0.0"),
        ({"temperature": float("nan")}, "temperature must be a finite number above 0"),
        ({"temperature": float("inf")}, "temperature must be a finite number above 0"),
        ({"temperature": -1.0}, "temperature must be a finite number above 0"),
        ({"top_k": 0}, "top_k must be an int of at least 1"),
        ({"top_k": 2.0}, "top_k must be an int of at least 1"),
        ({"top_p": 0.0}, "top_p must be a number above 0 and at most 1"),
        ({"top_p": 1.1}, "top_p must be a number above 0 and at most 1"),
        ({"top_p": float("nan")}, "top_p must be a number above 0 and at most 1"),
        ({"top_p": "0.9"}, "top_p must be a number above 0 and at most 1"),
    ],
)
def test_bad_arguments_are_named(gpt2, tokenizer, changes, message):
    with pytest.raises(ValueError, match=message):
        sample(gpt2, tokenizer, **changes)


@pytest.mark.parametrize("name", ["pad_token", "eos_token"])
def test_a_tokenizer_without_pad_or_end_token_is_refused(gpt2, name):
    with pytest.raises(ValueError, match=f"tokenizer must have its {name} set"):
        sample(gpt2, make_tokenizer(**{name: None}))


def test_a_model_that_gives_nan_is_noticed(gpt2, tokenizer):
    with torch.no_grad():
        gpt2.transformer.ln_f.bias[3] = float("nan")
    with pytest.raises(ValueError, match=r"logits must be finite .*, see row \[0\]"):
        sample(gpt2.train(), tokenizer)
    assert gpt2.training


@pytest.mark.parametrize("words", [("a", "b"), (*"abcdefg", "h")])
@pytest.mark.parametrize("wrapper", ["plain", "shared trunk"])
def test_a_tokenizer_with_another_vocabulary_is_refused(gpt2, words, wrapper):
    with pytest.raises(ValueError, match=f"tokenizer must have the model's vocabulary of 10 tokens.*got {3 + len(words)}"):
        sample(WRAPPERS[wrapper](gpt2), make_tokenizer(words), ["a"])


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_prompt_and_its_response_must_fit_into_the_context(name, tokenizer):
    lm = add_to_logits(make_lm(name), t1=-1e9)
    assert sample(lm, tokenizer, ["a " * 28, "b"], max_new_tokens=4).tokens.shape == (2, 4)
    for words, new in ((29, 4), (28, 5), (40, 1)):
        message = (
            rf"prompts must leave room for max_new_tokens.*context of 32 tokens, got a prompt of {words} tokens and max_new_tokens {new}"
        )
        with pytest.raises(ValueError, match=message):
            sample(lm, tokenizer, ["b", "a " * words], max_new_tokens=new)


def test_a_model_without_a_fixed_context_takes_any_length():
    check_context(SimpleNamespace(config=SimpleNamespace()), 10**6, 10**6)
