"""Sampling responses: batched, with a key-value cache, and with the log-probability of each token as it was sampled."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase, TopKLogitsWarper, TopPLogitsWarper

from ppo_edu.core.validation import check_count, check_logits, check_positive, describe, is_number
from ppo_edu.lm.models import PolicyWithValue, check_vocabulary, language_model
from ppo_edu.lm.sequences import Responses, encode_prompts, position_ids


@torch.no_grad()
def generate(
    policy: PreTrainedModel | PolicyWithValue,
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
    check_vocabulary(policy, tokenizer)
    lm = language_model(policy)
    prompt_tokens, prompt_mask = encode_prompts(tokenizer, prompts, lm.device)
    check_context(lm, prompt_tokens.shape[1], max_new_tokens)

    B, P = prompt_tokens.shape
    attention_mask = torch.cat([prompt_mask, prompt_mask.new_ones(B, max_new_tokens)], dim=1).long()
    positions = position_ids(attention_mask)
    unfinished = torch.ones(B, dtype=torch.bool, device=lm.device)
    inputs, cache = prompt_tokens, None
    columns: list[tuple[Tensor, Tensor, Tensor]] = []  # tokens, mask, log_probs
    was_training = lm.training
    lm.eval()
    try:
        for end in range(P, P + max_new_tokens):
            start = end - inputs.shape[1]
            output = lm(
                input_ids=inputs,
                attention_mask=attention_mask[:, :end],
                position_ids=positions[:, start:end],
                past_key_values=cache,
                use_cache=True,
                logits_to_keep=1,
            )
            cache = output.past_key_values
            logits = output.logits[:, -1].float() / temperature
            check_logits(logits=logits)
            for warper in warpers:
                logits = warper(None, logits)
            log_probs = torch.log_softmax(logits, dim=-1)
            token = torch.multinomial(log_probs.exp(), 1, generator=generator)
            log_prob = log_probs.gather(1, token).squeeze(1)
            inputs = torch.where(unfinished[:, None], token, tokenizer.pad_token_id)
            columns.append((inputs.squeeze(1), unfinished, torch.where(unfinished, log_prob, 0.0)))
            unfinished = unfinished & (token.squeeze(1) != tokenizer.eos_token_id)
            if not unfinished.any():
                break
    finally:
        lm.train(was_training)
    tokens, mask, log_probs = (torch.stack(column, dim=1) for column in zip(*columns, strict=True))
    return Responses(prompt_tokens, prompt_mask, tokens, mask, log_probs, ~unfinished)


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


def _warpers(top_k: int | None, top_p: float | None) -> list[TopKLogitsWarper | TopPLogitsWarper]:
    warpers: list[TopKLogitsWarper | TopPLogitsWarper] = []
    if top_k is not None:
        check_count(top_k=top_k)
        warpers.append(TopKLogitsWarper(top_k))
    if top_p is not None:
        if not is_number(top_p) or not 0.0 < top_p <= 1.0:
            raise ValueError(f"top_p must be a number above 0 and at most 1, got {describe(top_p)}")
        warpers.append(TopPLogitsWarper(float(top_p)))
    return warpers
