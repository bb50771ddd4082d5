"""The command line of language models: `ppo-edu lm sft`, `reward-model`, `ppo`, `sample`, `pipeline`.

A run's directory holds, beside its log and checkpoint, `options.json` (what it was asked for) and, once it is done,
`model/`, a folder that transformers loads. Where a command takes a model, it takes such a run too.
"""

import json
import os
import random
import shutil
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import tyro
from tqdm import tqdm
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging as transformers_logging

from ppo_edu.core.validation import check_count
from ppo_edu.lm import pipeline
from ppo_edu.lm.corpus import Example, addition_reward, gold_score, make_reviews, make_sums, review_prompts, sum_prompts
from ppo_edu.lm.evaluation import evaluate_policy
from ppo_edu.lm.generation import generate
from ppo_edu.lm.models import LOADING_ERRORS, PolicyWithValue, load_causal_lm, make_gpt2
from ppo_edu.lm.ppo import LMPPOConfig, RewardFn, TrainState, train_ppo
from ppo_edu.lm.preferences import Comparison, best_accuracy, load_comparisons, save_comparisons
from ppo_edu.lm.reward_model import HEAD_NAME, RewardModel, evaluate_reward_model, train_reward_model
from ppo_edu.lm.sequences import decode, encode
from ppo_edu.lm.sft import train_sft
from ppo_edu.lm.supervised import SupervisedConfig, SupervisedState
from ppo_edu.lm.tokenizer import train_tokenizer
from ppo_edu.runs import CHECKPOINT_NAME, LOG_NAME, check_same_config, write_atomically

OPTIONS_NAME, MODEL_NAME = "options.json", "model"
COMPARISONS_NAME, HELD_OUT_NAME = "comparisons.jsonl", "held-out.jsonl"
SHOWN = 2  # samples at a time
GENERATED_AT_ONCE = 256
HELD_OUT_SHARE = 0.1  # of a file of comparisons


@dataclass(frozen=True)
class Task:
    """What the commands know of a task; their default settings are those of the pipeline."""

    examples: Callable[..., list[Example]]  # (n, seed=, held_out=)
    prompts: Callable[..., list[str]]  # (n, seed=, held_out=)
    score: RewardFn
    num_examples: int
    num_prompts: int
    context: int
    sft: SupervisedConfig
    ppo: LMPPOConfig


TASKS = {
    "reviews": Task(make_reviews, review_prompts, gold_score, pipeline.REVIEW_EXAMPLES, 4_000, 64, pipeline.REVIEW_SFT, pipeline.REVIEW_PPO),
    "addition": Task(make_sums, sum_prompts, addition_reward, pipeline.SUM_EXAMPLES, 20_000, 16, pipeline.SUM_SFT, pipeline.SUM_PPO),
}
TaskName = Literal["reviews", "addition"]


# Options -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """What every run that trains something is asked for."""

    out: tyro.conf.Positional[Path]
    """Directory of the run: log, checkpoint, options, and the model at the end."""
    seed: int = 0
    """Seed of everything random in the run."""
    resume: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Continue the run in OUT. Its options are kept: they need not be repeated."""
    device: str = "cpu"
    """Where to compute, as torch names it."""
    tensorboard: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Write TensorBoard event files too."""
    progress: bool = True
    """Show a progress bar."""


@dataclass(frozen=True, kw_only=True)
class SFTOptions(RunOptions, SupervisedConfig):
    """Train a model to write as examples do: where the other commands start. (Defaults shown are those for reviews.)"""

    task: TaskName = "reviews"
    """What to write, where no examples are given."""
    num_examples: int = pipeline.REVIEW_EXAMPLES
    """Examples to make of the task."""
    examples: Path | None = None
    """Examples of your own: a file of JSON lines with "prompt" and "response"."""
    model: str | None = None
    """A run, a folder or a name on the hub. None: a new two-layer GPT-2 with a tokenizer trained on the examples."""
    show_every: int = 200
    """Show samples every so many steps; 0: never."""
    evaluation_prompts: int = 256
    """Held-out prompts of the task to try at the end; 0: none."""

    def __post_init__(self) -> None:
        """Nothing: the config is checked when it is made of the options."""


