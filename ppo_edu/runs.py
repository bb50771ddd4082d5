"""What every training run needs, whatever it trains: seeding, a log, atomic checkpoints, a Ctrl-C that loses nothing.

A run's directory holds `log.jsonl` (one JSON object per update), `checkpoint.safetensors` (tensors and strings only:
loading it can execute nothing) and, when asked, TensorBoard event files.
"""

import hashlib
import json
import math
import os
import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, is_dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from ppo_edu.core.validation import is_number

CHECKPOINT_NAME = "checkpoint.safetensors"
LOG_NAME = "log.jsonl"
FORMAT = "ppo-edu-1"

Row = dict[str, float]


@dataclass(frozen=True)
class Checkpoint:
    """Tensors by name, and the strings that say what they belong to."""

    tensors: dict[str, Tensor]
    kind: str  # which trainer wrote it
    config: dict[str, Any]  # the trainer's config, as JSON holds it
    update: int  # updates done


class Run:
    """A run's log and checkpoint on disk; with `log_dir=None`, a log in memory only.

    A directory that already holds a run is refused unless it is resumed: nothing is overwritten. (An empty log without
    a checkpoint, left by a run that failed before its first update, is no run.)
    """

    def __init__(
        self, kind: str, config: Any, *, log_dir: str | Path | None = None, resume: str | Path | None = None, tensorboard: bool = False
    ) -> None:
        self.kind, self.config = kind, config_as_json(config)
        self.log: list[Row] = []
        self.resumed: Checkpoint | None = None
        self.directory = _directory(log_dir, resume)
        self._file = self._writer = None
        if self.directory is None:
            if tensorboard:
                raise ValueError("tensorboard needs log_dir: where to write the event files")
            return
        if tensorboard:
            summary_writer = _summary_writer_class()
        self._open(resume is not None)
        if tensorboard:
            purge_step = None if self.resumed is None else self.resumed.update + 1  # TensorBoard, too, forgets later rows
            self._writer = summary_writer(str(self.directory), purge_step=purge_step)

    def _open(self, resuming: bool) -> None:
        log_path, checkpoint_path = self.directory / LOG_NAME, self.directory / CHECKPOINT_NAME
        if resuming:
            self.resumed = load_checkpoint(checkpoint_path, kind=self.kind)
            check_same_config(self.resumed.config, self.config)
            self.log = [row for row in read_log(log_path) if row["update"] <= self.resumed.update]
            write_atomically(log_path, "".join(map(_json_line, self.log)).encode())
        elif checkpoint_path.exists() or (log_path.exists() and log_path.stat().st_size > 0):
            raise ValueError(f"log_dir must not hold a run already, got {self.directory}; resume it, or choose another directory")
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            self._file = open(log_path, "a", encoding="utf-8")  # noqa: SIM115, closed by close()
        except OSError as error:
            raise ValueError(f"log_dir must be writable, got {self.directory}: {error.strerror}") from error

    def append(self, row: Row) -> None:
        """Add one row to the log; every number must be finite but for those that are NaN because nothing was there to measure."""
        self.log.append(row)
        if self._file is not None:
            self._file.write(_json_line(row))
            self._file.flush()
        if self._writer is not None:
            for name, x in row.items():
                self._writer.add_scalar(name, x, int(row["update"]))

    def save(self, tensors: Mapping[str, Tensor]) -> None:
        """Write the checkpoint atomically. Without a directory, nothing."""
        if self.directory is not None:
            os.fsync(self._file.fileno())  # the log first: on disk, too, it is never behind the checkpoint
            update = int(self.log[-1]["update"]) if self.log else 0
            save_checkpoint(self.directory / CHECKPOINT_NAME, Checkpoint(dict(tensors), self.kind, self.config, update))

    def close(self) -> None:
        """Close the files. The run may be resumed later."""
        for file in (self._file, self._writer):
            if file is not None:
                file.close()

    def __enter__(self) -> "Run":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _directory(log_dir: str | Path | None, resume: str | Path | None) -> Path | None:
    """Where the run lives. `resume` may name the run's directory or the checkpoint in it."""
    if resume is None:
        return None if log_dir is None else Path(log_dir)
    directory = Path(resume)
    if directory.name == CHECKPOINT_NAME:
        directory = directory.parent
    if log_dir is not None and Path(log_dir).resolve() != directory.resolve():
        raise ValueError(f"log_dir must be left out or be the run that resume names ({directory}), got {log_dir}")
    return directory


