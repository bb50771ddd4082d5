"""Sampling responses: batched, with a key-value cache, and with the log-probability of each token as it was sampled."""

import copy
import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor
from transformers import Cache, PreTrainedModel, PreTrainedTokenizerBase, StaticCache, TopKLogitsWarper, TopPLogitsWarper

from ppo_edu.core.validation import check_count, check_logits, check_positive, describe, is_number
from ppo_edu.lm.models import PolicyWithValue, check_vocabulary, language_model
from ppo_edu.lm.sequences import Responses, encode_prompts, position_ids

Warper = TopKLogitsWarper | TopPLogitsWarper
Decoding = Literal["dynamic", "static", "compiled"]
DECODINGS = ("dynamic", "static", "compiled")
CACHE_STEP = 32  # static caches have a multiple of so many places: few lengths, so few compilations


class Decoder:
    """A causal LM made ready to sample many batches. What `generate` takes in place of the model.

    `dtype`: sample from a copy of the weights in this precision. A copy, because a token reads every weight once: half the
    bytes, half the time. It is as old as the last `refresh()`. None: the model itself, always up to date.
    `decoding`: "dynamic" lets the key-value cache grow with each token. "static" gives it its full length at once, so that
    shapes and addresses stay, and "compiled" then compiles the step: on a GPU into one CUDA graph that is replayed per
    token, without which a small model waits for Python. All three sample the same tokens, up to rounding.
    `finish_test_every`: tokens between two tests whether all responses ended. Each makes a GPU wait for the CPU.

    Raises: ValueError naming the argument.
    """

    def __init__(
        self,
        lm: PreTrainedModel,
        *,
        dtype: torch.dtype | None = None,
        decoding: Decoding = "dynamic",
        finish_test_every: int = 1,
    ) -> None:
        check_count(finish_test_every=finish_test_every)
        if decoding not in DECODINGS:
            raise ValueError(f"decoding must be one of {', '.join(DECODINGS)}, got {decoding!r}")
        if dtype is not None and not (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
            raise ValueError(f"dtype must be a floating-point dtype or None, got {describe(dtype)}")
        self.lm = lm
        self.finish_test_every = finish_test_every
        self.static = decoding != "dynamic"
        self.model = lm if dtype in (None, lm.dtype) else cast_copy(lm, dtype)
        self.model_step = torch.compile(sample_next, mode="reduce-overhead", dynamic=False) if decoding == "compiled" else sample_next
        self._caches: dict[tuple[int, int], StaticCache] = {}

    @torch.no_grad()
    def refresh(self) -> None:
        """Bring the copy up to date with the model's weights, in place."""
        if self.model is not self.lm:
            torch._foreach_copy_(list(self.model.parameters()), list(self.lm.parameters()))

    def empty_cache(self, batch: int, length: int) -> StaticCache | None:
        """A cache for sequences of up to `length` tokens; None where it grows by itself. Memory is kept from call to call."""
        if not self.static:
            return None
        length = min(math.ceil(length / CACHE_STEP) * CACHE_STEP, context_length(self.lm))
        if (batch, length) in self._caches:
            self._caches[batch, length].reset()
        else:
            self._caches[batch, length] = StaticCache(config=self.model.config, max_cache_len=length)
        return self._caches[batch, length]


@torch.no_grad()
def generate(
    policy: PreTrainedModel | PolicyWithValue | Decoder,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    *,
    max_new_tokens: int,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    generator: torch.Generator | None = None,
) -> Responses:
    """Sample one response to each prompt; it ends with the end token or is cut at `max_new_tokens`.

    `temperature` divides the logits. `top_k` and `top_p` then restrict the choice; they are for looking at finished models:
    after an update a token sampled so may lie outside the new set, and its ratio would be 0. The log-probabilities are
    those of the distribution that was sampled from, whatever the settings. Dropout is off while sampling.
    The same generator state gives the same responses.

    Raises: ValueError for an empty prompt, one too long for the model's context, a tokenizer that does not fit the model,
    settings out of range, or a model whose logits are NaN.
    """
    check_count(max_new_tokens=max_new_tokens)
    check_positive(temperature=temperature)
    warpers = _warpers(top_k, top_p)
    decoder = policy if isinstance(policy, Decoder) else Decoder(language_model(policy))
    lm = decoder.model
    check_vocabulary(lm, tokenizer)
    prompt_tokens, prompt_mask = encode_prompts(tokenizer, prompts, lm.device)
    check_context(lm, prompt_tokens.shape[1], max_new_tokens)

    B, P = prompt_tokens.shape
    cache = decoder.empty_cache(B, P + max_new_tokens)
    length = P + max_new_tokens if cache is None else cache.get_max_length()
    attention_mask = torch.cat([prompt_mask, prompt_mask.new_ones(B, length - P)], dim=1).long()
    positions = position_ids(attention_mask)
    noise = torch.empty(B, lm.config.vocab_size, device=lm.device)
    unfinished = torch.ones(B, dtype=torch.bool, device=lm.device)
    inputs = prompt_tokens
    columns: list[tuple[Tensor, Tensor, Tensor]] = []  # tokens, mask, log_probs
    was_training = lm.training
    lm.eval()
    try:
        for end in range(P, P + max_new_tokens):
            step = sample_next if end == P else decoder.model_step  # the prompt, then one token at a time
            token, log_prob, cache = step(
                lm,
                inputs,
                attention_mask if decoder.static else attention_mask[:, :end],
                positions[:, end - inputs.shape[1] : end],
                cache,
                noise.exponential_(generator=generator),
                temperature,
                warpers,
            )
            inputs = torch.where(unfinished[:, None], token, tokenizer.pad_token_id)
            columns.append((inputs.squeeze(1), unfinished, torch.where(unfinished, log_prob, 0.0)))
            unfinished = unfinished & (inputs.squeeze(1) != tokenizer.eos_token_id)
            if len(columns) % decoder.finish_test_every == 0 and not unfinished.any():
                break
    finally:
        if was_training:
            lm.train()
    tokens, mask, log_probs = (torch.stack(column, dim=1) for column in zip(*columns, strict=True))
    T = int(mask.sum(1).max())  # the last columns may all be padding
    return Responses(prompt_tokens, prompt_mask, tokens[:, :T], mask[:, :T], log_probs[:, :T], ~unfinished)


def sample_next(
    lm: PreTrainedModel,
    inputs: Tensor,  # [B, L] int64: the prompt, or the last token alone
    attention_mask: Tensor,  # [B, cache length]
    positions: Tensor,  # [B, L]
    cache: Cache | None,
    noise: Tensor,  # [B, V] independent samples of Exp(1)
    temperature: float,
    warpers: Sequence[Warper],
) -> tuple[Tensor, Tensor, Cache]:
    r"""Sample the next token. Returns it [B, 1], its log-probability [B] and the cache.

    Token argmin_v noise_v / pi(v) has distribution pi: of independent exponential waiting times with rates pi(v), the one of
    rate pi(v) is first with probability pi(v). It is what `torch.multinomial` does, without its look at the values, for which
    a GPU would have to wait.
    """
    output = lm(
        input_ids=inputs, attention_mask=attention_mask, position_ids=positions, past_key_values=cache, use_cache=True, logits_to_keep=1
    )
    logits = output.logits[:, -1].float() / temperature
    check_logits(logits=logits)
    for warper in warpers:
        logits = warper(None, logits)
    log_probs = torch.log_softmax(logits, dim=-1)
    token = (log_probs.exp() / noise).argmax(dim=-1, keepdim=True)
    return token, log_probs.gather(1, token).squeeze(1), output.past_key_values


def cast_copy(lm: PreTrainedModel, dtype: torch.dtype) -> PreTrainedModel:
    """A copy with its weights in another precision; buffers, such as the angles of rotary positions, keep theirs."""
    model = copy.deepcopy(lm).eval().requires_grad_(False)
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype)
    return model


def context_length(lm: PreTrainedModel) -> float:
    """The longest sequence that a model reads, in tokens; infinite where it names no limit."""
    return getattr(lm.config, "max_position_embeddings", None) or math.inf


def check_context(lm: PreTrainedModel, prompt_length: int, max_new_tokens: int) -> None:
    """The longest prompt and its response must fit into the model's context."""
    context = context_length(lm)
    if prompt_length + max_new_tokens > context:
        raise ValueError(
            f"prompts must leave room for max_new_tokens in the model's context of {context} tokens, "
            f"got a prompt of {prompt_length} tokens and max_new_tokens {max_new_tokens}"
        )


def _warpers(top_k: int | None, top_p: float | None) -> list[Warper]:
    warpers: list[Warper] = []
    if top_k is not None:
        check_count(top_k=top_k)
        warpers.append(TopKLogitsWarper(top_k))
    if top_p is not None:
        if not is_number(top_p) or not 0.0 < top_p <= 1.0:
            raise ValueError(f"top_p must be a number above 0 and at most 1, got {describe(top_p)}")
        warpers.append(TopPLogitsWarper(float(top_p)))
    return warpers