@dataclass(frozen=True, kw_only=True)
class RewardModelOptions(RunOptions, SupervisedConfig):
    """Train a reward model on comparisons and say how it predicts those it has not seen."""

    model: str
    """Where it starts, and who writes the samples that are compared: a run, a folder or a name on the hub."""
    comparisons: Path | None = None
    """Comparisons of your own: a file of JSON lines with "prompt", "first", "second" and "preferred". A tenth is held out.
    None: simulated ones, between reviews and between samples of the model."""
    num_comparisons: int = pipeline.REVIEW_COMPARISONS
    """Comparisons to simulate."""
    num_held_out: int = 1_000
    """More comparisons to simulate, for the test."""
    noise: float = pipeline.ANNOTATOR_NOISE
    """Of the simulated annotator, in units of the grammar's score, whose range is 2."""

    def __post_init__(self) -> None:
        """Nothing: the config is checked when it is made of the options."""


@dataclass(frozen=True, kw_only=True)
class PPOOptions(RunOptions, LMPPOConfig):
    """Train a language model with PPO for a reward. (Defaults shown are those for reviews.)"""

    model: str
    """Where the policy starts, and its reference: a run, a folder or a name on the hub."""
    task: TaskName = "reviews"
    """Whose prompts to use. Addition brings its own reward."""
    prompts: Path | None = None
    """Prompts of your own: a text file with one per line."""
    reward_model: str | None = None
    """Reward: the scores of this reward model, a run or a folder."""
    reward: Literal["gold"] | None = None
    """Reward: gold is the task's own scorer, which for reviews a reward model stands in for."""
    show_every: int = 10
    """Show samples every so many updates; 0: never."""
    evaluation_prompts: int = 256
    """Held-out prompts to try at the end (of your own prompts, the first); 0: none."""

    def __post_init__(self) -> None:
        """Nothing: the config is checked when it is made of the options."""


@dataclass(frozen=True, kw_only=True)
class SampleOptions:
    """Print what a model writes: prompt | response; "..." where the response did not end."""

    run: tyro.conf.Positional[str]
    """A run, a folder or a name on the hub."""
    prompt: tuple[str, ...] = ()
    """Texts to continue. None: eight held-out prompts of the task."""
    task: TaskName | None = None
    """Whose held-out prompts. None: the task of the run."""
    num_samples: Annotated[int, tyro.conf.arg(aliases=["-n"])] = 1
    """Samples of each prompt."""
    temperature: float = 1.0
    """Divides the logits: below 1 the likely becomes likelier."""
    top_k: int | None = None
    """Choose among so many of the likeliest tokens."""
    top_p: float | None = None
    """Choose among the likeliest tokens that together have this probability."""
    max_new_tokens: int = 32
    """Longest response, in tokens."""
    seed: int = 0
    """Seed of the samples."""
    device: str = "cpu"
    """Where to compute, as torch names it."""


@dataclass(frozen=True, kw_only=True)
class PipelineOptions:
    """Everything in one: corpus, tokenizer, supervised start, reward model, PPO and evaluation. Called again, it continues."""

    out: tyro.conf.Positional[Path]
    """Directory of the runs sft, reward-model and ppo."""
    task: TaskName = "reviews"
    """Reviews learn from a model of preferences, addition from a rule."""
    seed: int = 0
    """Seed of everything random."""
    show_every: int = 10
    """Show samples every so many updates of PPO; 0: never."""
    progress: bool = True
    """Show progress bars."""


Trained = SFTOptions | RewardModelOptions | PPOOptions
NOT_KEPT = ("out", "resume", "tensorboard", "progress", "show_every", "evaluation_prompts")  # what a resumed run may change
FILES = ("examples", "comparisons", "prompts")


def defaults(options: Trained) -> Trained:
    """Options before the command line is read: a resumed run's, or the pipeline's for the task."""
    if options.resume:
        kept = read_options(options.out)
        if kept.pop("command", None) != name_of(options):
            raise ValueError(f"{options.out} must hold a run of `ppo-edu lm {name_of(options)}` to resume; it holds another")
        kept |= {name: Path(kept[name]) for name in FILES if kept.get(name) is not None}
        try:
            return replace(options, resume=False, **kept)
        except TypeError as error:
            raise ValueError(f"{options.out / OPTIONS_NAME} must be of this version of ppo-edu: {error}") from error
    if isinstance(options, RewardModelOptions):
        return RewardModelOptions(out=options.out, model=options.model, **asdict(pipeline.REVIEW_REWARD_MODEL))
    task = TASKS[options.task]
    if isinstance(options, PPOOptions):
        return PPOOptions(out=options.out, model=options.model, **asdict(task.ppo))
    return SFTOptions(out=options.out, num_examples=task.num_examples, **asdict(task.sft))


