"""How near the machine's limits a PPO update comes: bytes and operations that the work needs, against what the machine can do.

    python -m benchmarks.roofline [--device cpu|cuda] [--sizes small 3m ...] [--decoding 30m] [--sequences N] [--updates 4] [--output FILE]

Every phase has two lower bounds: the bytes it must move over the bandwidth, and the operations it must do over the rate of matrix
products. The larger is its bound, and bound over measured seconds the fraction achieved (Williams et al. 2009). Only what any program would
have to do is counted. B sequences of P prompt and T new tokens, L = P + T - 1 of them read; `matrices` counts the weights in the
layers' matrix products, `output` those of the output layer, A the layers times heads times head size; p is bytes per number.

    one token of B sequences at length n (decoding)   operations  2 B (matrices + output) + 4 B A n
                                                      bytes       p (matrices + output + 2 B A n): weights once, the cache's valid part
    prompts (the first token)                         operations  2 B (P matrices + output) + 2 B A P (P + 1)
    generation                                        the prompts and T - 1 tokens at lengths P + 1, ..., P + T - 1
    forward                                           operations  2 B (L matrices + T output) + 2 B A L (L + 1): causal, so half the square;
                                                                  the output layer at response positions only
    scoring                                           2 forward: policy and reference; the weights of both, once per part
    update                                            epochs * 3 forward: the backward pass takes twice the operations; with gradient
                                                      checkpointing a fourth, without output layer (8 instead of 6 per weight and token)
                                                      bytes: activations written and read once (`memory_estimate`), weights twice per part,
                                                      Adam's 28 bytes per parameter and step: 4 numbers read, 3 written

The machine is measured beside the work: a copy of a large tensor, its bytes counted read and written, and a square matrix product in the
precision that is used. The model and its prompts are those of `lm_workload.py` (all responses have their full length), the critic is a head
on the policy's trunk; seconds are those that `train_ppo` logs, medians over the updates after a warm-up. On a GPU with `GPU_SETTINGS`,
on a CPU in float32 on one thread, with `CPU_SEQUENCES` sequences at most: it takes three minutes.

The JSON, `ppo_edu/teach/data/roofline.json` (of a GPU: `gpu_roofline.json`):

    question, command, metadata   what was asked, how, on which machine (`load_average`: of the last minute, as it began)
    machine   {"copy_bandwidth": bytes per second, "matrix_rate": {precision: operations per second}, "precision"}
    sizes     {name: {"workload", "settings": fields of LMPPOConfig beside the workload's, "parameters", "matrices", "output",
              "phases": {"generation" | "scoring" | "update": {"seconds": median, "by_update": [seconds], "operations", "bytes",
              "intensity": operations per byte, "bandwidth_seconds", "matrix_seconds": the two bounds, "bound": "bandwidth" | "matrix",
              "fraction": bound / seconds, "bandwidth_fraction", "matrix_fraction"}}}}
    decoding  one size, token by token, for several batches: {"workload", "rows": [{"batch", "seconds": median of one token's step, ...}]}
              with the same fields as a phase. Where the two bounds cross, at B = p * rate / (2 * bandwidth) about, decoding stops being
              bound by the weights it reads.
    crossing  that B, from the machine's numbers
"""

import argparse
import os
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from transformers import GPT2Config

from benchmarks.lm_setup import Training, add_device_option, make_policy, ppo_config, prepare
from benchmarks.lm_workload import PHASES, SIZES, Workload
from benchmarks.metadata import machine_metadata, now
from benchmarks.report import data_path, write_json
from ppo_edu.lm import GPU_SETTINGS, Decoder, LMPPOConfig, generate, memory_estimate

NAME = "roofline"
BYTES = {"float32": 4, "bfloat16": 2}
CPU_SIZES, GPU_SIZES = ("small", "3m"), ("3m", "30m", "124m")
CPU_SEQUENCES = 64
WARM_UP = {"cpu": 1, "cuda": 3}  # updates; compiled graphs are made in the first ones
DECODING = {"cpu": ((1, 2, 4, 8, 16, 32, 64), 12), "cuda": ((1, 16, 64, 256, 1024), 64)}  # batches, new tokens


