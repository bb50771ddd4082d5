"""The whole road in one call: corpus, tokenizer, supervised start, comparisons, reward model, PPO, evaluation."""

import copy
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ppo_edu.lm import ppo
from ppo_edu.lm.corpus import addition_reward, gold_score, make_reviews, make_sums, review_prompts, review_responses, sum_prompts
from ppo_edu.lm.evaluation import Evaluation, evaluate_policy
from ppo_edu.lm.generation import generate
from ppo_edu.lm.models import PolicyWithValue, make_gpt2
from ppo_edu.lm.ppo import LMPPOConfig, train_ppo
from ppo_edu.lm.preferences import Comparison, best_accuracy, simulate_annotator
from ppo_edu.lm.reward_model import RewardModel, RewardModelReport, evaluate_reward_model, train_reward_model
from ppo_edu.lm.sequences import decode
from ppo_edu.lm.sft import train_sft
from ppo_edu.lm.supervised import SupervisedConfig, SupervisedState
from ppo_edu.lm.tokenizer import train_tokenizer
from ppo_edu.runs import CHECKPOINT_NAME, Row

REVIEW_TOKENS = 32  # the longest review has 29
REVIEW_EXAMPLES, REVIEW_COMPARISONS, REVIEW_PROMPTS = 16_000, 12_000, 4_000
REVIEW_SFT = SupervisedConfig()
REVIEW_REWARD_MODEL = SupervisedConfig(learning_rate=1e-3)
REVIEW_PPO = LMPPOConfig(updates=60, max_new_tokens=REVIEW_TOKENS, kl_coef=0.3)
ANNOTATOR_NOISE = 0.25  # in units of the gold score, whose range is 2

SUM_TOKENS = 4
SUM_EXAMPLES, SUM_PROMPTS = 30_000, 20_000
SUM_MODEL = {"layers": 3, "width": 96, "context": 16, "init_std": 0.1}
SUM_SFT = SupervisedConfig(batch_size=64, learning_rate=3e-3)
SUM_START = 0.3  # supervised training stops once this share of sums is right: PPO is to do the rest
SUM_PPO = LMPPOConfig(updates=60, batch_size=256, max_new_tokens=SUM_TOKENS, learning_rate=2e-4, kl_coef=0.01)

EVALUATION_PROMPTS = 512


@dataclass(frozen=True)
class PipelineResult:
    """What a pipeline made, and how it did on held-out prompts before and after PPO."""

    task: str
    tokenizer: PreTrainedTokenizerBase
    sft: PreTrainedModel  # where PPO started, and its reference
    reward_model: RewardModel | None  # None where a rule gives the reward
    policy: PolicyWithValue
    log: list[Row]  # of PPO
    before: Evaluation
    after: Evaluation
    reward_report: RewardModelReport | None
    best_accuracy: float | None  # what the true scores would reach on the held-out comparisons
    seconds: dict[str, float]  # per stage

    def report(self) -> str:
        """The outcome as text: one line per number."""
        lines = [f"{'':24}{'before PPO':>12}{'after PPO':>12}"]
        rows = {"mean score": "score", "share above 0": "positive", "KL, nats per response": "kl", "perplexity": "perplexity"}
        rows |= {"distinct-2": "distinct_2", "tokens": "response_length", "ended": "ended"}
        for label, name in rows.items():
            lines.append(f"{label:24}{getattr(self.before, name):12.3f}{getattr(self.after, name):12.3f}")
        if self.reward_report is not None:
            accuracy = self.reward_report.accuracy
            lines.append(f"reward model: {accuracy:.3f} of held-out comparisons right, {accuracy / self.best_accuracy:.0%} of the possible")
        stages = ", ".join(f"{stage} {x:.0f}" for stage, x in self.seconds.items())
        return "\n".join([*lines, f"seconds: {stages}; together {sum(self.seconds.values()):.0f}"])


def make_review_comparisons(
    lm: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, n: int, *, seed: int, held_out: bool = False, noise: float = ANNOTATOR_NOISE
) -> tuple[list[Comparison], float]:
    """Comparisons of reviews by a simulated annotator whose taste is the gold score, and the best accuracy possible on them.

    Training comparisons are half between two reviews of the corpus and half between two samples of `lm`: the first are
    plentiful and clean, the second show the mistakes that PPO will meet. Held-out ones are of samples only.
    """
    prompts = review_prompts(n, seed=seed, held_out=held_out)
    written = 0 if held_out else n // 2
    generator = torch.Generator(lm.device).manual_seed(seed)
    firsts, seconds = [], []
    for number, texts in enumerate((firsts, seconds)):
        if written:
            texts += review_responses(prompts[:written], seed=2 * seed + number)
        sampled = generate(lm, tokenizer, prompts[written:], max_new_tokens=REVIEW_TOKENS, generator=generator)
        texts += decode(tokenizer, sampled)
    first_scores, second_scores = gold_score(prompts, firsts), gold_score(prompts, seconds)
    comparisons = simulate_annotator(prompts, firsts, seconds, first_scores, second_scores, noise=noise, seed=seed)
    return comparisons, best_accuracy(first_scores, second_scores, noise=noise)


