"""The decoder: whatever the cache, the compiler and the number of finish tests, the same responses; and a copy in bfloat16."""

import math
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from lm_helpers import PROMPTS, add_to_logits, make_lm, make_tokenizer, needs_cuda, plain_log_probs, seeded_generator, texts_as_tokens
from torch.testing import assert_close
from transformers import TopKLogitsWarper

from ppo_edu.lm import Decoder, PolicyWithValue, generate, sequence_log_probs
from ppo_edu.lm.generation import CACHE_STEP, sample_next

EOS = 1
MANY = 3 * PROMPTS
OTHERS = ("c a", "g f e d c b a", "b", "d")  # another number, another length
FIELDS = ("prompt_tokens", "prompt_mask", "tokens", "mask", "log_probs", "ended")


def sample(decoder, *, prompts=MANY, seed=4, **changes):
    settings = {"max_new_tokens": 12, "temperature": 0.7}
    device = decoder.lm.device if isinstance(decoder, Decoder) else decoder.device
    return generate(decoder, make_tokenizer(), prompts, generator=seeded_generator(seed, device), **(settings | changes))


def assert_same_responses(found, expected):
    """The same tokens; log-probabilities up to the rounding of float32."""
    for name in FIELDS:
        if name != "log_probs":
            assert torch.equal(getattr(found, name), getattr(expected, name)), name
    assert_close(found.log_probs, expected.log_probs, atol=1e-5, rtol=0)


# The cache ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"top_k": 3}, {"top_p": 0.6}], ids=str)
def test_a_cache_of_fixed_length_samples_what_a_growing_one_does(lm, device, options):
    lm = add_to_logits(lm.to(device), t1=1.0)
    expected, found = sample(lm, **options), sample(Decoder(lm, decoding="static"), **options)
    assert_same_responses(found, expected)
    assert not expected.prompt_mask.all(), "some prompts must be padded"
    assert not expected.mask.all(), "some responses must end before the others"


def test_nothing_of_the_batch_before_stays_in_the_cache(lm):
    """The second and third batch have the shapes of a batch before; the memory is the same."""
    decoder = Decoder(lm, decoding="static")
    for prompts in (MANY, MANY[::-1], OTHERS, [PROMPTS[1]] * len(MANY), OTHERS[::-1], MANY):
        assert_same_responses(sample(decoder, prompts=prompts), sample(lm, prompts=prompts))
    first, second = (decoder.empty_cache(len(MANY), 17) for _ in range(2))
    assert first is second


