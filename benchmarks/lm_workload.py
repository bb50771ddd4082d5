"""The work that every side of `lm_vs_peers` does: a tiny GPT-2 with random weights, its tokenizer and its prompts, in a folder.

All responses have the same length on all sides because the special tokens cannot be sampled: the last layer norm answers
a constant -10 in coordinate 0, where `<pad>` and `<eos>` have the embedding 20 and every other word 0, so that their logit
is -200 and their probability, in float32, exactly 0 (and so is their gradient: training does not bring them back).
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoTokenizer, GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

PAD, EOS = "<pad>", "<eos>"
REWARDED = "w05"  # the reward is the share of this word in the response


@dataclass(frozen=True)
class Workload:
    """Sizes and settings; every side reads them from `workload.json`."""

    sequences: int = 64  # per update
    prompt_tokens: int = 8
    new_tokens: int = 24
    layers: int = 2
    width: int = 128
    heads: int = 4
    vocabulary: int = 64
    prompts: int = 256  # how many there are to draw from
    epochs: int = 4
    minibatches: int = 4  # per epoch
    learning_rate: float = 1e-4
    temperature: float = 0.7
    kl_coef: float = 0.05
    clip_range: float = 0.2
    value_clip_range: float = 0.2
    value_coef: float = 0.1
    gamma: float = 1.0
    lam: float = 0.95
    seed: int = 0


def save_workload(workload: Workload, folder: Path) -> None:
    """Write the model, the tokenizer, `prompts.json` (a list of strings) and `workload.json`."""
    tokenizer = _tokenizer(workload.vocabulary)
    _model(workload, tokenizer).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    generator = torch.Generator().manual_seed(workload.seed)
    draws = torch.randint(2, workload.vocabulary, (workload.prompts, workload.prompt_tokens), generator=generator)
    (folder / "prompts.json").write_text(json.dumps(tokenizer.batch_decode(draws)))
    (folder / "workload.json").write_text(json.dumps(asdict(workload)))


def load_workload(folder: Path) -> tuple[Workload, PreTrainedTokenizerFast, list[str]]:
    """What `save_workload` wrote, without the model: (workload, tokenizer, prompts)."""
    workload = Workload(**json.loads((folder / "workload.json").read_text()))
    return workload, AutoTokenizer.from_pretrained(folder), json.loads((folder / "prompts.json").read_text())


class WordShare:
    """The reward function: the share of `REWARDED` among a response's words. It also counts the words that it saw."""

    def __init__(self) -> None:
        self.words = 0

    def __call__(self, prompts: list[str], responses: list[str]) -> torch.Tensor:  # -> [B]
        split = [response.split() for response in responses]
        self.words += sum(map(len, split))
        return torch.tensor([words.count(REWARDED) / max(len(words), 1) for words in split])

    def check(self, workload: Workload, updates: int) -> None:
        """Raise RuntimeError unless every response of `updates` updates had its full length."""
        expected = updates * workload.sequences * workload.new_tokens
        if self.words != expected:
            raise RuntimeError(f"new tokens must be {expected}, none of them special, got {self.words}")


def _tokenizer(vocabulary: int) -> PreTrainedTokenizerFast:
    words = [PAD, EOS, *(f"w{index:02d}" for index in range(2, vocabulary))]
    core = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}, unk_token=words[-1]))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=core, pad_token=PAD, eos_token=EOS, padding_side="left")


def _model(workload: Workload, tokenizer: PreTrainedTokenizerFast) -> GPT2LMHeadModel:
    config = GPT2Config(
        vocab_size=workload.vocabulary,
        n_positions=workload.prompt_tokens + workload.new_tokens,
        n_embd=workload.width,
        n_layer=workload.layers,
        n_head=workload.heads,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    torch.manual_seed(workload.seed)
    model = GPT2LMHeadModel(config).eval()
    with torch.no_grad():
        special = [tokenizer.pad_token_id, tokenizer.eos_token_id]
        norm, embedding = model.transformer.ln_f, model.transformer.wte.weight
        norm.weight[0], norm.bias[0] = 0.0, -10.0
        embedding[:, 0] = 0.0
        embedding[special] = 0.0
        embedding[special, 0] = 20.0
    return model