@dataclass(frozen=True)
class Model:
    """What operations and bytes are counted from."""

    matrices: int  # weights in the layers' matrix products
    output: int  # weights of the output layer
    attention: int  # layers * heads * head size
    parameters: int  # of policy and critic

    @classmethod
    def of(cls, config: GPT2Config, parameters: int) -> "Model":
        """A GPT-2's: queries, keys, values and output, w w each, and an MLP of w to 4 w and back."""
        w, layers = config.n_embd, config.n_layer
        return cls(12 * w * w * layers, w * config.vocab_size, w * layers, parameters)


@dataclass(frozen=True)
class Work:
    """What a phase cannot do without."""

    operations: float
    bytes: float

    def __add__(self, other: "Work") -> "Work":
        return Work(self.operations + other.operations, self.bytes + other.bytes)

    def __mul__(self, times: int) -> "Work":
        return Work(self.operations * times, self.bytes * times)


@dataclass(frozen=True)
class Machine:
    """What a phase cannot be faster than."""

    copy_bandwidth: float  # bytes per second, read and written together
    matrix_rate: float  # operations per second, in the precision that is used


def token_work(model: Model, batch: int, length: int, p: int) -> Work:
    """One more token for each of `batch` sequences that have `length` with it."""
    weights, cache = model.matrices + model.output, 2 * batch * model.attention * length
    return Work(2 * batch * weights + 2 * cache, p * (weights + cache))


def prompt_work(model: Model, batch: int, prompt: int, p: int) -> Work:
    """The pass over the prompts, which samples the first token and fills the cache."""
    products = 2 * batch * (prompt * model.matrices + model.output)
    attention = 2 * batch * model.attention * prompt * (prompt + 1)
    return Work(products + attention, p * (model.matrices + model.output + 2 * batch * model.attention * prompt))


def generation_work(model: Model, work: Workload, p: int) -> Work:
    """All tokens of a batch."""
    total = prompt_work(model, work.sequences, work.prompt_tokens, p)
    for length in range(work.prompt_tokens + 1, work.prompt_tokens + work.new_tokens):
        total += token_work(model, work.sequences, length, p)
    return total


def forward_operations(model: Model, work: Workload) -> tuple[float, float]:
    """Of one pass over a batch: (layers, output layer)."""
    read = work.prompt_tokens + work.new_tokens - 1
    layers = 2 * read * model.matrices + 2 * model.attention * read * (read + 1)
    return work.sequences * layers, work.sequences * 2 * work.new_tokens * model.output


def scoring_work(model: Model, work: Workload, config: LMPPOConfig, p: int) -> Work:
    """Log-probabilities by policy and reference."""
    parts = config.minibatches * config.accumulation
    return Work(2 * sum(forward_operations(model, work)), 2 * parts * p * (model.matrices + model.output))


def update_work(model: Model, work: Workload, config: LMPPOConfig, activations: int, p: int) -> Work:
    """All optimiser steps on a batch; `activations` are those of one part, in bytes."""
    layers, output = forward_operations(model, work)
    operations = config.epochs * ((4 if config.gradient_checkpointing else 3) * layers + 3 * output)
    steps = config.epochs * config.minibatches
    parts = steps * config.accumulation
    moved = parts * (2 * activations + 2 * p * (model.matrices + model.output)) + steps * 28 * model.parameters
    return Work(operations, moved)


def placed(work: Work, seconds: list[float], machine: Machine) -> dict[str, Any]:
    """Work and its median seconds under the machine's roof."""
    median = statistics.median(seconds)
    bandwidth, matrix = work.bytes / machine.copy_bandwidth, work.operations / machine.matrix_rate
    return {
        "seconds": median,
        "by_update": seconds,
        "operations": work.operations,
        "bytes": work.bytes,
        "intensity": work.operations / work.bytes,
        "bandwidth_seconds": bandwidth,
        "matrix_seconds": matrix,
        "bound": "bandwidth" if bandwidth > matrix else "matrix",
        "fraction": max(bandwidth, matrix) / median,
        "bandwidth_fraction": bandwidth / median,
        "matrix_fraction": matrix / median,
    }


