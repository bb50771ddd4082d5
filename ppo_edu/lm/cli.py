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

from ppo_edu.core.validation import check_count, check_nonnegative
from ppo_edu.lm import pipeline
from ppo_edu.lm.corpus import Example, addition_reward, gold_score, make_reviews, make_sums, review_prompts, sum_prompts
from ppo_edu.lm.evaluation import evaluate_policy
from ppo_edu.lm.generation import context_length, generate
from ppo_edu.lm.models import LOADING_ERRORS, PolicyWithValue, first_line, load_causal_lm, make_gpt2
from ppo_edu.lm.ppo import LMPPOConfig, RewardFn, TrainState, train_ppo
from ppo_edu.lm.preferences import Comparison, best_accuracy, load_comparisons, save_comparisons
from ppo_edu.lm.reward_model import HEAD_NAME, RewardModel, evaluate_reward_model, train_reward_model
from ppo_edu.lm.sequences import decode, encode, encode_prompts
from ppo_edu.lm.sft import train_sft
from ppo_edu.lm.supervised import SupervisedConfig, SupervisedState
from ppo_edu.lm.tokenizer import train_tokenizer
from ppo_edu.runs import CHECKPOINT_NAME, check_same_config, write_atomically

OPTIONS_NAME, MODEL_NAME = "options.json", "model"
COMPARISONS_NAME, HELD_OUT_NAME = "comparisons.jsonl", "held-out.jsonl"
PROGRAM = "ppo-edu lm"
SHOWN = 2  # samples at a time, while training
DEFAULT_PROMPTS, DEFAULT_TOKENS = 8, 32  # of `sample`
OWN_CONTEXT = 64  # tokens, at least, of a model made for examples of your own
GENERATED_AT_ONCE = 256


@dataclass(frozen=True)
class Task:
    """What the commands know of a task; their default settings are those of the pipeline."""

    examples: Callable[..., list[Example]]  # (n, seed=, held_out=)
    prompts: Callable[..., list[str]]  # (n, seed=, held_out=)
    score: RewardFn
    num_examples: int
    num_prompts: int
    model: dict[str, Any]  # shape of the small GPT-2
    sft: SupervisedConfig
    ppo: LMPPOConfig


