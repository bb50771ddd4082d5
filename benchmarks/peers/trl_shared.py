"""What both trl sides share: what their trainers are told, and a stopwatch.

The stopwatch is a callback that a trainer of transformers takes, and functions that stamp as they run.
"""

import gc
import time
from collections.abc import Callable
from typing import Any

from transformers import TrainerCallback

from benchmarks.lm_workload import Workload
from benchmarks.metadata import now


def training_arguments(work: Workload, output: str) -> dict[str, Any]:
    """Arguments of transformers that are the same for every trainer of trl: constant learning rate, nothing saved or reported."""
    return {
        "output_dir": output,
        "learning_rate": work.learning_rate,
        "lr_scheduler_type": "constant",
        "gradient_checkpointing": False,
        "bf16": work.device == "cuda",
        "use_cpu": work.device == "cpu",
        "save_strategy": "no",
        "eval_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "seed": work.seed,
    }


class Clock(TrainerCallback):
    """Seconds by phase of one update after the other; an update is `steps` steps in the trainer's count.

    Generation lasts from the stamp "generate" to "generated", scoring from there to "update", the update to its last
    `on_step_end`; the total is all the time between two of those, garbage collections included and noted.
    """

    def __init__(self, device: str, steps: int = 1) -> None:
        self.device, self.steps = device, steps
        self.rows: list[dict[str, float]] = []
        self.stamps: dict[str, float] = {}
        self.collecting = self.begun_collecting = 0.0
        gc.callbacks.append(self._on_collection)

    def _on_collection(self, phase: str, info: dict[str, int]) -> None:
        if info["generation"] < 2:  # the small ones come by themselves
            return
        if phase == "start":
            self.begun_collecting = time.perf_counter()
        else:
            self.collecting += time.perf_counter() - self.begun_collecting

    def stamp(self, name: str) -> None:
        """Note the time, the first time in an update."""
        if name not in self.stamps:
            self.stamps[name] = now(self.device)

    def stamped(self, function: Callable, *, before: str | None = None, after: str | None = None) -> Callable:
        """The function, with a stamp before it and one after it."""

        def run(*args: Any, **kwargs: Any) -> Any:
            if before:
                self.stamp(before)
            answer = function(*args, **kwargs)
            if after:
                self.stamp(after)
            return answer

        return run

    def on_train_begin(self, args, state, control, **kwargs) -> None:
        self.stamps, self.collecting = {"begin": now(self.device)}, 0.0

    def on_step_end(self, args, state, control, **kwargs) -> None:
        if state.global_step % self.steps:
            return
        s, end = self.stamps, now(self.device)
        self.rows.append(
            {
                "total": end - s["begin"],
                "generation": s["generated"] - s["generate"],
                "scoring": s["update"] - s["generated"],
                "update": end - s["update"],
                "garbage_collection": self.collecting,
            }
        )
        self.stamps, self.collecting = {"begin": end}, 0.0