def least_seconds(action: Callable[[], Any], device: str) -> float:
    """Of an action that takes a fraction of a second: the least of ten times, since a limit is what nothing else slows down."""
    times = []
    for _ in range(10):
        begun = now(device)
        action()
        times.append(now(device) - begun)
    return min(times)


def copy_bandwidth(device: str) -> float:
    """Bytes per second of copying a tensor that no cache holds: each is read and written."""
    source = torch.randn(2**30 if device == "cuda" else 2**26, device=device)  # 4 GiB, 256 MiB
    target = torch.empty_like(source)
    return 2 * source.nbytes / least_seconds(lambda: target.copy_(source), device)


def matrix_rate(device: str, precision: str) -> float:
    """Operations per second of a large square matrix product of random numbers."""
    n = 16384 if device == "cuda" else 2048
    a, b = (torch.randn(n, n, device=device).to(getattr(torch, precision)) for _ in range(2))
    return 2 * n**3 / least_seconds(lambda: a @ b, device)


def measure_machine(device: str, precision: str) -> tuple[Machine, dict[str, Any]]:
    """The machine's limits, and as they are stored: with those of the other precision."""
    bandwidth = copy_bandwidth(device)
    rates = {name: matrix_rate(device, name) for name in BYTES}
    return Machine(bandwidth, rates[precision]), {"copy_bandwidth": bandwidth, "matrix_rate": rates, "precision": precision}


def measure_size(work: Workload, settings: dict[str, Any], machine: Machine, updates: int, warm_up: int) -> dict[str, Any]:
    """Some updates of one size, phase by phase."""
    torch.compiler.reset()  # it compiles one function eight times, then no more: other sizes must not use that up
    policy, tokenizer, prompts = make_policy(work)
    config = ppo_config(work, warm_up + updates, **settings)
    p = BYTES[config.precision]
    parameters = sum(x.numel() for x in policy.parameters())
    model = Model.of(policy.lm.config, parameters)
    activations = memory_estimate(policy.lm.config, config, prompt_tokens=work.prompt_tokens).activations
    works = {
        "generation": generation_work(model, work, p),
        "scoring": scoring_work(model, work, config, p),
        "update": update_work(model, work, config, activations, p),
    }
    training = Training(policy, tokenizer, prompts, config, seed=work.seed)
    rows = [training.update() for _ in range(warm_up + updates)][warm_up:]
    phases = {phase: placed(works[phase], [row[f"seconds_{phase}"] for row in rows], machine) for phase in PHASES}
    counts = {"parameters": parameters, "matrices": model.matrices, "output": model.output}
    return {"workload": asdict(work), "settings": settings, **counts, "phases": phases}


def measure_decoding(work: Workload, settings: dict[str, Any], machine: Machine, batches: tuple[int, ...], repeats: int) -> dict[str, Any]:
    """One token's step for batches of several sizes: the seconds of a generation, less those of its prompts, over its other tokens."""
    policy, tokenizer, prompts = make_policy(work)
    p = BYTES[settings.get("precision", "float32")]
    model = Model.of(policy.lm.config, sum(x.numel() for x in policy.parameters()))
    fields = {name: settings[name] for name in ("decoding", "finish_test_every") if name in settings}
    generator = torch.Generator(work.device).manual_seed(work.seed)
    torch.compiler.reset()
    decoder = Decoder(policy.lm, dtype=torch.bfloat16 if p == 2 else None, **fields)

    def sample(batch: int, tokens: int) -> float:
        begun = now(work.device)
        chosen = [prompts[i % len(prompts)] for i in range(batch)]
        generate(decoder, tokenizer, chosen, max_new_tokens=tokens, temperature=work.temperature, generator=generator)
        return now(work.device) - begun

    times: dict[int, list[float]] = {batch: [] for batch in batches}
    for turn in range(repeats + 1):  # the batches take turns; the first turn warms up
        for batch in batches:
            seconds = (sample(batch, work.new_tokens) - sample(batch, 1)) / (work.new_tokens - 1)
            times[batch] += [seconds] if turn else []
    rows = []
    for batch in batches:
        steps = [token_work(model, batch, work.prompt_tokens + t, p) for t in range(1, work.new_tokens)]
        mean = Work(sum(x.operations for x in steps) / len(steps), sum(x.bytes for x in steps) / len(steps))
        rows.append({"batch": batch, **placed(mean, times[batch], machine)})
    return {"workload": asdict(work), "settings": fields, "rows": rows}