TASKS = {
    "reviews": Task(
        make_reviews,
        review_prompts,
        gold_score,
        pipeline.REVIEW_EXAMPLES,
        pipeline.REVIEW_PROMPTS,
        {},
        pipeline.REVIEW_SFT,
        pipeline.REVIEW_PPO,
    ),
    "addition": Task(
        make_sums,
        sum_prompts,
        addition_reward,
        pipeline.SUM_EXAMPLES,
        pipeline.SUM_PROMPTS,
        pipeline.SUM_MODEL,
        pipeline.SUM_SFT,
        pipeline.SUM_PPO,
    ),
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

    model: str | None = None
    """Where it starts, and who writes the samples that are compared: a run, a folder or a name on the hub. A new run needs it."""
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

    model: str | None = None
    """Where the policy starts, and its reference: a run, a folder or a name on the hub. A new run needs it."""
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
    max_new_tokens: int | None = None
    """Longest response, in tokens. None: 32, or what the model's context leaves."""
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


def task_defaults(kind: type, task: str, **given: Any) -> Trained:
    """The options with which the pipeline trains on a task."""
    if kind is RewardModelOptions:
        return RewardModelOptions(**asdict(pipeline.REVIEW_REWARD_MODEL), **given)
    if kind is PPOOptions:
        return PPOOptions(**asdict(TASKS[task].ppo), **given)
    return SFTOptions(num_examples=TASKS[task].num_examples, **asdict(TASKS[task].sft), **given)


def defaults(options: Trained) -> Trained:
    """Options before the command line is read: a resumed run's, or the pipeline's for the task."""
    if options.resume:
        if not (options.out / OPTIONS_NAME).exists() or not (options.out / CHECKPOINT_NAME).exists():
            raise ValueError(f"out must hold a run to resume, got {options.out}, where no checkpoint is; leave out --resume")
        kept = read_options(options.out)
        command, asked = kept.pop("command", None), COMMANDS[type(options)][0]
        if command != asked:
            raise ValueError(f"out must hold a run of `{PROGRAM} {asked}` to resume, got {options.out}, one of `{PROGRAM} {command}`")
        kept |= {name: Path(kept[name]) for name in FILES if kept.get(name) is not None}
        try:
            return replace(options, resume=False, **kept)
        except TypeError as error:
            raise ValueError(f"{options.out / OPTIONS_NAME} must be of this version of ppo-edu: {error}") from error
    return task_defaults(type(options), getattr(options, "task", "reviews"), out=options.out)


def kept_options(options: Trained | PipelineOptions) -> dict[str, Any]:
    """The options that make a run what it is, as JSON holds them."""
    kept = {name: x for name, x in asdict(options).items() if name not in NOT_KEPT}
    return {"command": COMMANDS[type(options)][0]} | json.loads(json.dumps(kept, default=str))


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
    check_options(options)
    if options.examples is None:
        examples, longest = task.examples(options.num_examples, seed=options.seed), task.ppo.max_new_tokens
        shown = task.prompts(SHOWN, seed=options.seed, held_out=True)
    else:
        examples = read_examples(options.examples)
        shown = [example.prompt for example in examples[:SHOWN]]
    if options.model is not None:
        lm, tokenizer = load_lm(options.model, options.device)
    else:
        tokenizer = train_tokenizer(example.text for example in examples)
    shape = dict(task.model)
    if options.examples is not None:
        sequences = encode(tokenizer, [x.prompt for x in examples], [x.response for x in examples])
        longest = sequences.tokens.shape[1]
        shape["context"] = max(OWN_CONTEXT, sequences.prompt_tokens.shape[1] + longest)
    if options.model is None:
        lm = make_gpt2(tokenizer, **shape, seed=options.seed).to(options.device)

    reached = None
    if options.examples is None and options.task == "addition":
        reached = pipeline.stop_at(pipeline.SUM_START, lm, tokenizer, options.seed)

    def show(state: SupervisedState) -> bool:
        if options.show_every and state.update % options.show_every == 0:
            texts = sample(lm, tokenizer, shown, seed=state.update, max_new_tokens=longest)
            write_lines([f"step {state.update}: loss {state.log[-1]['loss']:.3f}", *texts])
        return reached is not None and reached(state)

    place = begin(options)
    state = train_sft(lm, tokenizer, examples, config, seed=options.seed, callback=show, progress=options.progress, **place)
    save_model(options.out / MODEL_NAME, lm, tokenizer)
    report_training(state)
    if options.examples is None and options.evaluation_prompts:
        prompts = task.prompts(options.evaluation_prompts, seed=options.seed, held_out=True)
        evaluation = evaluate_policy(lm, tokenizer, prompts, task.score, reference=lm, max_new_tokens=longest, seed=options.seed)
        print(f"on {len(prompts)} held-out prompts: mean score {evaluation.score:.3f}, above 0 in {evaluation.positive:.1%}")
    print(f"model: {options.out / MODEL_NAME}")


def run_reward_model(options: RewardModelOptions) -> None:
    """`ppo-edu lm reward-model`."""
    config = config_of(options, SupervisedConfig)
    check_options(options)
    if options.comparisons is not None:
        comparisons = split_comparisons(load_comparisons(options.comparisons), options.seed)
    lm, tokenizer = load_lm(options.model, options.device)
    place = begin(options)
    if options.comparisons is None:
        comparisons = simulated_comparisons(lm, tokenizer, options)
    training, held_out = comparisons
    model = RewardModel(lm)
    state = train_reward_model(model, tokenizer, training, config, seed=options.seed, progress=options.progress, **place)
    save_model(options.out / MODEL_NAME, model, tokenizer)
    report_training(state)
    if all(x.preferred == "tie" for x in held_out):
        print(f"the held-out comparisons ({len(held_out)}) are all ties: nothing to test with")
    else:
        report = evaluate_reward_model(model, tokenizer, held_out)
        best = f" (best possible {best_of(held_out, options.noise):.1%})" if options.comparisons is None else ""
        print(
            f"{report.accuracy:.1%}{best} of {len(held_out)} held-out comparisons right, calibration error {report.calibration_error:.3f}"
        )
    texts = list(dict.fromkeys((x.prompt, x.first) for x in held_out))
    scores = model.scores(tokenizer, *zip(*texts, strict=True)).tolist()
    for name, choose in (("highest", max), ("lowest", min)):
        score, (prompt, response) = choose(zip(scores, texts, strict=True))
        print(f"{name} held-out score {score:+.2f}: {joined(prompt, response)}")
    print(f"model: {options.out / MODEL_NAME}")


def run_ppo(options: PPOOptions) -> None:
    """`ppo-edu lm ppo`."""
    config, task = config_of(options, LMPPOConfig), TASKS[options.task]
    check_options(options)
    own = options.prompts is not None
    prompts = read_prompts(options.prompts) if own else task.prompts(task.num_prompts, seed=options.seed)
    reward_fn = reward_of(options, prompts)
    lm, tokenizer = load_lm(options.model, options.device)
    policy = PolicyWithValue(lm)
    place = begin(options)
    show = showing(options.show_every)
    result = train_ppo(policy, tokenizer, prompts, reward_fn, config, seed=options.seed, callback=show, progress=options.progress, **place)
    save_model(options.out / MODEL_NAME, policy, tokenizer)
    print(f"trained {len(result.log)} updates in {result.seconds:.1f} s")
    if n := options.evaluation_prompts:
        prompts, score = (prompts[:n], reward_fn) if own else (task.prompts(n, seed=options.seed, held_out=True), task.score)
        reference, _ = load_lm(options.model, options.device)
        settings = {"max_new_tokens": config.max_new_tokens, "temperature": config.temperature, "seed": options.seed}
        evaluation = evaluate_policy(policy, tokenizer, prompts, score, reference=reference, **settings)
        print(
            f"on {len(prompts)} {'prompts' if own else 'held-out prompts'}: mean score {evaluation.score:.3f}, "
            f"above 0 in {evaluation.positive:.1%}, KL {evaluation.kl:.2f} nats per response, perplexity {evaluation.perplexity:.2f}, "
            f"distinct-2 {evaluation.distinct_2:.2f}, {evaluation.response_length:.1f} tokens"
        )
    print(f"model: {options.out / MODEL_NAME}")


def run_sample(options: SampleOptions) -> None:
    """`ppo-edu lm sample`."""
    check_options(options)
    lm, tokenizer = load_lm(options.run, options.device)
    prompts = options.prompt
    if not prompts:
        prompts = TASKS[options.task or task_of(options.run)].prompts(DEFAULT_PROMPTS, seed=options.seed, held_out=True)
    longest = options.max_new_tokens
    if longest is None:
        left = context_length(lm) - encode_prompts(tokenizer, prompts)[0].shape[1]
        longest = max(1, min(DEFAULT_TOKENS, left))
    settings = {"max_new_tokens": longest, "temperature": options.temperature, "top_k": options.top_k, "top_p": options.top_p}
    repeated = [prompt for prompt in prompts for _ in range(options.num_samples)]
    print("\n".join(sample(lm, tokenizer, repeated, seed=options.seed, **settings)))


def run_pipeline(options: PipelineOptions) -> None:
    """`ppo-edu lm pipeline`."""
    check_options(options)
    if (options.out / OPTIONS_NAME).exists():
        check_same_config(read_options(options.out), kept_options(options))
    write_options(options.out, options)
    result = pipeline.run_pipeline(
        options.task, directory=options.out, seed=options.seed, progress=options.progress, callback=showing(options.show_every)
    )
    for stage, model in {"sft": result.sft, "reward-model": result.reward_model, "ppo": result.policy}.items():
        if model is not None:
            write_options(options.out / stage, options)  # so that `sample` knows the task
            save_model(options.out / stage / MODEL_NAME, model, result.tokenizer)
    print(result.report())
    print(f"model: {options.out / 'ppo' / MODEL_NAME}")


COMMANDS: dict[type, tuple[str, Callable[[Any], None]]] = {
    SFTOptions: ("sft", run_sft),
    RewardModelOptions: ("reward-model", run_reward_model),
    PPOOptions: ("ppo", run_ppo),
    SampleOptions: ("sample", run_sample),
    PipelineOptions: ("pipeline", run_pipeline),
}
Command = (
    Annotated[SFTOptions, tyro.conf.subcommand("sft", default=task_defaults(SFTOptions, "reviews", out=tyro.MISSING))]
    | Annotated[
        RewardModelOptions, tyro.conf.subcommand("reward-model", default=task_defaults(RewardModelOptions, "reviews", out=tyro.MISSING))
    ]
    | Annotated[PPOOptions, tyro.conf.subcommand("ppo", default=task_defaults(PPOOptions, "reviews", out=tyro.MISSING))]
    | Annotated[SampleOptions, tyro.conf.subcommand("sample")]
    | Annotated[PipelineOptions, tyro.conf.subcommand("pipeline")]
)


def run(args: Sequence[str]) -> None:
    """Run one command of `ppo-edu lm`.

    Raises: ValueError for options that cannot be; FloatingPointError or OSError where a run fails; SystemExit as the
    parser does.
    """
    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()  # what matters is raised
    options = parse(args)
    try:
        COMMANDS[type(options)][1](options)
    except torch.cuda.OutOfMemoryError as error:
        raise OSError("the device's memory is full: lower --batch-size, or raise --accumulation where there is one") from error


def parse(args: Sequence[str]) -> Trained | SampleOptions | PipelineOptions:
    """The options on a command line. It is read twice: the task, or the run that is resumed, decides over the defaults."""
    options = tyro.cli(Command, args=args, prog=PROGRAM, description=__doc__)
    if not isinstance(options, Trained):
        return options
    name = COMMANDS[type(options)][0]
    default = defaults(options)
    read = tyro.cli(type(options), args=args[1:], default=default, prog=f"{PROGRAM} {name}")
    if options.resume:
        check_same_config(kept_options(default), kept_options(read))
    return read


# The run's directory ---------------------------------------------------------------------------------------------------


def begin(options: Trained) -> dict[str, Any]:
    """Make a new run's directory. Returns the arguments that tell a trainer to start, or to continue, there."""
    if options.resume:
        return {"resume": options.out, "tensorboard": options.tensorboard}
    write_options(options.out, options)
    return {"log_dir": options.out, "tensorboard": options.tensorboard}


def write_options(directory: Path, options: Trained | PipelineOptions) -> None:
    """Write what a run was asked for into its directory, which is made where it is not."""
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError, PermissionError) as error:
        raise ValueError(f"out must be a directory that can be written, got {directory}: {error.strerror}") from error
    write_atomically(directory / OPTIONS_NAME, (json.dumps(kept_options(options), indent=1) + "\n").encode())


