"""The work that every side of `lm_vs_peers` does: a GPT-2 with random weights, its tokenizer and its prompts, in a folder.

Needs torch and transformers alone, since it runs in each peer's own environment.

All responses have the same length on all sides because the special tokens cannot be sampled: the last layer norm answers
a constant -10 in coordinate 0, where `<pad>` and `<eos>` have the embedding 20 and every other word 0, so that their logit
is -200 and their probability, in float32, exactly 0 (and so is their gradient: training does not bring them back).
"""

import argparse
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoTokenizer, GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

PAD, EOS = "<pad>", "<eos>"  # words 0 and 1
REWARDED = "w05"  # the reward is the share of this word in the response
PHASES = ("generation", "scoring", "update")
TIMED = ("total", *PHASES)  # what each side times


@dataclass(frozen=True)
class Workload:
    """Device, sizes and settings; every side reads them from `workload.json`."""

    device: str = "cpu"  # "cpu": float32 on one thread; "cuda": bfloat16, each side by its own means
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


SIZES = {
    "small": Workload(),
    "3m": Workload(sequences=256, prompt_tokens=32, new_tokens=64, layers=4, width=256, heads=4, vocabulary=512),
    "30m": Workload(sequences=256, prompt_tokens=64, new_tokens=128, layers=8, width=512, heads=8, vocabulary=8_192),
    "124m": Workload(sequences=256, prompt_tokens=64, new_tokens=128, layers=12, width=768, heads=12, vocabulary=50_257),  # GPT-2 small
}


def parameter_count(workload: Workload) -> int:
    """Parameters of the policy; the output layer shares the embedding's."""
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in GPT2LMHeadModel(_config(workload)).parameters())


def save_workload(workload: Workload, folder: Path) -> None:
    """Write the model, the tokenizer, `prompts.json` (a list of strings) and `workload.json`."""
    tokenizer = _tokenizer(workload.vocabulary)
    _model(workload).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    generator = torch.Generator().manual_seed(workload.seed)
    draws = torch.randint(2, workload.vocabulary, (workload.prompts, workload.prompt_tokens), generator=generator)
    (folder / "prompts.json").write_text(json.dumps(tokenizer.batch_decode(draws)))
    (folder / "workload.json").write_text(json.dumps(asdict(workload)))


def load_workload(folder: Path) -> tuple[Workload, PreTrainedTokenizerFast, list[str]]:
    """What `save_workload` wrote, without the model: (workload, tokenizer, prompts)."""
    workload = Workload(**json.loads((folder / "workload.json").read_text()))
    return workload, AutoTokenizer.from_pretrained(folder), json.loads((folder / "prompts.json").read_text())


def main(run: Callable[[Path, int], dict], description: str | None, argv: list[str] | None = None) -> None:
    """A side's program: `run(folder, updates)`, then what it returned as JSON. On a CPU with one thread."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workload", type=Path, required=True, help="the folder that save_workload wrote")
    parser.add_argument("--updates", type=int, default=6)
    args = parser.parse_args(argv)
    if load_workload(args.workload)[0].device == "cpu":
        torch.set_num_threads(1)
    print(json.dumps(run(args.workload, args.updates)))


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


def _config(workload: Workload) -> GPT2Config:
    return GPT2Config(
        vocab_size=workload.vocabulary,
        n_positions=workload.prompt_tokens + workload.new_tokens,
        n_embd=workload.width,
        n_layer=workload.layers,
        n_head=workload.heads,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        bos_token_id=None,
        pad_token_id=0,
        eos_token_id=1,
    )


def _model(workload: Workload) -> GPT2LMHeadModel:
    torch.manual_seed(workload.seed)
    model = GPT2LMHeadModel(_config(workload)).eval()
    with torch.no_grad():
        special = [model.config.pad_token_id, model.config.eos_token_id]
        norm, embedding = model.transformer.ln_f, model.transformer.wte.weight
        norm.weight[0], norm.bias[0] = 0.0, -10.0
        embedding[:, 0] = 0.0
        embedding[special] = 0.0
        embedding[special, 0] = 20.0
    return model
