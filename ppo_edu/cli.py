"""The command line: `ppo-edu train`, `evaluate`, `lm` and `info`. Options are generated from the config dataclasses."""

import dataclasses
import platform
import sys
from collections.abc import Callable, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import tyro

from ppo_edu.control import PPOConfig, evaluate, load_policy, train
from ppo_edu.control.presets import ACROBOT, CARTPOLE, PENDULUM, TEXT

PRESETS = {"cartpole": CARTPOLE, "acrobot": ACROBOT, "pendulum": PENDULUM, "text": TEXT}
SHORT_NAMES = {"mountaincar": "MountainCar-v0", "lunarlander": "LunarLander-v3"} | {name: x.env_id for name, x in PRESETS.items()}


@dataclasses.dataclass(frozen=True)
class TrainOptions(PPOConfig):
    """Train a policy with PPO and evaluate it greedily over 100 episodes."""

    env_id: tyro.conf.Positional[str] = "cartpole"
    """Gymnasium environment, or a short name: cartpole, acrobot, pendulum and text bring the options that solve them."""
    seed: int = 0
    """Seed of everything random in the run."""
    log_dir: Path | None = None
    """Directory for the log and the checkpoint; needed to evaluate or resume later."""
    resume: Path | None = None
    """Directory of a run to continue, with the same options as before."""
    tensorboard: bool = False
    """Write TensorBoard event files into the log directory too."""
    progress: bool = True
    """Show a progress bar."""

    def __post_init__(self) -> None:
        """Nothing is checked before all is known: `config` does it."""

    @property
    def config(self) -> PPOConfig:
        """What to train. Raises: ValueError for a bad value."""
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(PPOConfig)}
        return PPOConfig(**values | {"env_id": SHORT_NAMES.get(self.env_id, self.env_id)})


@dataclasses.dataclass(frozen=True)
class EvaluateOptions:
    """Evaluate the policy of a run: mean, spread and extremes of its episode returns."""

    run: tyro.conf.Positional[Path]
    """The run's directory, or its checkpoint."""
    episodes: int = 100
    """Whole episodes to play."""
    seed: int = 0
    """Seed of the episodes."""
    greedy: bool = True
    """Play the most probable action; otherwise sample."""


@dataclasses.dataclass(frozen=True)
class InfoOptions:
    """Versions and device: what to paste into an issue."""


@dataclasses.dataclass(frozen=True)
class LMOptions:
    """Language models: sft, reward-model, ppo, sample and pipeline; see `ppo-edu lm --help`."""


def run_train(options: TrainOptions) -> None:
    """`ppo-edu train`."""
    config = options.config
    result = train(
        config,
        seed=options.seed,
        log_dir=options.log_dir,
        resume=options.resume,
        progress=options.progress,
        tensorboard=options.tensorboard,
    )
    print(f"trained {result.env_steps} environment steps in {result.seconds:.1f} s")
    report(evaluate(result.policy, config.env_id, seed=options.seed))


def run_evaluate(options: EvaluateOptions) -> None:
    """`ppo-edu evaluate`."""
    policy, config = load_policy(options.run)
    report(evaluate(policy, config.env_id, episodes=options.episodes, seed=options.seed, greedy=options.greedy))


def run_info(options: InfoOptions) -> None:
    """`ppo-edu info`."""
    import torch

    for name in ("ppo-edu", "torch", "gymnasium", "numpy", "transformers"):
        try:
            print(f"{name:14}{version(name)}")
        except PackageNotFoundError:
            print(f"{name:14}not installed")
    print(f"{'python':14}{platform.python_version()} on {platform.system()} {platform.machine()}")
    print(f"{'device':14}{torch.cuda.get_device_name() if torch.cuda.is_available() else 'cpu'}, {torch.get_num_threads()} threads")


def run_lm(args: Sequence[str]) -> None:
    """`ppo-edu lm`, whose options are read by `ppo_edu.lm.cli`."""
    try:
        from ppo_edu.lm import cli  # only now: importing transformers takes seconds
    except ModuleNotFoundError as error:
        raise ValueError(f"ppo-edu lm needs the package {error.name}, which is not installed") from error
    cli.run(args)


def report(returns: np.ndarray) -> None:
    """Print what a set of episode returns amounts to."""
    statistics = {"mean": returns.mean(), "sd": returns.std(), "min": returns.min(), "max": returns.max()}
    print(f"return over {len(returns)} episodes: " + ", ".join(f"{name} {x:.1f}" for name, x in statistics.items()))


COMMANDS: dict[type, Callable] = {TrainOptions: run_train, EvaluateOptions: run_evaluate, InfoOptions: run_info}
Command = (
    Annotated[TrainOptions, tyro.conf.subcommand("train")]
    | Annotated[EvaluateOptions, tyro.conf.subcommand("evaluate")]
    | Annotated[LMOptions, tyro.conf.subcommand("lm")]
    | Annotated[InfoOptions, tyro.conf.subcommand("info")]
)


def main(args: Sequence[str] | None = None) -> int:
    """Run one command. Exit codes: 0 done, 1 failed while running, 2 bad options, 130 Ctrl-C."""
    args = sys.argv[1:] if args is None else args
    try:
        if args and args[0] == "lm":
            run_lm(args[1:])
            return 0
        options = parse(args)
        COMMANDS[type(options)](options)
    except ValueError as error:
        return fail(error, 2)
    except (FloatingPointError, OSError) as error:
        return fail(error, 1)
    except KeyboardInterrupt:
        return fail("interrupted; a run with a log directory can be resumed", 130)
    return 0


def parse(args: Sequence[str]) -> Any:
    """The options of a command line. For a task with a preset, an option that is not given is the preset's."""
    options = tyro.cli(Command, args=args, prog="ppo-edu", description=__doc__)
    if isinstance(options, TrainOptions) and options.env_id in PRESETS:
        default = TrainOptions(**vars(PRESETS[options.env_id]))
        options = tyro.cli(TrainOptions, args=args[1:], prog="ppo-edu train", default=default)
    return options


def fail(error: object, code: int) -> int:
    """Print one line that says what went wrong; returns the exit code."""
    print(f"ppo-edu: error: {error}", file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