@pytest.mark.parametrize(("words", "new", "context"), [(28, 4, 32), (1, 31, 32), (30, 10, 40), (33, 5, 40), (30, 3, 64)])
def test_a_cache_reaches_to_the_end_of_the_context(words, new, context):
    """Its length is rounded up to few different ones, but a model has no positions beyond its context."""
    lm = add_to_logits(make_lm("gpt2", n_positions=context), t1=-1e9)
    decoder = Decoder(lm, decoding="static")
    prompts = ["a b c " * (words // 3) + "d " * (words % 3), "e"]
    found = sample(decoder, prompts=prompts, max_new_tokens=new)
    assert_same_responses(found, sample(lm, prompts=prompts, max_new_tokens=new))
    assert found.tokens.shape == (2, new)
    length = decoder.empty_cache(2, words + new).get_max_length()
    assert words + new <= length <= context
    assert length % CACHE_STEP == 0 or length == context


def test_a_growing_cache_starts_from_nothing(gpt2):
    assert Decoder(gpt2).empty_cache(4, 17) is None


# The number of finish tests -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("decoding", ["dynamic", "static"])
@pytest.mark.parametrize("every", [2, 8, 99])
def test_fewer_finish_tests_give_the_same_responses_to_the_last_bit(gpt2, every, decoding):
    add_to_logits(gpt2, t1=3.0)
    widths, calls = set(), []
    gpt2.register_forward_pre_hook(lambda module, inputs: calls.append(1))
    for seed in range(8):
        responses = []
        for finish_test_every in (1, every):
            calls.clear()
            decoder = Decoder(gpt2, decoding=decoding, finish_test_every=finish_test_every)
            responses.append(sample(decoder, max_new_tokens=20, seed=seed))
        for name in FIELDS:
            assert torch.equal(*(getattr(x, name) for x in responses)), name
        longest = responses[0].tokens.shape[1]
        assert len(calls) == min(20, math.ceil(longest / every) * every)
        widths.add(longest)
    assert len(widths) > 3
    assert max(widths) < 20


def test_when_all_end_at_once_the_response_is_one_token_wide(gpt2):
    add_to_logits(gpt2, t1=50.0)
    found = sample(Decoder(gpt2, finish_test_every=8))
    assert found.tokens.tolist() == [[EOS]] * len(MANY)
    assert found.ended.all()


# A copy in another precision ------------------------------------------------------------------------------------------------


def rounded(lm):
    return [parameter.detach().to(torch.bfloat16) for parameter in lm.parameters()]


def test_the_copy_is_rounded_and_the_model_stays_as_it_was(lm):
    before = {name: x.clone() for name, x in lm.state_dict().items()}
    decoder = Decoder(lm.train(), dtype=torch.bfloat16)
    assert decoder.model is not lm
    assert all(torch.equal(a, b) for a, b in zip(decoder.model.parameters(), rounded(lm), strict=True))
    assert not any(parameter.requires_grad for parameter in decoder.model.parameters())
    assert not any(module.training for module in decoder.model.modules())
    assert all(parameter.requires_grad and parameter.dtype == torch.float32 for parameter in lm.parameters())
    assert lm.training
    for (name, mine), theirs in zip(decoder.model.named_buffers(), lm.buffers(), strict=True):
        assert torch.equal(mine, theirs), f"{name}: the angles of rotary positions must keep their digits"
    assert all(torch.equal(x, before[name]) for name, x in lm.state_dict().items())


def test_a_refresh_brings_the_copy_up_to_date_in_the_same_memory(lm):
    """A CUDA graph reads the addresses that it was recorded with."""
    decoder = Decoder(lm, dtype=torch.bfloat16)
    addresses = [parameter.data_ptr() for parameter in decoder.model.parameters()]
    stale = rounded(lm)
    with torch.no_grad():
        for parameter in lm.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=seeded_generator(7))
    assert all(torch.equal(a, b) for a, b in zip(decoder.model.parameters(), stale, strict=True)), "as old as the last refresh"
    decoder.refresh()
    assert all(torch.equal(a, b) for a, b in zip(decoder.model.parameters(), rounded(lm), strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(decoder.model.parameters(), stale, strict=True))
    assert [parameter.data_ptr() for parameter in decoder.model.parameters()] == addresses
    assert_same_responses(sample(decoder), sample(Decoder(lm, dtype=torch.bfloat16)))


def test_a_tied_head_is_tied_in_the_copy_too(gpt2):
    copy = Decoder(gpt2, dtype=torch.bfloat16).model
    assert copy.lm_head.weight is copy.transformer.wte.weight


@pytest.mark.parametrize("dtype", [None, torch.float32])
def test_without_another_precision_there_is_no_copy(gpt2, dtype):
    decoder = Decoder(gpt2, dtype=dtype)
    assert decoder.model is gpt2
    before = {name: x.clone() for name, x in gpt2.state_dict().items()}
    decoder.refresh()
    assert all(torch.equal(x, before[name]) for name, x in gpt2.state_dict().items())


@pytest.mark.parametrize("decoding", ["dynamic", "static"])
def test_samples_of_the_copy_have_the_copys_log_probs_and_nearly_the_models(lm, device, decoding):
    """Float32 numbers, of the distribution that was sampled from, temperature included; the model's up to bfloat16's rounding."""
    lm = lm.to(device)
    decoder = Decoder(lm, dtype=torch.bfloat16, decoding=decoding)
    found = sample(decoder)
    assert found.log_probs.dtype == torch.float32
    assert (found.log_probs[~found.mask] == 0).all()
    of_copy = sequence_log_probs(decoder.model, found, temperature=0.7)[found.mask]
    of_model = sequence_log_probs(lm, found, temperature=0.7).detach()[found.mask]
    stored = found.log_probs[found.mask]
    assert (stored - of_copy).abs().mean() < 1e-2
    assert 1e-4 < (stored - of_model).abs().mean() < 1e-2
    other = sequence_log_probs(lm, found).detach()[found.mask]
    assert (stored - other).abs().mean() > 0.1, "the temperature must matter"
    prompt, response = texts_as_tokens(found)[0]
    expected = plain_log_probs(lm, prompt, response, temperature=0.7).detach().to(stored)
    assert_close(found.log_probs[0, : len(response)], expected, atol=5e-2, rtol=0)


# The race -------------------------------------------------------------------------------------------------------------------


def draws(logits, generator, warpers=()):
    """Tokens [B] that `sample_next` draws from logits [B, V]."""
    lm = lambda **inputs: SimpleNamespace(logits=logits[:, None], past_key_values=None)  # noqa: E731
    noise = torch.empty_like(logits).exponential_(generator=generator)
    return sample_next(lm, None, None, None, None, noise, 1.0, warpers)[0].squeeze(1)


@pytest.mark.parametrize("V", [2, 10, 513, 50_257])
def test_the_race_is_won_by_the_token_that_multinomial_draws(V):
    """Draw for draw from the same generator state, so that results of earlier versions stand."""
    logits = 3.0 * torch.randn(8, V, generator=seeded_generator(1))
    ours, theirs = seeded_generator(2), seeded_generator(2)
    for _ in range(10):
        assert torch.equal(draws(logits, ours), torch.multinomial(torch.softmax(logits, -1), 1, generator=theirs).squeeze(1))
    assert torch.equal(ours.get_state(), theirs.get_state())


def test_responses_are_those_of_a_plain_loop_around_multinomial(lm):
    """No cache, no padding, each text by itself: what `generate` would be if time did not matter."""
    found, generator = sample(lm), seeded_generator(4)
    rows = [(prompt, []) for prompt, _ in texts_as_tokens(found)]
    for _ in range(found.tokens.shape[1]):
        with torch.no_grad():
            logits = torch.stack([lm(input_ids=torch.tensor([prompt + response])).logits[0, -1] for prompt, response in rows])
        drawn = torch.multinomial(torch.softmax(logits / 0.7, -1), 1, generator=generator)
        for (_, response), token in zip(rows, drawn.flatten().tolist(), strict=True):
            response.append(token)
    cut = [response[: response.index(EOS) + 1] if EOS in response else response for _, response in rows]
    assert [response for _, response in texts_as_tokens(found)] == cut


@pytest.mark.parametrize("warpers", [(), (TopKLogitsWarper(4),)], ids=["all", "top 4"])
def test_the_race_is_won_as_often_as_the_probabilities_say(warpers):
    """200,000 draws by chi-square; what has probability 0 never wins, what has nearly 1 nearly always does."""
    p = np.array([0.35, 0.3, 0.2, 0.1, 0.04, 0.009, 0.001, 0.0])
    logits = torch.tensor(p).log().float().expand(20_000, 8)
    generator = seeded_generator(3)
    counts = sum(torch.bincount(draws(logits, generator, warpers), minlength=8) for _ in range(10)).numpy()
    expected = p.copy()
    expected[4 if warpers else 7 :] = 0.0
    expected *= 200_000 / expected.sum()
    possible = expected > 0
    assert (counts[~possible] == 0).all()
    chi_square = ((counts - expected)[possible] ** 2 / expected[possible]).sum()
    freedom = possible.sum() - 1
    assert chi_square < freedom + 4.0 * np.sqrt(2 * freedom)


# The compiler ---------------------------------------------------------------------------------------------------------------


def test_the_compiled_step_samples_what_the_others_do_and_is_compiled_once(gpt2, graphs):
    """Batches of one size and of nearly one length: one graph for all, without a break, whatever their prompts."""
    decoder, plain = (Decoder(gpt2, dtype=torch.bfloat16, decoding=decoding) for decoding in ("compiled", "static"))
    for prompts in (MANY, [PROMPTS[3]] * len(MANY), [OTHERS[1]] * len(MANY), MANY[::-1]):
        assert_same_responses(sample(decoder, prompts=prompts), sample(plain, prompts=prompts))
    assert len(graphs) == 1
    with torch.no_grad():
        for parameter in gpt2.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=seeded_generator(7))
    decoder.refresh()
    plain.refresh()
    assert_same_responses(sample(decoder), sample(plain))
    assert len(graphs) == 1
    sample(decoder, prompts=OTHERS)
    assert len(graphs) == 2, "another batch size is another graph"


@pytest.mark.verify
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch's inductor needs a C++ compiler")
@pytest.mark.filterwarnings("ignore")  # inductor's own
@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_the_compiled_step_samples_what_the_others_do_with_the_default_compiler(name, device, dtype):
    torch.compiler.reset()
    lm = make_lm(name).to(device)
    decoder, plain = Decoder(lm, dtype=dtype, decoding="compiled"), Decoder(lm, dtype=dtype, decoding="static")
    if dtype is None:
        for _ in range(3):  # on a GPU: warmed up, recorded, replayed
            assert_same_responses(sample(decoder), sample(plain))
    else:  # fused operations round less often
        mean = (sequence_log_probs(plain.model, found := sample(decoder), temperature=0.7) - found.log_probs)[found.mask].abs().mean()
        assert mean < 1e-2


@needs_cuda
@pytest.mark.filterwarnings("ignore")  # inductor's own
def test_a_cuda_graph_replays_what_the_plain_step_does(gpt2):
    """Float32 without TF32: the same tokens, also after the weights have moved under the graph."""
    torch.compiler.reset()
    lm = gpt2.to("cuda")
    decoder = Decoder(lm, decoding="compiled", finish_test_every=8)
    for seed in range(6):  # warmed up, recorded, replayed
        assert_same_responses(sample(decoder, seed=seed), sample(lm, seed=seed))
        with torch.no_grad():
            for parameter in lm.parameters():
                parameter.mul_(1.05)  # in place, as an optimiser does


# Bad input ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"decoding": "fast"}, "decoding must be one of dynamic, static, compiled, got 'fast'"),
        ({"decoding": None}, "decoding must be one of dynamic, static, compiled, got None"),
        ({"decoding": True}, "decoding must be one of"),
        ({"dtype": "bfloat16"}, "dtype must be a floating-point dtype or None, got str 'bfloat16'"),
        ({"dtype": torch.int64}, "dtype must be a floating-point dtype or None, got dtype torch.int64"),
        ({"dtype": 16}, "dtype must be a floating-point dtype or None"),
        ({"finish_test_every": 0}, "finish_test_every must be an int of at least 1, got int 0"),
        ({"finish_test_every": 2.0}, "finish_test_every must be an int of at least 1"),
        ({"finish_test_every": True}, "finish_test_every must be an int of at least 1"),
    ],
)
def test_a_bad_setting_is_named(gpt2, changes, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        Decoder(gpt2, **changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"prompts": []}, "prompts must be a non-empty list"),
        ({"max_new_tokens": 0}, "max_new_tokens must be an int"),
        ({"prompts": ["a " * 31, "b"]}, "prompts must leave room for max_new_tokens"),
        ({"top_k": 0}, "top_k must be an int"),
    ],
)
@pytest.mark.parametrize("decoding", ["dynamic", "static"])
def test_what_generate_refuses_it_refuses_from_a_decoder_too(gpt2, decoding, changes, message):
    with pytest.raises(ValueError, match=message):
        sample(Decoder(gpt2, dtype=torch.bfloat16, decoding=decoding), **changes)


def test_a_model_that_gives_nan_is_noticed_in_a_decoder_too(gpt2):
    decoder = Decoder(gpt2, decoding="static")
    with torch.no_grad():
        gpt2.transformer.ln_f.bias[3] = float("nan")
    with pytest.raises(ValueError, match="logits must be finite"):
        sample(decoder)


def test_a_policy_is_decoded_through_its_language_model(gpt2):
    assert_same_responses(sample(Decoder(PolicyWithValue(gpt2).lm, decoding="static")), sample(PolicyWithValue(gpt2)))