def table(result: dict[str, Any]) -> str:
    """The result as text."""
    machine = result["machine"]
    rates = ", ".join(f"{rate / 1e9:,.0f} GFLOP/s {name}" for name, rate in machine["matrix_rate"].items())
    lines = [f"copy {machine['copy_bandwidth'] / 1e9:,.1f} GB/s; matrix products {rates}; crossing at B = {result['crossing']:.0f}"]
    rows = [(size, name, row) for size, x in result["sizes"].items() for name, row in x["phases"].items()]
    rows += [("decoding", f"batch {row['batch']}", row) for row in result["decoding"]["rows"]]
    for size, name, row in rows:
        place = f"{row['intensity']:9.1f} op/byte, bound by {row['bound']:9} {row['fraction']:6.1%} achieved"
        lines.append(f"{size:9}{name:12}{row['seconds']:9.4f} s {place}")
    return "\n".join(lines)


def run(
    device: str,
    sizes: list[str],
    updates: int,
    *,
    decoding: str,
    sequences: int | None,
    command: str,
    save: Callable[[dict[str, Any]], None],
) -> dict[str, Any]:
    """The machine, the sizes, and token by token the size `decoding`. `save` is given the result whenever it has grown."""
    prepare(device)
    result = {
        "question": "seconds of each phase of a PPO update against the least that bandwidth and matrix rate allow",
        "command": command,
        "metadata": machine_metadata("transformers") | {"load_average": os.getloadavg()[0]},
    }
    settings = dict(GPU_SETTINGS) if device == "cuda" else {}
    precision = settings.get("precision", "float32")
    machine, limits = measure_machine(device, precision)
    result |= {"machine": limits, "crossing": BYTES[precision] * machine.matrix_rate / (2 * machine.copy_bandwidth), "sizes": {}}
    for name in sizes:
        work = replace(SIZES[name], device=device)
        most = CPU_SEQUENCES if device == "cpu" else work.sequences
        work = replace(work, sequences=sequences or min(work.sequences, most))
        result["sizes"][name] = measure_size(work, settings, machine, updates, WARM_UP[device])
        save(result)
    batches, tokens = DECODING[device]
    work = replace(SIZES[decoding], device=device, new_tokens=tokens)
    result["decoding"] = measure_decoding(work, settings, machine, batches, repeats=5)
    save(result)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_device_option(parser)
    parser.add_argument("--sizes", nargs="+", choices=SIZES, help="default: small 3m on a CPU, 3m 30m 124m on a GPU")
    parser.add_argument("--decoding", choices=SIZES, help="the size to decode token by token; default: 30m on a CPU, 124m on a GPU")
    parser.add_argument("--sequences", type=int, help="per update, other than the sizes': a batch that fills the card")
    parser.add_argument("--updates", type=int, default=4, help="that count; the first ones warm up")
    parser.add_argument("--output", type=Path, help="default: the package's data")
    args = parser.parse_args()
    on_cpu = args.device == "cpu"
    sizes, decoding = args.sizes or list(CPU_SIZES if on_cpu else GPU_SIZES), args.decoding or ("30m" if on_cpu else "124m")
    options = f"--device {args.device} --sizes {' '.join(sizes)} --decoding {decoding} --updates {args.updates}"
    if args.sequences:
        options += f" --sequences {args.sequences}"
    output = args.output or data_path(NAME if on_cpu else f"gpu_{NAME}")
    begun = time.perf_counter()
    result = run(
        args.device,
        sizes,
        args.updates,
        decoding=decoding,
        sequences=args.sequences,
        command=f"python -m benchmarks.roofline {options}",
        save=lambda result: write_json(result, output),
    )
    print(table(result))
    print(f"{time.perf_counter() - begun:.0f} s")


if __name__ == "__main__":
    main()
