"""Comparisons: which of two responses is better. A person says so, or a simulated annotator that follows Bradley-Terry."""

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

from ppo_edu.core.validation import check_like, check_nonnegative
from ppo_edu.lm.sequences import check_prompts
from ppo_edu.runs import write_atomically

PREFERENCE = {"first": 1.0, "tie": 0.5, "second": 0.0}  # the target of the probability that the first is preferred


@dataclass(frozen=True)
class Comparison:
    """Two responses to one prompt, and which was preferred: "first", "second" or "tie"."""

    prompt: str
    first: str
    second: str
    preferred: str

    def __post_init__(self) -> None:
        for name in ("prompt", "first", "second"):
            if not isinstance(getattr(self, name), str):
                raise ValueError(f"{name} must be a string, got {getattr(self, name)!r}")
        if self.preferred not in PREFERENCE:
            raise ValueError(f"preferred must be 'first', 'second' or 'tie', got {self.preferred!r}")


def preference_probabilities(
    first: Tensor,  # [B] scores
    second: Tensor,  # [B]
    *,
    noise: float = 1.0,
    ties: float = 0.0,
) -> Tensor:
    r"""Probabilities [B, 3] that the first is preferred, that the second is, and of a tie.

        d = (first - second) / noise
        weights: exp(d / 2), exp(-d / 2), ties

    With ties = 0 this is Bradley-Terry: P(first) = sigmoid(d). `noise` is in units of the score: at a difference of one
    noise the better one wins 73 % of the time; 0 is an annotator without error.

    Source: Bradley & Terry 1952; with ties, Davidson 1970.
    """
    check_like("first", first, second=second)
    check_nonnegative(noise=noise, ties=ties)
    difference = first - second
    # With noise 0 the limit: all on the larger score, an equal share where they are the same.
    d = difference / noise if noise > 0 else torch.where(difference == 0, 0.0, difference.sign() * math.inf)
    log_ties = torch.full_like(d, math.log(ties) if ties > 0 else -math.inf)
    return torch.softmax(torch.stack([d.clamp(-1e4, 1e4) / 2, -d.clamp(-1e4, 1e4) / 2, log_ties], dim=-1), dim=-1)


def simulate_annotator(
    prompts: Sequence[str],
    firsts: Sequence[str],
    seconds: Sequence[str],
    first_scores: Tensor,  # [B] what the annotator truly thinks of them
    second_scores: Tensor,  # [B]
    *,
    noise: float = 1.0,
    ties: float = 0.0,
    seed: int,
) -> list[Comparison]:
    """Comparisons as a noisy annotator would make them: each drawn from `preference_probabilities`."""
    check_prompts(prompts)
    if not len(prompts) == len(firsts) == len(seconds) == len(first_scores):
        raise ValueError(
            f"prompts, firsts, seconds and scores must be of one length, got {len(prompts)}, {len(firsts)}, {len(seconds)}, "
            f"{len(first_scores)}"
        )
    probabilities = preference_probabilities(first_scores, second_scores, noise=noise, ties=ties)
    draws = torch.multinomial(probabilities, 1, generator=torch.Generator().manual_seed(seed)).squeeze(1)
    names = ("first", "second", "tie")
    return [Comparison(*x, names[draw]) for *x, draw in zip(prompts, firsts, seconds, draws.tolist(), strict=True)]


def best_accuracy(first_scores: Tensor, second_scores: Tensor, *, noise: float) -> float:
    """Share of an annotator's choices that somebody who knows the true scores would predict, ties left out.

    The mean of P(the better one is preferred) = sigmoid(abs(first - second) / noise).
    """
    check_like("first_scores", first_scores, second_scores=second_scores)
    check_nonnegative(noise=noise)
    return float(preference_probabilities(first_scores, second_scores, noise=noise)[:, :2].amax(-1).mean())


def save_comparisons(path: str | Path, comparisons: Sequence[Comparison]) -> None:
    """Write comparisons as JSON lines, atomically."""
    write_atomically(Path(path), "".join(json.dumps(asdict(x)) + "\n" for x in comparisons).encode())


def append_comparison(path: str | Path, comparison: Comparison) -> None:
    """Add one comparison to a file of JSON lines, as a labelling panel does after each answer."""
    with open(path, "a", encoding="utf-8") as file:
        file.write(json.dumps(asdict(comparison)) + "\n")


def load_comparisons(path: str | Path) -> list[Comparison]:
    """Read what `save_comparisons` or `append_comparison` wrote. Raises: ValueError naming the line that is none."""
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"path must be a file of comparisons, got {path}")
    comparisons = []
    for number, line in enumerate(path.read_text(encoding="utf-8").split("\n"), start=1):
        if not line.strip():
            continue
        try:
            comparisons.append(Comparison(**json.loads(line)))
        except (TypeError, ValueError) as error:
            raise ValueError(f"{path} must hold one comparison per line, line {number} is none: {error}") from error
    return comparisons
