"""What the tests of `ppo_edu.lm` share: a tokenizer of ten words and tiny random models of every architecture that speak it."""

from typing import Any

import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from torch import Tensor
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from ppo_edu.lm.sequences import Sequences
from ppo_edu.runs import seeded

needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
DEVICES = ["cpu", pytest.param("cuda", marks=needs_cuda)]
WORDS = ("a", "b", "c", "d", "e", "f", "g")
PROMPTS = ("a", "b c d a e", "c c", "d e f", "g g a b", "f")  # of different length: all but one are padded
TWO_WORDS_AT_LEAST = ("b c", "b c d a e", "c c", "d e f", "g g a b", "f e")  # a compiler treats a width of 1 as a case of its own

GPT2 = {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 32, "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
COMMON = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "max_position_embeddings": 32}
ARCHITECTURES: dict[str, tuple[type, type[PreTrainedModel], dict[str, Any]]] = {
    "gpt2": (GPT2Config, GPT2LMHeadModel, GPT2),
    "llama": (LlamaConfig, LlamaForCausalLM, COMMON | {"num_key_value_heads": 1}),
    "qwen2": (Qwen2Config, Qwen2ForCausalLM, COMMON | {"num_key_value_heads": 1}),
    "qwen3": (Qwen3Config, Qwen3ForCausalLM, COMMON | {"num_key_value_heads": 1, "head_dim": 8}),
    "gpt_neox": (GPTNeoXConfig, GPTNeoXForCausalLM, COMMON | {"rotary_pct": 0.5}),
}


def make_tokenizer(words: tuple[str, ...] = WORDS, **special: str | None) -> PreTrainedTokenizerFast:
    """One token per word; <pad> is 0, <eos> 1, <unk> 2. `pad_token=None` or "<eos>" and the like change the special tokens."""
    names = ("<pad>", "<eos>", "<unk>", *words)
    model = Tokenizer(WordLevel({word: i for i, word in enumerate(names)}, unk_token="<unk>"))
    model.pre_tokenizer = WhitespaceSplit()
    tokens = {"pad_token": "<pad>", "eos_token": "<eos>", "unk_token": "<unk>"} | special
    return PreTrainedTokenizerFast(tokenizer_object=model, padding_side="left", model_input_names=["input_ids", "attention_mask"], **tokens)


def make_lm(architecture: str, *, vocab_size: int = 3 + len(WORDS), seed: int = 0, noise: float = 0.15, **changes: Any) -> PreTrainedModel:
    """A tiny random model in eval mode, float32, 16 wide.

    Every parameter is moved by noise: a fresh model's logits are almost flat, its biases 0 and its norms 1, so that a
    wrong position or a forgotten norm would hardly show.
    """
    config_class, model_class, settings = ARCHITECTURES[architecture]
    special = {"bos_token_id": 1, "eos_token_id": 1, "pad_token_id": 0}
    with seeded(seed):
        model = model_class(config_class(vocab_size=vocab_size, **(settings | special | changes)))
        with torch.no_grad():
            for parameter in model.parameters():
                parameter += noise * torch.randn(parameter.shape)
    return model.eval()


def seeded_generator(seed: int = 0, device: torch.device | str = "cpu") -> torch.Generator:
    return torch.Generator(device).manual_seed(seed)


def more_padding(sequences: Sequences, *, left: int, right: int, token: int = 0) -> Sequences:
    """The same texts in a wider batch: `left` more pads before each prompt, `right` more after each response."""

    def widen(x: Tensor, columns: tuple[int, int], value: Any) -> Tensor:
        return torch.nn.functional.pad(x, columns, value=value)

    return Sequences(
        widen(sequences.prompt_tokens, (left, 0), token),
        widen(sequences.prompt_mask, (left, 0), False),
        widen(sequences.tokens, (0, right), token),
        widen(sequences.mask, (0, right), False),
    )


def plain_log_probs(lm: PreTrainedModel, prompt: list[int], response: list[int], *, temperature: float = 1.0) -> Tensor:
    """Log-probabilities of a response, [len(response)] float64, with autograd and with nothing that could go wrong.

    One text by itself, the model called as its documentation says: no padding, no cache, no mask, no positions.
    """
    logits = lm(input_ids=torch.tensor([prompt + response], device=lm.device)).logits[0].double() / temperature
    log_probs = torch.log_softmax(logits, -1)
    return torch.stack([log_probs[len(prompt) + t - 1, token] for t, token in enumerate(response)])


def texts_as_tokens(sequences: Sequences) -> list[tuple[list[int], list[int]]]:
    """Prompt and response of each row as lists of tokens, without any padding."""
    rows = zip(sequences.prompt_tokens, sequences.prompt_mask, sequences.tokens, sequences.mask, strict=True)
    return [(p[p_mask].tolist(), y[y_mask].tolist()) for p, p_mask, y, y_mask in rows]


def all_responses(vocab_size: int, end: int, longest: int) -> list[list[int]]:
    """Every response there is: those that end with the end token, and those cut at `longest` tokens."""
    finished: list[list[int]] = []
    going: list[list[int]] = [[]]
    for _ in range(longest):
        longer = [[*y, token] for y in going for token in range(vocab_size)]
        finished += [y for y in longer if y[-1] == end]
        going = [y for y in longer if y[-1] != end]
    return finished + going


def add_to_logits(lm: PreTrainedModel, **additions: float) -> PreTrainedModel:
    """The same model with something added to the logits of tokens: `t1=50.0` makes token 1 all but certain."""
    shift = torch.zeros(lm.config.vocab_size)
    for name, x in additions.items():
        shift[int(name.removeprefix("t"))] = x
    lm.get_output_embeddings().register_forward_hook(lambda module, inputs, logits: logits + shift.to(logits))
    return lm