def run_pipeline(
    task: str = "reviews",
    *,
    seed: int = 0,
    directory: str | Path | None = None,
    progress: bool = True,
    callback: ppo.Callback | None = None,
) -> PipelineResult:
    """Train a policy on a task from nothing: "reviews" (reward from a model of preferences) or "addition" (reward from a rule).

    `callback` is that of `train_ppo`. With a `directory` each stage keeps its log and checkpoint there, and calling
    again continues where an interrupted call stopped.
    Raises: ValueError for another task, or a directory that holds a run of other settings.
    """
    tasks = {"reviews": _reviews, "addition": _addition}
    if task not in tasks:
        raise ValueError(f"task must be {' or '.join(map(repr, tasks))}, got {task!r}")
    return tasks[task](seed, None if directory is None else Path(directory), progress, callback)


def _reviews(seed: int, directory: Path | None, progress: bool, callback: ppo.Callback | None) -> PipelineResult:
    clock = _Clock()
    examples = make_reviews(REVIEW_EXAMPLES, seed=seed)
    tokenizer = train_tokenizer(example.text for example in examples)
    lm = make_gpt2(tokenizer, seed=seed)
    train_sft(lm, tokenizer, examples, REVIEW_SFT, seed=seed, progress=progress, **_place(directory, "sft"))
    clock.stop("supervised start")

    comparisons, _ = make_review_comparisons(lm, tokenizer, REVIEW_COMPARISONS, seed=seed)
    held_out, best = make_review_comparisons(lm, tokenizer, 1_000, seed=seed, held_out=True)
    reward_model = RewardModel(copy.deepcopy(lm))
    train_reward_model(
        reward_model, tokenizer, comparisons, REVIEW_REWARD_MODEL, seed=seed, progress=progress, **_place(directory, "reward-model")
    )
    reward_report = evaluate_reward_model(reward_model, tokenizer, held_out)
    clock.stop("reward model")

    policy, log, before, after = _learn(
        lm,
        tokenizer,
        review_prompts(REVIEW_PROMPTS, seed=seed),
        reward_model.reward_fn(tokenizer),
        REVIEW_PPO,
        held_out=review_prompts(EVALUATION_PROMPTS, seed=seed, held_out=True),
        score_fn=gold_score,
        clock=clock,
        seed=seed,
        progress=progress,
        callback=callback,
        **_place(directory, "ppo"),
    )
    return PipelineResult("reviews", tokenizer, lm, reward_model, policy, log, before, after, reward_report, best, clock.seconds)


def _addition(seed: int, directory: Path | None, progress: bool, callback: ppo.Callback | None) -> PipelineResult:
    clock = _Clock()
    examples = make_sums(SUM_EXAMPLES, seed=seed)
    tokenizer = train_tokenizer(example.text for example in examples)
    lm = make_gpt2(tokenizer, **SUM_MODEL, seed=seed)
    train_sft(
        lm,
        tokenizer,
        examples,
        SUM_SFT,
        seed=seed,
        callback=stop_at(SUM_START, lm, tokenizer, seed),
        progress=progress,
        **_place(directory, "sft"),
    )
    clock.stop("supervised start")

    policy, log, before, after = _learn(
        lm,
        tokenizer,
        sum_prompts(SUM_PROMPTS, seed=seed),
        addition_reward,
        SUM_PPO,
        held_out=sum_prompts(EVALUATION_PROMPTS, seed=seed, held_out=True),
        score_fn=addition_reward,
        clock=clock,
        seed=seed,
        progress=progress,
        callback=callback,
        **_place(directory, "ppo"),
    )
    return PipelineResult("addition", tokenizer, lm, None, policy, log, before, after, None, None, clock.seconds)


def _learn(
    lm: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: list[str],
    reward_fn: ppo.RewardFn,
    config: LMPPOConfig,
    *,
    held_out: list[str],
    score_fn: ppo.RewardFn,
    clock: "_Clock",
    seed: int,
    **run: Any,
) -> tuple[PolicyWithValue, list[Row], Evaluation, Evaluation]:
    """PPO from a supervised start, then what start and policy write on held-out prompts: (policy, log, before, after)."""
    policy = PolicyWithValue(copy.deepcopy(lm))
    result = train_ppo(policy, tokenizer, prompts, reward_fn, config, reference=lm, seed=seed, **run)
    clock.stop("PPO")
    before, after = (
        evaluate_policy(model, tokenizer, held_out, score_fn, reference=lm, max_new_tokens=config.max_new_tokens, seed=seed)
        for model in (lm, policy)
    )
    clock.stop("evaluation")
    return policy, result.log, before, after


def stop_at(share: float, lm: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, seed: int) -> Callable[[SupervisedState], bool]:
    """A callback that ends supervised training on sums once the model gets this share of its training prompts right, sampling."""
    prompts = sum_prompts(256, seed=seed + 1)

    def reached(state: SupervisedState) -> bool:
        if state.update % 10:
            return False
        found = evaluate_policy(lm, tokenizer, prompts, addition_reward, reference=lm, max_new_tokens=SUM_TOKENS, seed=seed)
        return found.score >= share

    return reached


def _place(directory: Path | None, stage: str) -> dict[str, Path]:
    """Where a stage keeps its run: the arguments that start it there, or continue it."""
    if directory is None:
        return {}
    started = (directory / stage / CHECKPOINT_NAME).exists()
    return {"resume" if started else "log_dir": directory / stage}


class _Clock:
    """Seconds per stage."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._started = time.perf_counter()

    def stop(self, stage: str) -> None:
        """The stage that ran until now is over."""
        now = time.perf_counter()
        self.seconds[stage] = now - self._started
        self._started = now
