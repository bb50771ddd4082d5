"""Language models: any causal LM of transformers, from the hub, a folder or made on the spot; a value head beside it."""

import shutil
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoTokenizer,
    GPT2Config,
    GPT2LMHeadModel,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.modeling_layers import GradientCheckpointingLayer

from ppo_edu.core import entropy_bonus
from ppo_edu.core.validation import check_count, check_finite, check_positive, describe
from ppo_edu.lm.sequences import Sequences, check_tokenizer, position_ids
from ppo_edu.runs import seeded, write_atomically

VALUE_HEAD_NAME = "value_head.safetensors"
VALUE_TRUNK_NAME = "value_trunk"
LOADING_ERRORS = (OSError, ValueError, KeyError, RuntimeError, safetensors.SafetensorError)  # what a bad or missing file raises


def make_gpt2(
    tokenizer: PreTrainedTokenizerBase,
    *,
    layers: int = 2,
    width: int = 128,
    heads: int = 4,
    context: int = 64,
    init_std: float = 0.02,
    seed: int = 0,
) -> GPT2LMHeadModel:
    """A small, untrained GPT-2 for a tokenizer's vocabulary, without dropout.

    `width` must be a multiple of `heads`; `context` is the longest sequence in tokens; `init_std` is the spread of the
    initial weights (0.02 is GPT-2's; narrow models learn sums sooner with 0.1). The caller's random state stays.
    """
    check_count(layers=layers, width=width, heads=heads, context=context)
    check_positive(init_std=init_std)
    if width % heads:
        raise ValueError(f"width must be a multiple of heads ({heads}), got {width}")
    check_tokenizer(tokenizer)
    config = GPT2Config(
        vocab_size=len(tokenizer),
        n_positions=context,
        n_embd=width,
        n_layer=layers,
        n_head=heads,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        initializer_range=init_std,
        bos_token_id=tokenizer.eos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    with seeded(seed):
        return GPT2LMHeadModel(config).eval()


def load_causal_lm(
    name_or_path: str | Path, *, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu"
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A causal LM and its tokenizer, from a local folder or the hub. No code of the repository is run, weights are safetensors only.

    The tokenizer pads on the left. One without a pad token pads with its end token: masks here are made from lengths,
    so the end is not lost.
    Raises: ValueError where there is no such model, no network, no safetensors file, a weight is missing, or the
    tokenizer has no end token or another vocabulary.
    """
    if not isinstance(name_or_path, str | Path) or not str(name_or_path):
        raise ValueError(f"name_or_path must be the name or the folder of a model, got {describe(name_or_path)}")
    try:
        tokenizer = AutoTokenizer.from_pretrained(name_or_path, padding_side="left", trust_remote_code=False)
        lm = load_whole(AutoModelForCausalLM, name_or_path, dtype)
    except LOADING_ERRORS as error:
        place = "the folder" if Path(name_or_path).exists() else "no such folder is here, and the hub (is there a network?)"
        raise ValueError(
            f"name_or_path must name a causal language model with safetensors weights, got {str(name_or_path)!r}; "
            f"{place} gave: {first_line(error)}"
        ) from error
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    check_tokenizer(tokenizer)
    check_vocabulary(lm, tokenizer)
    return lm.to(device).eval(), tokenizer


def load_whole(kind: Any, name_or_path: str | Path, dtype: torch.dtype) -> PreTrainedModel:
    """A model with all its weights from safetensors; transformers would fill in missing ones at random and only log it."""
    model, report = kind.from_pretrained(name_or_path, dtype=dtype, use_safetensors=True, trust_remote_code=False, output_loading_info=True)
    if missing := sorted(report["missing_keys"]):
        raise ValueError(f"the weights lack {missing[0]} ({len(missing)} such)")
    return model


def first_line(error: Exception) -> str:
    """What an error says, in one line."""
    return str(error).strip().split("\n")[0]


class PolicyWithValue(nn.Module):
    """A causal LM that also values states: pi(token | text so far) and V(text so far).

    With `value_model=None` a linear head sits on the LM's own trunk: cheap, and both tasks shape the trunk. Otherwise it
    sits on the trunk of `value_model`, a second causal LM, which is trained with it. The head starts at zero: before
    training, every value is 0.
    """

    def __init__(self, lm: PreTrainedModel, value_model: PreTrainedModel | None = None) -> None:
        super().__init__()
        if value_model is not None and value_model.base_model is lm.base_model:
            raise ValueError("value_model must be another model than lm; for a shared trunk leave it out")
        if value_model is not None and value_model.config.vocab_size < lm.config.vocab_size:
            raise ValueError(f"value_model must have lm's vocabulary of {lm.config.vocab_size}, got {value_model.config.vocab_size}")
        self.lm = lm
        self.value_trunk = None if value_model is None else value_model.base_model
        trunk = lm if self.value_trunk is None else self.value_trunk
        self.value_head = nn.Linear(trunk.config.hidden_size, 1, device=trunk.device, dtype=trunk.dtype)
        nn.init.zeros_(self.value_head.weight)
        nn.init.zeros_(self.value_head.bias)

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        return self.value_head.weight.device

    def forward(
        self,
        input_ids: Tensor,  # [B, L] int64
        attention_mask: Tensor | None = None,  # [B, L] bool; None: every token is real
        *,
        last: int = 0,  # only the last so many positions; 0: all
    ) -> tuple[Tensor, Tensor]:
        """Logits [B, L, V] of the next token and values [B, L], at each position (or the `last` ones only)."""
        inputs = model_inputs(input_ids, attention_mask)
        shared = self.value_trunk is None
        output = self.lm(**inputs, use_cache=False, output_hidden_states=shared, logits_to_keep=last)
        hidden = output.hidden_states[-1] if shared else self.value_trunk(**inputs, use_cache=False).last_hidden_state
        with torch.autocast(self.device.type, enabled=False):  # a value keeps its digits whatever the precision of the trunk
            return output.logits, self.value_head(hidden[:, -last:].to(self.value_head.weight.dtype)).squeeze(-1)

    def save_pretrained(self, path: str | Path) -> None:
        """Write a folder that plain transformers loads as a causal LM; the value part lies beside it."""
        path = Path(path)
        self.lm.save_pretrained(path)
        shutil.rmtree(path / VALUE_TRUNK_NAME, ignore_errors=True)  # of a policy saved here before
        if self.value_trunk is not None:
            self.value_trunk.save_pretrained(path / VALUE_TRUNK_NAME)
        head = {name: x.detach().cpu() for name, x in self.value_head.state_dict().items()}
        write_atomically(path / VALUE_HEAD_NAME, safetensors.torch.save(head))

    @classmethod
    def from_pretrained(
        cls, path: str | Path, *, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu"
    ) -> "PolicyWithValue":
        """Read what `save_pretrained` wrote.

        Raises: ValueError where a file is missing or damaged; where it is the value head, `load_causal_lm` reads the rest.
        """
        path = Path(path)
        if not (path / VALUE_HEAD_NAME).is_file():
            raise ValueError(f"path must be a folder written by save_pretrained, got {path}, which holds no {VALUE_HEAD_NAME}")
        try:
            lm = load_whole(AutoModelForCausalLM, path, dtype)
            separate = (path / VALUE_TRUNK_NAME).is_dir()
            policy = cls(lm, load_whole(AutoModel, path / VALUE_TRUNK_NAME, dtype) if separate else None)
            policy.value_head.load_state_dict(safetensors.torch.load_file(path / VALUE_HEAD_NAME))
        except LOADING_ERRORS as error:
            raise ValueError(f"path must be a folder written by save_pretrained, got {path}: {first_line(error)}") from error
        return policy.to(device).eval()


def model_inputs(input_ids: Tensor, attention_mask: Tensor | None) -> dict[str, Tensor]:
    """What a transformers model is called with: positions are given, since with left padding a model's own would be wrong."""
    if attention_mask is None:
        attention_mask = torch.ones_like(input_ids, dtype=torch.bool)
    return {"input_ids": input_ids, "attention_mask": attention_mask.long(), "position_ids": position_ids(attention_mask)}


def language_model(model: PreTrainedModel | PolicyWithValue) -> PreTrainedModel:
    """The causal LM of a policy, or the LM itself."""
    return model.lm if isinstance(model, PolicyWithValue) else model


def response_logits(
    model: PreTrainedModel | PolicyWithValue,
    sequences: Sequences,
    *,
    temperature: float = 1.0,
    dtype: torch.dtype = torch.float32,
) -> tuple[Tensor, Tensor | None]:
    r"""Logits [B, T, V] (float32, divided by the temperature) of each response token, and values [B, T] (float32) where the model has them.

    Row t is computed from the text *before* token t: position P + t - 1 of the input. The logits at prompt positions are
    never computed, and the last token, whose successor nobody asks for, is not read at all.
    `dtype`: what the model multiplies in (torch's autocast); weights, log-softmax, values and losses stay in float32.
    """
    check_positive(temperature=temperature)
    T = sequences.tokens.shape[1]
    input_ids, attention_mask = sequences.input_ids[:, :-1], sequences.attention_mask[:, :-1]
    with torch.autocast(input_ids.device.type, dtype=dtype, enabled=dtype != torch.float32):
        if isinstance(model, PolicyWithValue):
            logits, values = model(input_ids, attention_mask, last=T)
        else:
            logits, values = model(**model_inputs(input_ids, attention_mask), use_cache=False, logits_to_keep=T).logits, None
    logits = logits.float()
    if temperature != 1.0:
        logits = logits / temperature
    return logits, None if values is None else values.float()


def token_log_probs(logits: Tensor, tokens: Tensor, mask: Tensor) -> Tensor:
    """log pi of each token [B, T] from logits [B, T, V]; 0 where the mask is False."""
    log_probs = torch.log_softmax(logits, dim=-1).gather(-1, tokens.unsqueeze(-1)).squeeze(-1)
    check_finite(mask, log_probs=log_probs)
    return torch.where(mask, log_probs, 0.0)


def sequence_log_probs(
    model: PreTrainedModel | PolicyWithValue, sequences: Sequences, *, temperature: float = 1.0, dtype: torch.dtype = torch.float32
) -> Tensor:
    r"""Log-probabilities [B, T] of the response tokens, log pi(y_t | x, y_1 .. y_{t-1}); 0 on padding. Keeps autograd.

    Their sum over t is the log-probability of the response, its end token included. `dtype` as in `response_logits`.
    """
    logits, _ = response_logits(model, sequences, temperature=temperature, dtype=dtype)
    return token_log_probs(logits, sequences.tokens, sequences.mask)


def log_probs_and_values(
    policy: PolicyWithValue,
    sequences: Sequences,
    *,
    temperature: float = 1.0,
    dtype: torch.dtype = torch.float32,
    with_entropy: bool = False,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """One pass: log pi of each response token [B, T], 0 on padding; the value of the text before it [B, T]; and, where asked
    for, the policy's mean entropy over the real tokens. Keeps autograd. What sampling is scored with and training learns from."""
    logits, values = response_logits(policy, sequences, temperature=temperature, dtype=dtype)
    log_probs = token_log_probs(logits, sequences.tokens, sequences.mask)
    return log_probs, values, entropy_bonus(logits.detach(), sequences.mask) if with_entropy else None


@contextmanager
def gradient_checkpointing(model: nn.Module, enabled: bool = True) -> Iterator[None]:
    """Keep only each layer's input for the backward pass and compute the rest again: less memory, about a fifth more operations.

    Raises: ValueError for a model whose layers transformers does not mark as fit for it.
    """
    layers = [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)] if enabled else []
    if enabled and not layers:
        raise ValueError("gradient_checkpointing must be False for a model without layers that can be checkpointed")
    for layer in layers:  # not transformers' own switch: that one works in training mode only, which means dropout
        layer.forward = partial(checkpoint, layer.forward, use_reentrant=False, preserve_rng_state=False)
    try:
        yield
    finally:
        for layer in layers:
            del layer.forward  # the class's own again


def has_adapter(lm: nn.Module) -> bool:
    """Whether this is a model of peft: frozen weights with a small trained addition."""
    return hasattr(lm, "disable_adapter")


def without_adapter(lm: nn.Module) -> AbstractContextManager:
    """Inside this block a model of peft is the model that it started from; any other model is itself."""
    return lm.disable_adapter() if has_adapter(lm) else nullcontext()


def check_vocabulary(model: PreTrainedModel | PolicyWithValue, tokenizer: PreTrainedTokenizerBase) -> None:
    """Model and tokenizer must speak the same vocabulary. Models often pad theirs with a few unused rows: 2 % are let pass."""
    rows, words = language_model(model).config.vocab_size, len(tokenizer)
    if not words <= rows <= words / 0.98:
        raise ValueError(f"tokenizer must have the model's vocabulary of {rows} tokens (or up to 2 % fewer), got {words}")