def _summary_writer_class() -> type:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise ValueError("tensorboard=True needs the tensorboard package: pip install tensorboard") from error
    return SummaryWriter


def _json_line(row: Row) -> str:
    """One row as JSON. JSON has no NaN, so a NaN (nothing to measure) is written as null."""
    return json.dumps({name: None if math.isnan(x) else x for name, x in row.items()}, allow_nan=False) + "\n"


def read_log(path: str | Path) -> list[Row]:
    """The rows of a JSON-lines log, null read back as NaN. A last line cut off by a kill is left out."""
    path = Path(path)
    if not path.exists():
        return []
    rows = []
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True)
    for number, line in enumerate(lines, start=1):
        if number == len(lines) and not line.endswith("\n"):
            break
        try:
            row = {name: math.nan if x is None else x for name, x in json.loads(line).items()}
            if "update" not in row or not all(is_number(x) for x in row.values()):
                raise ValueError("not a row of a run")
            rows.append(row)
        except (ValueError, AttributeError) as error:
            raise ValueError(f"{path} must hold one JSON object of numbers per line, got {line.strip()[:80]!r} on line {number}") from error
    return rows


def column(log: list[Row], name: str) -> np.ndarray:
    """One column of a log as an array; NaN where a row has no such entry."""
    return np.array([row.get(name, math.nan) for row in log])


# Checkpoints ---------------------------------------------------------------------------------------------------------


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file so that a reader, or a machine that dies at any moment, sees the old content or the new, never a part."""
    temporary = path.with_name(path.name + ".part")
    try:
        with open(temporary, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise OSError(error.errno, f"cannot write {path} ({error.strerror}); what was there before is intact") from error
    finally:  # after a failure, a Ctrl-C too; after a success there is nothing left to remove
        with suppress(OSError):
            temporary.unlink()


def save_checkpoint(path: str | Path, checkpoint: Checkpoint) -> None:
    """Write tensors and metadata as one safetensors file, atomically.

    safetensors refuses tensors that share memory, so tied weights must be named once by the caller.
    """
    metadata = {
        "format": FORMAT,
        "kind": checkpoint.kind,
        "config": json.dumps(checkpoint.config),
        "update": str(checkpoint.update),
    }
    tensors = {name: x.detach().cpu().contiguous() for name, x in checkpoint.tensors.items()}
    write_atomically(Path(path), safetensors.torch.save(tensors, metadata))


def load_checkpoint(path: str | Path, *, kind: str) -> Checkpoint:
    """Read a checkpoint that the trainer `kind` wrote. Raises ValueError for a missing, damaged or foreign file."""
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"no checkpoint at {path}")
    try:
        with safetensors.safe_open(str(path), framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118, not a dict
    except (safetensors.SafetensorError, OSError) as error:
        raise ValueError(f"{path} is not a readable checkpoint: {error}") from error
    if metadata.get("format") != FORMAT or metadata.get("kind") != kind:
        written_by = f"{metadata.get('format', 'another program')}, kind {metadata.get('kind', 'none')}"
        raise ValueError(f"{path} must be a checkpoint of {FORMAT}, kind {kind}; it was written by {written_by}")
    try:
        config, update = dict(json.loads(metadata["config"])), int(metadata["update"])
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} is not a readable checkpoint: its metadata is damaged") from error
    return Checkpoint(tensors, kind, config, update)


def config_as_json(config: Any) -> dict[str, Any]:
    """A config dataclass (or dict) as JSON holds it: tuples become lists."""
    return json.loads(json.dumps(asdict(config) if is_dataclass(config) else config))


def fingerprint(texts: list[str]) -> str:
    """A short name of a list of texts, for a config: so that a run is not resumed on other data."""
    return hashlib.sha256("\0".join(texts).encode()).hexdigest()[:16]


def check_same_config(saved: dict[str, Any], given: dict[str, Any]) -> None:
    """Resuming must continue the same run: raises ValueError naming every field that differs."""
    differing = [name for name in sorted(saved.keys() | given.keys()) if saved.get(name) != given.get(name)]
    if differing:
        details = ", ".join(f"{name} (checkpoint {saved.get(name)!r}, given {given.get(name)!r})" for name in differing)
        raise ValueError(f"config must equal the checkpoint's to resume, but these differ: {details}")


def module_tensors(module: nn.Module, prefix: str) -> dict[str, Tensor]:
    """The state of a module as named tensors. A tensor with two names (a tied head) is given once: safetensors refuses twins."""
    tensors: dict[str, Tensor] = {}
    seen = set()
    for name, x in module.state_dict().items():
        place = (x.untyped_storage().data_ptr(), x.storage_offset(), x.shape)
        if place not in seen or x.numel() == 0:
            tensors[prefix + name] = x
        seen.add(place)
    return tensors


def load_into(module: nn.Module, tensors: Mapping[str, Tensor], prefix: str) -> None:
    """Load the tensors named `prefix...` into a module. Raises ValueError where names or shapes do not fit."""
    state = {name.removeprefix(prefix): x for name, x in tensors.items() if name.startswith(prefix)}
    expected = set(module_tensors(module, ""))
    if state.keys() != expected:
        first = sorted(state.keys() ^ expected)[0]
        where = "only the checkpoint" if first in state else "only the model"
        raise ValueError(f"the checkpoint does not fit the model: {where} has {first}")
    try:
        module.load_state_dict(state, strict=False)  # names are checked above; tied twins follow their first
    except RuntimeError as error:
        raise ValueError(f"the checkpoint does not fit the model: {error}") from error


# State as tensors ----------------------------------------------------------------------------------------------------


def optimizer_tensors(optimizer: torch.optim.Optimizer, prefix: str = "optimizer.") -> dict[str, Tensor]:
    """The optimiser's state (moments, step counts) as named tensors."""
    state = optimizer.state_dict()["state"]
    return {f"{prefix}{i}.{name}": torch.as_tensor(x) for i, entries in state.items() for name, x in entries.items()}


