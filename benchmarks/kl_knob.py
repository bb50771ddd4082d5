"""What the price on KL does: the review task of the pipeline with several kl_coef, everything else alike.

    python -m benchmarks.kl_knob [--seeds 1] [--coefficients 0 0.1 0.3 1] [--output FILE]

For each seed the supervised start and the reward model are trained once; PPO then runs once per coefficient. Reported on
held-out prompts: the reward model's score, the gold score that no one trained on, KL per response, distinct-2, perplexity
under the start; and for every update the same of its own batch.
"""

import argparse
import copy
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import torch

from benchmarks.metadata import machine_metadata
from benchmarks.report import data_path, write_json
from ppo_edu.lm import (
    PolicyWithValue,
    RewardModel,
    distinct_n,
    evaluate_policy,
    gold_score,
    make_gpt2,
    make_review_comparisons,
    make_reviews,
    review_prompts,
    train_ppo,
    train_reward_model,
    train_sft,
    train_tokenizer,
)
from ppo_edu.lm import pipeline as stages

NAME = "kl_knob"
COMPARISONS = 4_000  # half of the pipeline's: as in chapter 13


class Watch:
    """Per update: what the batch earned, truly and in the reward model's eyes, how far it went and how varied it is."""

    def __init__(self) -> None:
        self.curves: dict[str, list[float]] = {"reward": [], "gold": [], "kl": [], "distinct_2": []}

    def __call__(self, state) -> None:
        prompts, texts = [s.prompt for s in state.samples], [s.response for s in state.samples]
        row = {"reward": state.log[-1]["reward"], "gold": float(gold_score(prompts, texts).mean())}
        row |= {"kl": state.log[-1]["kl"], "distinct_2": distinct_n(texts, 2)}
        for name, x in row.items():
            self.curves[name].append(round(x, 4))


def opening(text: str) -> str:
    """The first three words of a review."""
    return " ".join(text.split()[:3])


def measure(policy, tokenizer, reward_model, reference, seed: int) -> dict:
    """Held-out numbers of one policy, its commonest opening and three samples."""
    prompts = review_prompts(stages.EVALUATION_PROMPTS, seed=seed, held_out=True)
    result = evaluate_policy(policy, tokenizer, prompts, gold_score, reference=reference, max_new_tokens=stages.REVIEW_TOKENS, seed=seed)
    (commonest, times), *_ = Counter(map(opening, result.responses)).most_common(1)
    return {
        "reward_model": float(reward_model.scores(tokenizer, prompts, result.responses).mean()),
        "gold": result.score,
        "positive": result.positive,
        "kl": result.kl,
        "distinct_2": result.distinct_2,
        "perplexity": result.perplexity,
        "response_length": result.response_length,
        "ended": result.ended,
        "commonest_opening": commonest,
        "commonest_opening_share": times / len(prompts),
        "samples": [result.prompts[i] + result.responses[i] for i in range(3)],
    }


def run_seed(seed: int, coefficients: list[float]) -> dict:
    """One supervised start and one reward model; one PPO run per coefficient."""
    examples = make_reviews(stages.REVIEW_EXAMPLES, seed=seed)
    tokenizer = train_tokenizer(example.text for example in examples)
    lm = make_gpt2(tokenizer, seed=seed)
    train_sft(lm, tokenizer, examples, stages.REVIEW_SFT, seed=seed, progress=False)
    comparisons, _ = make_review_comparisons(lm, tokenizer, COMPARISONS, seed=seed)
    reward_model = RewardModel(copy.deepcopy(lm))
    train_reward_model(reward_model, tokenizer, comparisons, stages.REVIEW_REWARD_MODEL, seed=seed, progress=False)
    outcome = {"start": measure(lm, tokenizer, reward_model, lm, seed), "runs": []}
    for coefficient in coefficients:
        policy, watch, started = PolicyWithValue(copy.deepcopy(lm)), Watch(), time.perf_counter()
        train_ppo(
            policy,
            tokenizer,
            review_prompts(4_000, seed=seed),
            reward_model.reward_fn(tokenizer),
            replace(stages.REVIEW_PPO, kl_coef=coefficient),
            reference=lm,
            seed=seed,
            callback=watch,
            progress=False,
        )
        row = {"kl_coef": coefficient, **measure(policy, tokenizer, reward_model, lm, seed), "curves": watch.curves}
        outcome["runs"].append(row)
        shown = {name: round(x, 3) for name, x in row.items() if isinstance(x, float)}
        print(f"seed {seed}: {shown} in {time.perf_counter() - started:.0f} s", flush=True)
    return outcome


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--coefficients", type=float, nargs="+", default=[0.0, 0.1, 0.3, 1.0])
    parser.add_argument("--output", type=Path, default=data_path(NAME))
    args = parser.parse_args()
    torch.set_num_threads(1)
    coefficients = " ".join(f"{x:g}" for x in args.coefficients)
    result = {
        "question": f"the review task, {stages.REVIEW_PPO.updates} updates, {stages.EVALUATION_PROMPTS} held-out prompts at temperature 1",
        "command": f"python -m benchmarks.kl_knob --seeds {args.seeds} --coefficients {coefficients}",
        "metadata": machine_metadata("transformers"),
        "seeds": [run_seed(seed, args.coefficients) for seed in range(args.seeds)],
    }
    write_json(result, args.output)


if __name__ == "__main__":
    main()