def save_model(folder: Path, model: PreTrainedModel | PolicyWithValue | RewardModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Write a model and its tokenizer as a folder: all of it or nothing."""
    temporary = folder.with_name(folder.name + ".part")
    shutil.rmtree(temporary, ignore_errors=True)  # of a run that was killed here
    try:
        model.save_pretrained(temporary)
        tokenizer.save_pretrained(temporary)
        shutil.rmtree(folder, ignore_errors=True)
        os.replace(temporary, folder)
    except Exception as error:  # three libraries write here, and a full disk is another exception in each
        raise OSError(f"cannot write {folder} ({first_line(error)}); the run's checkpoint is intact: continue it to try again") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def model_folder(name: str) -> str:
    """Where a model lies: inside a run, or what was named. Raises ValueError for a run that is not done."""
    path = Path(name)
    if (path / MODEL_NAME).is_dir():
        return str(path / MODEL_NAME)
    if (path / OPTIONS_NAME).exists():
        raise ValueError(f"{path} must be a finished run, but it holds no model yet; continue it first")
    return name


def load_lm(name: str, device: str) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A language model and its tokenizer, from a run, a folder or the hub."""
    folder = model_folder(name)
    if (Path(folder) / HEAD_NAME).exists():
        raise ValueError(f"model must write texts, got {name}, a reward model, which scores them")
    return load_causal_lm(folder, device=device)


def load_reward_model(name: str, device: str) -> RewardFn:
    """The scores of a reward model as a reward; it reads texts with its own tokenizer."""
    folder = model_folder(name)
    try:
        model = RewardModel.from_pretrained(folder, device=device)
        tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left", trust_remote_code=False)
    except LOADING_ERRORS as error:
        raise ValueError(f"reward_model must be a run of `{PROGRAM} reward-model`, got {name}: {first_line(error)}") from error
    return model.reward_fn(tokenizer)


def task_of(name: str) -> str:
    """The task that a run was trained on."""
    if not (Path(name) / OPTIONS_NAME).exists():
        raise ValueError(f"sample needs --prompt or --task: {name} is not a run, so its task is not known")
    kept = read_options(Path(name))
    if kept.get("examples") or kept.get("prompts"):
        raise ValueError(f"sample needs --prompt: {name} was trained on texts of your own")
    return kept["task"]


# What a run learns from --------------------------------------------------------------------------------------------------


def read_text(path: Path) -> str:
    """The text of a file. Raises ValueError where it cannot be read."""
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} must be a file of UTF-8 text: {getattr(error, 'strerror', None) or error}") from error


