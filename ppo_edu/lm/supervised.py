"""The loop of supervised training that the language model's start and the reward model share."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from ppo_edu.core.validation import check_count, check_nonnegative, check_positive
from ppo_edu.runs import Row, Run, deferred_interrupt, load_into, module_tensors, optimizer_tensors, restore_optimizer, seeded

WARM_UP = 0.05  # share of the steps over which the learning rate rises


@dataclass(frozen=True)
class SupervisedConfig:
    """How to learn from examples. The defaults suit the small models of this course; larger ones want smaller steps."""

    epochs: int = 1
    """Passes over the examples."""
    batch_size: int = 16
    """Examples per optimiser step, approximately: they are split evenly."""
    learning_rate: float = 6e-3
    """AdamW's largest step size; it rises over the first 5 % of the steps and falls linearly to 0."""
    weight_decay: float = 0.01
    """AdamW's decay of the weights."""
    max_grad_norm: float | None = 1.0
    """Scale gradients down to this global norm. None leaves them as they are."""

    def __post_init__(self) -> None:
        check_count(epochs=self.epochs, batch_size=self.batch_size)
        check_nonnegative(learning_rate=self.learning_rate, weight_decay=self.weight_decay)
        if self.max_grad_norm is not None:
            check_positive(max_grad_norm=self.max_grad_norm)


@dataclass
class SupervisedState:
    """Where a training stands; what a callback sees after each step."""

    model: nn.Module
    seed: int = 0
    update: int = 0
    seconds: float = 0.0  # callbacks excluded
    log: list[Row] = field(default_factory=list)


Callback = Callable[[SupervisedState], bool | None]


def fit(
    kind: str,
    model: nn.Module,
    loss_fn: Callable[[Tensor], Tensor],
    num_examples: int,
    config: SupervisedConfig,
    identity: dict[str, Any],
    *,
    seed: int,
    callback: Callback | None,
    log_dir: str | Path | None,
    resume: str | Path | None,
    progress: bool,
    tensorboard: bool,
    checkpoint_every: int,
) -> SupervisedState:
    """Minimise loss_fn(index of the examples in the batch) -> scalar. The same seed gives the same weights.

    A resumed run asks the callback first, so that one which it had stopped stays where it is.

    `kind` and `identity` say what a checkpoint belongs to. The order of each epoch follows from the seed and the epoch
    alone (the seed is the checkpoint's), so a resumed run sees the examples that an unbroken one would.
    """
    check_count(checkpoint_every=checkpoint_every)
    started = time.perf_counter()
    per_epoch = max(1, round(num_examples / config.batch_size))
    steps = config.epochs * per_epoch
    optimizer = torch.optim.AdamW(model.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay, fused=True)
    was_training = model.training
    model.train()
    try:
        with (
            seeded(seed),
            Run(kind, identity, log_dir=log_dir, resume=resume, tensorboard=tensorboard) as run,
            deferred_interrupt() as interrupted,
            tqdm(total=steps, unit=" steps", disable=not progress) as bar,
        ):
            state = SupervisedState(model, seed, log=run.log)
            if run.resumed is None:
                run.save(state_tensors(state, optimizer))  # so that a run killed before its first checkpoint can be resumed too
            else:
                restore(state, optimizer, run)
                bar.update(state.update)
                if callback is not None and callback(state):
                    steps = state.update
                started = time.perf_counter()
            stop = state.update >= steps
            while not stop:
                epoch, part = divmod(state.update, per_epoch)
                rate = config.learning_rate * scheduled(state.update, steps)
                for group in optimizer.param_groups:
                    group["lr"] = rate
                index = epoch_order(num_examples, state.seed, epoch).tensor_split(per_epoch)[part]
                try:
                    loss = loss_fn(index)
                except ValueError as error:  # the examples were checked before: what is refused now are the model's numbers
                    raise FloatingPointError(f"training diverged at step {state.update + 1}: {error}") from error
                optimizer.zero_grad()
                loss.backward()
                grad_norm = nn.utils.clip_grad_norm_(model.parameters(), config.max_grad_norm or math.inf)
                optimizer.step()
                state.update += 1
                row = {"loss": float(loss.detach()), "grad_norm": float(grad_norm), "learning_rate": rate}
                for name, x in row.items():
                    if not math.isfinite(x):
                        raise FloatingPointError(f"training diverged at step {state.update}: {name} is {x}")
                state.seconds += time.perf_counter() - started
                run.append({"update": state.update, "seconds": state.seconds, **row})
                bar.update()
                bar.set_postfix(loss=row["loss"], refresh=False)
                stop = bool(callback(state)) if callback is not None else False
                started = time.perf_counter()
                stop = stop or interrupted() or state.update >= steps
                if stop or state.update % checkpoint_every == 0:
                    run.save(state_tensors(state, optimizer))
            if interrupted():
                raise KeyboardInterrupt
    finally:
        model.train(was_training)
    return state


def scheduled(step: int, steps: int) -> float:
    """What the learning rate is multiplied by: up over the first few steps, then linearly down towards 0."""
    warm_up = max(1, round(WARM_UP * steps))
    return min((step + 1) / warm_up, (steps - step) / max(1, steps - warm_up))


def epoch_order(n: int, seed: int, epoch: int) -> Tensor:
    """The order in which an epoch visits n examples."""
    return torch.randperm(n, generator=torch.Generator().manual_seed((seed << 24) + epoch))


def state_tensors(state: SupervisedState, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Everything that a resumed run needs."""
    return {
        **module_tensors(state.model, "model."),
        **optimizer_tensors(optimizer),
        "random.torch": torch.get_rng_state(),
        "seed": torch.tensor(state.seed),
        "seconds": torch.tensor(state.seconds, dtype=torch.float64),
    }


def restore(state: SupervisedState, optimizer: torch.optim.Optimizer, run: Run) -> None:
    """Put back what `state_tensors` returned."""
    tensors = run.resumed.tensors
    load_into(state.model, tensors, "model.")
    restore_optimizer(optimizer, tensors)
    torch.set_rng_state(tensors["random.torch"])
    state.seed, state.seconds = int(tensors["seed"]), float(tensors["seconds"])
    state.update = run.resumed.update