def kept_options(options: Trained | PipelineOptions) -> dict[str, Any]:
    """The options that make a run what it is, as JSON holds them."""
    kept = {name: x for name, x in asdict(options).items() if name not in NOT_KEPT}
    return {"command": name_of(options)} | json.loads(json.dumps(kept, default=str))


def read_options(directory: Path) -> dict[str, Any]:
    """What a run in a directory was asked for. Raises ValueError where there is no run."""
    path = directory / OPTIONS_NAME
    try:
        return dict(json.loads(read_text(path)))
    except (TypeError, json.JSONDecodeError) as error:
        raise ValueError(f"{path} must hold a run's options as JSON, got {error}") from error


def config_of(options: Trained, kind: type) -> Any:
    """The trainer's config among the options. Raises ValueError naming the field."""
    return kind(**{field.name: getattr(options, field.name) for field in fields(kind)})


# Commands ------------------------------------------------------------------------------------------------------------


def run_sft(options: SFTOptions) -> None:
    """`ppo-edu lm sft`."""
    config, task = config_of(options, SupervisedConfig), TASKS[options.task]
    check_counts(options, at_least_0=("show_every", "evaluation_prompts"), at_least_1=("num_examples",))
    place = new_or_resumed(options)
    if options.examples is None:
        examples = task.examples(options.num_examples, seed=options.seed)
        prompts = task.prompts(SHOWN, seed=options.seed, held_out=True)
    else:
        examples = read_examples(options.examples)
        prompts = [example.prompt for example in examples[:SHOWN]]
    if options.model is not None:
        lm, tokenizer = load_lm(options.model, options.device)
    else:
        tokenizer = train_tokenizer(example.text for example in examples)
    longest, context = task.ppo.max_new_tokens, task.context
    if options.examples is not None:
        sequences = encode(tokenizer, [x.prompt for x in examples], [x.response for x in examples])
        longest = sequences.tokens.shape[1]
        context = max(64, sequences.prompt_tokens.shape[1] + longest)
    if options.model is None:
        lm = make_gpt2(tokenizer, context=context, seed=options.seed).to(options.device)

    def show(state: SupervisedState) -> None:
        if options.show_every and state.update % options.show_every == 0:
            texts = sample(lm, tokenizer, prompts, max_new_tokens=longest, seed=state.update)
            show_samples([f"step {state.update}, loss {state.log[-1]['loss']:.3f}", *texts])

    keep(options)
    state = train_sft(lm, tokenizer, examples, config, seed=options.seed, callback=show, progress=options.progress, **place)
    save_model(options.out / MODEL_NAME, lm, tokenizer)
    print(f"trained {state.update} steps in {state.seconds:.1f} s to a loss of {state.log[-1]['loss']:.3f} per token")
    if options.examples is None and options.evaluation_prompts:
        prompts = task.prompts(options.evaluation_prompts, seed=options.seed, held_out=True)
        evaluation = evaluate_policy(lm, tokenizer, prompts, task.score, reference=lm, max_new_tokens=longest, seed=options.seed)
        print(f"on {len(prompts)} held-out prompts: mean score {evaluation.score:.3f}, above 0 in {evaluation.positive:.1%}")
    report_model(options.out)


def run_reward_model(options: RewardModelOptions) -> None:
    """`ppo-edu lm reward-model`."""
    config = config_of(options, SupervisedConfig)
    check_counts(options, at_least_1=("num_comparisons", "num_held_out"))
    place = new_or_resumed(options)
    simulated = options.comparisons is None
    if not simulated:
        train, held_out = split_comparisons(load_comparisons(options.comparisons), options.seed)
    lm, tokenizer = load_lm(options.model, options.device)
    keep(options)
    if simulated:
        train, held_out = simulated_comparisons(lm, tokenizer, options)
    model = RewardModel(lm)
    state = train_reward_model(model, tokenizer, train, config, seed=options.seed, progress=options.progress, **place)
    save_model(options.out / MODEL_NAME, model, tokenizer)
    print(f"trained {state.update} steps in {state.seconds:.1f} s to a loss of {state.log[-1]['loss']:.3f} per comparison")
    if all(x.preferred == "tie" for x in held_out):
        print(f"the {len(held_out)} held-out comparisons are ties: nothing to test with")
    else:
        report = evaluate_reward_model(model, tokenizer, held_out)
        best = best_accuracy(*(gold_score([], []) if not simulated else score for score in gold_scores(held_out)), noise=options.noise)
        print(f"of {len(held_out)} held-out comparisons {report.accuracy:.1%} right, calibration error {report.calibration_error:.3f}")
    report_model(options.out)