def read_examples(path: Path) -> list[Example]:
    """Examples from JSON lines with "prompt" and "response"; empty lines are skipped. Raises ValueError naming the bad line."""
    examples = []
    for number, line in enumerate(read_text(path).split("\n"), start=1):  # splitlines would split inside a string, at U+2028
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            example = Example(row["prompt"], row["response"])
            if not all(isinstance(x, str) for x in (example.prompt, example.response)) or not example.prompt:
                raise TypeError("both must be strings, the prompt not empty")
        except (KeyError, TypeError, json.JSONDecodeError) as error:
            reason = f"it has no {error}" if isinstance(error, KeyError) else error
            raise ValueError(
                f'{path} must hold one {{"prompt": ..., "response": ...}} per line, line {number} is none: {reason}'
            ) from error
        examples.append(example)
    if not examples:
        raise ValueError(f"{path} must hold at least one example, it holds none")
    return examples


def read_prompts(path: Path) -> list[str]:
    """Prompts from a text file, one per line; empty lines are skipped."""
    prompts = [line for line in read_text(path).split("\n") if line.strip()]
    if not prompts:
        raise ValueError(f"{path} must hold at least one prompt, it holds none")
    return prompts


def split_comparisons(comparisons: list[Comparison], seed: int) -> tuple[list[Comparison], list[Comparison]]:
    """A file's comparisons, shuffled: to learn from, and a tenth to test with."""
    if len(comparisons) < 2:
        raise ValueError(f"comparisons must be at least two, one to learn from and one to test with, got {len(comparisons)}")
    random.Random(seed).shuffle(comparisons)
    held_out = max(1, len(comparisons) // 10)
    return comparisons[held_out:], comparisons[:held_out]


def simulated_comparisons(
    lm: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, options: RewardModelOptions
) -> tuple[list[Comparison], list[Comparison]]:
    """Comparisons of a simulated annotator to learn from and to test with. They are kept in the run, for it to be resumed and looked at."""
    comparisons = []
    for name, n in ((COMPARISONS_NAME, options.num_comparisons), (HELD_OUT_NAME, options.num_held_out)):
        path, settings = options.out / name, {"seed": options.seed, "noise": options.noise, "held_out": name == HELD_OUT_NAME}
        if not options.resume:
            made, _ = pipeline.make_review_comparisons(lm, tokenizer, n, **settings)
            save_comparisons(path, made)
        comparisons.append(load_comparisons(path))
    return comparisons[0], comparisons[1]


def best_of(comparisons: list[Comparison], noise: float) -> float:
    """Accuracy of somebody who knows the scores that the simulated annotator went by."""
    prompts = [x.prompt for x in comparisons]
    first, second = (gold_score(prompts, [getattr(x, name) for x in comparisons]) for name in ("first", "second"))
    return best_accuracy(first, second, noise=noise)


def reward_of(options: PPOOptions, prompts: list[str]) -> RewardFn:
    """The reward that was asked for. Raises ValueError where none was, or two were."""
    if options.reward_model is not None:
        if options.reward is not None:
            raise ValueError("ppo needs one reward, got both --reward-model and --reward")
        return load_reward_model(options.reward_model, options.device)
    if options.task == "reviews" and options.reward is None:
        raise ValueError("ppo needs a reward: --reward-model RUN, --reward gold or --task addition")
    score = TASKS[options.task].score
    score(prompts, [""] * len(prompts))  # a prompt that it cannot read is better found now
    return score


def check_options(options: Any) -> None:
    """Check what the configs and the trainers do not, and refuse to overwrite a run. Raises ValueError naming the option."""
    for name in ("num_examples", "num_comparisons", "num_held_out", "num_samples"):
        if hasattr(options, name):
            check_count(**{name: getattr(options, name)})
    for name in ("show_every", "evaluation_prompts", "seed"):
        if getattr(options, name, 0) < 0:
            raise ValueError(f"{name} must be an int of at least 0, got {getattr(options, name)}")
    if isinstance(options, RewardModelOptions | PPOOptions) and options.model is None:
        raise ValueError(f"{COMMANDS[type(options)][0]} needs --model: a run, a folder or a name on the hub")
    if hasattr(options, "noise"):
        check_nonnegative(noise=options.noise)
    if hasattr(options, "device"):
        try:
            torch.empty(0, device=options.device)
        except (RuntimeError, AssertionError) as error:  # the second where torch was built without CUDA
            raise ValueError(f"device must be one that torch can use here, got {options.device!r}: {first_line(error)}") from error
    if isinstance(options, Trained) and not options.resume and (options.out / CHECKPOINT_NAME).exists():
        raise ValueError(f"out must not hold a run already, got {options.out}; continue it with --resume, or choose another directory")


# What is shown -----------------------------------------------------------------------------------------------------------


def sample(lm: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str], *, seed: int, **settings: Any) -> list[str]:
    """One sample of each prompt as text to show."""
    generator = torch.Generator(lm.device).manual_seed(seed)
    shown = []
    for start in range(0, len(prompts), GENERATED_AT_ONCE):
        some = prompts[start : start + GENERATED_AT_ONCE]
        responses = generate(lm, tokenizer, some, generator=generator, **settings)
        rows = zip(some, decode(tokenizer, responses), responses.ended.tolist(), strict=True)
        shown += [joined(prompt, response) + ("" if ended else "...") for prompt, response, ended in rows]
    return shown


def showing(every: int) -> Callable[[TrainState], None]:
    """A callback of `train_ppo` that shows samples above the progress bar, every so many updates."""

    def show(state: TrainState) -> None:
        if every and state.update % every == 0:
            row, samples = state.log[-1], state.samples[:SHOWN]
            texts = [f"score {x.score:+.2f}, KL {round(x.kl, 1) + 0.0:.1f}: {joined(x.prompt, x.response)}" for x in samples]
            write_lines([f"update {state.update}: reward {row['reward']:.3f}, KL {round(row['kl'], 2) + 0.0:.2f}", *texts])

    return show


def joined(prompt: str, response: str) -> str:
    """Prompt and response with a bar between them."""
    return f"{prompt} |{response}"


def write_lines(lines: list[str]) -> None:
    """Print a headline and lines below it, above the progress bar, each on one line of a terminal or two."""
    for i, line in enumerate(lines):
        tqdm.write(("  " if i else "") + textwrap.shorten(line, 160, placeholder=" [...]"))


def report_training(state: SupervisedState) -> None:
    """Say what a supervised training came to."""
    print(f"trained {state.update} steps in {state.seconds:.1f} s to a loss of {state.log[-1]['loss']:.3f}")