def restore_optimizer(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor], prefix: str = "optimizer.") -> None:
    """Put back what `optimizer_tensors` returned; the hyperparameters stay those of `optimizer`."""
    state: dict[int, dict[str, Tensor]] = {}
    for name, x in tensors.items():
        if name.startswith(prefix):
            index, entry = name.removeprefix(prefix).split(".")
            state.setdefault(int(index), {})[entry] = x
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def generator_tensor(generator: np.random.Generator) -> Tensor:
    """The state of a NumPy PCG64 generator as int64 words (its two numbers have 128 bits each)."""
    state = generator.bit_generator.state
    if state["bit_generator"] != "PCG64":
        raise ValueError(f"generator must be a PCG64, got {state['bit_generator']}")
    numbers = [state["state"]["state"], state["state"]["inc"]]
    words = [word for x in numbers for word in (x >> 64, x & (2**64 - 1))] + [state["has_uint32"], state["uinteger"]]
    return torch.from_numpy(np.array(words, dtype=np.uint64).view(np.int64))


def restore_generator(generator: np.random.Generator, words: Tensor) -> None:
    """Put back what `generator_tensor` returned."""
    w = [int(x) for x in words.numpy().view(np.uint64)]
    generator.bit_generator.state = {
        "bit_generator": "PCG64",
        "state": {"state": w[0] << 64 | w[1], "inc": w[2] << 64 | w[3]},
        "has_uint32": w[4],
        "uinteger": w[5],
    }


def check_seed(seed: int) -> None:
    """Raises: ValueError for what is no seed."""
    if not isinstance(seed, int) or isinstance(seed, bool) or not 0 <= seed < 2**32:
        raise ValueError(f"seed must be an int in [0, 2**32), got {seed!r}")


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed torch inside a `with` block and give the caller's random state back afterwards."""
    check_seed(seed)
    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else []  # starting CUDA would take seconds
    with torch.random.fork_rng(devices):
        torch.manual_seed(seed)
        yield


# Ctrl-C --------------------------------------------------------------------------------------------------------------


@contextmanager
def deferred_interrupt() -> Iterator[Callable[[], bool]]:
    """Note the first Ctrl-C instead of raising, so that an update can end; a second one interrupts at once.

    Yields a function that tells whether one came. Signals reach the main thread only; elsewhere nothing is deferred.
    """
    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    came = False

    def note(signum: int, frame: Any) -> None:
        nonlocal came
        if came:
            raise KeyboardInterrupt
        came = True

    previous = signal.signal(signal.SIGINT, note)
    try:
        yield lambda: came
    finally:
        signal.signal(signal.SIGINT, previous)
