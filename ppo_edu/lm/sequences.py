"""Prompts and responses as tensors: one layout for sampling, supervised training, scoring and PPO.

A batch is [left-padded prompt | right-padded response]: every response starts in the same column, and its end token
belongs to it. What counts is said by masks, made from lengths, never by comparing tokens with the pad token: where a
tokenizer pads with its end token, the end must not vanish with the padding.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from ppo_edu.core.validation import check_flag, describe


@dataclass(frozen=True)
class Sequences:
    """B prompts with their responses, as tokens."""

    prompt_tokens: Tensor  # [B, P] int64, left-padded
    prompt_mask: Tensor  # [B, P] bool
    tokens: Tensor  # [B, T] int64, right-padded
    mask: Tensor  # [B, T] bool: the response's tokens, its end token included, nothing after

    def __post_init__(self) -> None:
        for name, tokens, mask in (("prompt_", self.prompt_tokens, self.prompt_mask), ("", self.tokens, self.mask)):
            if not isinstance(tokens, Tensor) or tokens.dtype != torch.int64 or tokens.ndim != 2:
                raise ValueError(f"{name}tokens must be an int64 tensor of shape [sequences, tokens], got {describe(tokens)}")
            check_flag(tokens.shape, tokens.device, **{f"{name}mask": mask})
        if len(self.tokens) != len(self.prompt_tokens):
            raise ValueError(f"tokens must be as many sequences as prompt_tokens ({len(self.prompt_tokens)}), got {len(self.tokens)}")

    @property
    def input_ids(self) -> Tensor:
        """Prompt and response, [B, P + T]."""
        return torch.cat([self.prompt_tokens, self.tokens], dim=1)

    @property
    def attention_mask(self) -> Tensor:
        """Where a token stands that may be attended to, [B, P + T] bool."""
        return torch.cat([self.prompt_mask, self.mask], dim=1)

    @property
    def lengths(self) -> Tensor:
        """Tokens of each response, [B]."""
        return self.mask.sum(1)

    def rows(self, index: Tensor) -> "Sequences":
        """The sequences at these positions."""
        return replace(self, **{field.name: getattr(self, field.name)[index] for field in fields(self)})

    def trimmed(self) -> "Sequences":
        """The same without the columns that are padding in every row."""
        return self.cropped(int(self.prompt_mask.sum(1).max()), int(self.lengths.max()))

    def cropped(self, prompt_width: int, width: int) -> "Sequences":
        """The last `prompt_width` columns of the prompts, the first `width` of the responses: for widths that cut padding alone."""
        columns = {f.name: getattr(self, f.name) for f in fields(self) if getattr(self, f.name).ndim == 2}
        start = self.prompt_tokens.shape[1] - prompt_width
        cut = {name: x[:, start:] if name.startswith("prompt_") else x[:, :width] for name, x in columns.items()}
        return replace(self, **{name: x.contiguous() for name, x in cut.items()})  # to compiled code another stride is another shape

    def __len__(self) -> int:
        return len(self.tokens)


@dataclass(frozen=True)
class Responses(Sequences):
    """Sequences that a policy sampled."""

    log_probs: Tensor  # [B, T] float32, of the distribution each token was sampled from; 0 where the mask is False
    ended: Tensor  # [B] bool: the end token was sampled; otherwise the response was cut at max_new_tokens


def position_ids(attention_mask: Tensor) -> Tensor:
    """Positions that count real tokens only, so that left padding shifts nothing: [B, L] int64."""
    return (attention_mask.long().cumsum(1) - 1).clamp(min=0)


def check_tokenizer(tokenizer: PreTrainedTokenizerBase) -> None:
    """A tokenizer needs an end token, to stop, and a pad token, to fill up."""
    for name in ("eos_token", "pad_token"):
        if getattr(tokenizer, f"{name}_id") is None:
            raise ValueError(f"tokenizer must have its {name} set to a token of its vocabulary, got none")


def check_prompts(prompts: Sequence[str]) -> None:
    """Prompts are a non-empty list of non-empty strings."""
    if isinstance(prompts, str) or not isinstance(prompts, Sequence) or len(prompts) == 0:
        raise ValueError(f"prompts must be a non-empty list of strings, got {describe(prompts)[:80]}")
    for i, prompt in enumerate(prompts):
        if not isinstance(prompt, str) or prompt == "":
            raise ValueError(f"prompts[{i}] must be a non-empty string, got {describe(prompt)}")


def encode_prompts(tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str], device: torch.device | str = "cpu") -> tuple[Tensor, Tensor]:
    """Tokens [B, P] int64, left-padded, and their mask [B, P] bool. The tokenizer adds what its model expects (a start token).

    Raises: ValueError for an empty prompt or a tokenizer without pad or end token.
    """
    check_tokenizer(tokenizer)
    check_prompts(prompts)
    encoded = tokenizer(list(prompts))["input_ids"]
    if empty := [i for i, tokens in enumerate(encoded) if not tokens]:
        raise ValueError(f"prompts[{empty[0]}] must have at least one token, got {prompts[empty[0]]!r}")
    tokens, mask = _pad(encoded, tokenizer.pad_token_id, left=True)
    return tokens.to(device), mask.to(device)


def encode(
    tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str], responses: Sequence[str], device: torch.device | str = "cpu"
) -> Sequences:
    """Texts as `Sequences`; each response gets its end token. What supervised training learns from.

    Prompt and response are encoded apart, so the border between them is where generation will find it.
    Raises: ValueError for an empty prompt, a response that is no string or lists of different length.
    """
    check_tokenizer(tokenizer)
    check_prompts(prompts)
    if isinstance(responses, str) or not isinstance(responses, Sequence):
        raise ValueError(f"responses must be a list of strings, got {describe(responses)[:80]}")
    for i, response in enumerate(responses):
        if not isinstance(response, str):
            raise ValueError(f"responses[{i}] must be a string, got {describe(response)}")
    if len(prompts) != len(responses):
        raise ValueError(f"responses must be as many as prompts ({len(prompts)}), got {len(responses)}")
    prompt_tokens, prompt_mask = encode_prompts(tokenizer, prompts, device)
    encoded = tokenizer(list(responses), add_special_tokens=False)["input_ids"]
    tokens, mask = _pad([[*x, tokenizer.eos_token_id] for x in encoded], tokenizer.pad_token_id, left=False)
    return Sequences(prompt_tokens, prompt_mask, tokens.to(device), mask.to(device))


def decode(tokenizer: PreTrainedTokenizerBase, sequences: Sequences) -> list[str]:
    """The responses as text, without their end tokens."""
    texts = []
    for tokens, mask in zip(sequences.tokens.cpu(), sequences.mask.cpu(), strict=True):
        texts.append(tokenizer.decode(tokens[mask], skip_special_tokens=True))
    return texts


def _pad(rows: list[list[int]], pad: int, *, left: bool) -> tuple[Tensor, Tensor]:
    """Rows of tokens as one tensor and its mask."""
    width = max(map(len, rows))
    tokens = torch.full((len(rows), width), pad)
    mask = torch.zeros(len(rows), width, dtype=torch.bool)
    for i, row in enumerate(rows):
        columns = slice(width - len(row), width) if left else slice(0, len(row))
        tokens[i, columns] = torch.tensor(row, dtype=torch.int64)
        mask[i, columns] = True
    return tokens, mask