def run_ppo(options: PPOOptions) -> None:
    """`ppo-edu lm ppo`."""
    config, task = config_of(options, LMPPOConfig), TASKS[options.task]
    check_counts(options, at_least_0=("show_every", "evaluation_prompts"))
    place = new_or_resumed(options)
    own = options.prompts is not None
    prompts = read_prompts(options.prompts) if own else task.prompts(task.num_prompts, seed=options.seed)
    reward_fn = reward_of(options, prompts)
    lm, tokenizer = load_lm(options.model, options.device)
    policy = PolicyWithValue(lm)
    keep(options)
    show = showing(options.show_every)
    result = train_ppo(policy, tokenizer, prompts, reward_fn, config, seed=options.seed, callback=show, progress=options.progress, **place)
    save_model(options.out / MODEL_NAME, policy, tokenizer)
    print(f"trained {len(result.log)} updates in {result.seconds:.1f} s")
    if options.evaluation_prompts:
        n = options.evaluation_prompts
        prompts, score = (prompts[:n], reward_fn) if own else (task.prompts(n, seed=options.seed, held_out=True), task.score)
        reference, _ = load_lm(options.model, options.device)
        settings = {"max_new_tokens": config.max_new_tokens, "temperature": config.temperature, "seed": options.seed}
        evaluation = evaluate_policy(policy, tokenizer, prompts, score, reference=reference, **settings)
        print(
            f"on {len(prompts)} {'prompts' if own else 'held-out prompts'}: mean score {evaluation.score:.3f}, "
            f"above 0 in {evaluation.positive:.1%}, KL {evaluation.kl:.2f} nats per response, perplexity {evaluation.perplexity:.2f}, "
            f"distinct-2 {evaluation.distinct_2:.2f}, {evaluation.response_length:.1f} tokens"
        )
    report_model(options.out)


def run_sample(options: SampleOptions) -> None:
    """`ppo-edu lm sample`."""
    check_counts(options, at_least_1=("num_samples",))
    check_seed(options.seed)
    prompts = list(options.prompt)
    if not prompts:
        task = options.task or task_of(Path(options.run))
        prompts = TASKS[task].prompts(8, seed=options.seed, held_out=True)
    lm, tokenizer = load_lm(options.run, options.device)
    settings = {name: getattr(options, name) for name in ("max_new_tokens", "temperature", "top_k", "top_p")}
    repeated = [prompt for prompt in prompts for _ in range(options.num_samples)]
    for text in sample(lm, tokenizer, repeated, seed=options.seed, **settings):
        print(text)


def run_pipeline(options: PipelineOptions) -> None:
    """`ppo-edu lm pipeline`."""
    check_counts(options, at_least_0=("show_every",))
    if (options.out / OPTIONS_NAME).exists():
        check_same_config(read_options(options.out), kept_options(options))
    keep(options)
    show = showing(options.show_every)
    result = pipeline.run_pipeline(options.task, directory=options.out, seed=options.seed, progress=options.progress, callback=show)
    stages = {"sft": result.sft, "reward-model": result.reward_model, "ppo": result.policy}
    for stage, model in stages.items():
        if model is not None:
            save_model(options.out / stage / MODEL_NAME, model, result.tokenizer)
            write_options(options.out / stage, kept_options(options))
    print(result.report())
    report_model(options.out / "ppo")


COMMANDS: dict[type, tuple[str, Callable]] = {
    SFTOptions: ("sft", run_sft),
    RewardModelOptions: ("reward-model", run_reward_model),
    PPOOptions: ("ppo", run_ppo),
    SampleOptions: ("sample", run_sample),
    PipelineOptions: ("pipeline", run_pipeline),
}
