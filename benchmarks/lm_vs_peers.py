"""Seconds per PPO update on a language model: this package, trl (PPO of 1.12.0 and GRPO of the newest) and a plain loop.

    python -m benchmarks.lm_vs_peers [--device cpu|cuda] [--size small|3m|30m|124m] [--rounds 3] [--updates 6]
                                     [--trl-python PATH] [--grpo-python PATH] [--output FILE]

The same work on all sides, by default in float32 on one thread: 64 sequences per update, prompts of 8 tokens, 24 new tokens each
(the end token cannot be sampled, see `lm_workload.py`; a side whose responses are shorter fails), a GPT-2 of 2 layers, width
128, 4 heads and 64 words whose weights are read from one folder, KL to a frozen reference, 4 epochs of 4 minibatches.
The other sizes, for a GPU, are in `lm_workload.SIZES`; there every side computes in bfloat16 by its own means, this package with
`ppo_edu.lm.GPU_SETTINGS`. The policy, a value model of the same size and the reference are three models; `ppo_edu_shared`,
which the peers do not offer, puts the value head on the policy's trunk, and `grpo` has no values at all.

Every side runs in a process of its own, and the sides take turns, round by round, so that all meet the same weather on a noisy
machine. The first update of each round is a warm-up and dropped. Start-up, loading, saving and evaluation are not timed.

trl 1.12.0 is the last with a PPO trainer. GRPO is the nearest that the newest maintains, and does less: no value model, no values,
no value loss; 8 responses to each prompt, so an eighth of the prompts (`peers/trl_grpo.py`). Both versions live in environments of
their own, named by `--trl-python` or TRL_PYTHON and `--grpo-python` or GRPO_PYTHON (how to make them: `peers/trl_ppo.py` and
`peers/trl_grpo.py`); without one that side is skipped, and the result does not replace a stored one that has it.

What else the sides do differently, each time to the peer's advantage: the reward model of trl's PPO is a stub that counts words in
token ids, whereas the other sides decode the responses to text; trl's PPO and the plain loop do not clip gradients; the plain loop
computes no statistics. And to the disadvantage of trl's PPO: its loop calls `gc.collect()` twice per update. That is part of what a
user waits for and of its total, but it depends on what is imported, so it is measured separately too.

The JSON, `ppo_edu/teach/data/lm_vs_peers.json`, or `lm_vs_peers_DEVICE_SIZE.json` for other than the small size on a CPU:

    question, command, metadata   what was asked, how, on which machine, with which versions
    workload, parameters          the fields of `lm_workload.Workload`; how many parameters the policy has
    versions                      {side: {package: version}}
    runs      {side: [one per round: {"updates": [seconds of each update: {"total", "generation", "scoring", "update"}],
              "memory_before_mib": once all is imported, "memory_peak_mib": largest resident size, or on a GPU the most that torch
              allocated}]}; trl's updates also have "garbage_collection", which is part of the others; a total is more than its
              three phases
    summary   {side: {"updates": how many were counted, "seconds": medians by phase, "tokens_per_second": by phase,
              "memory_peak_mib", "memory_added_mib": peak less what the imports took, the largest of the rounds}}
              tokens: new ones for generation and total (64 * 24), whole sequences for scoring (64 * 32) and update (4 epochs of those)
    ratios    {side of this package: {peer: {"of_medians": seconds / peer's seconds, "by_round": the same in each round}}}
              below 1: this package is faster
"""

import argparse
import statistics
import tempfile
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from transformers.utils.logging import disable_progress_bar

from benchmarks.lm_workload import PHASES, SIZES, TIMED, Workload, parameter_count, save_workload
from benchmarks.metadata import machine_metadata
from benchmarks.report import store
from benchmarks.sides import add_interpreters, interpreters, run_program

NAME = "lm_vs_peers"
OURS = ("ppo_edu", "ppo_edu_shared")
PEERS = ("trl", "plain", "grpo")
PROGRAMS = {
    "ppo_edu": ["benchmarks.lm_ppo_edu", "separate"],
    "ppo_edu_shared": ["benchmarks.lm_ppo_edu", "shared"],
    "trl": ["benchmarks.peers.trl_ppo"],
    "plain": ["benchmarks.peers.plain_loop"],
    "grpo": ["benchmarks.peers.trl_grpo"],
}
WARM_UP = 1  # updates dropped at the beginning of each round

Run = dict[str, Any]  # what one side prints in one round


def seconds(runs: list[Run], phase: str) -> float:
    """Median over all counted updates of these rounds."""
    return statistics.median(update[phase] for run in runs for update in run["updates"][WARM_UP:])


def summarise(runs: dict[str, list[Run]], workload: Workload) -> dict[str, dict[str, Any]]:
    """Medians over the counted updates, per side, and the tokens per second that they mean."""
    new = workload.sequences * workload.new_tokens
    whole = workload.sequences * (workload.prompt_tokens + workload.new_tokens)
    tokens = {"total": new, "generation": new, "scoring": whole, "update": workload.epochs * whole}
    summary = {}
    for side, rounds in runs.items():
        phases = rounds[0]["updates"][0].keys() & {*TIMED, "garbage_collection"}
        medians = {phase: seconds(rounds, phase) for phase in sorted(phases)}
        summary[side] = {
            "updates": sum(len(run["updates"][WARM_UP:]) for run in rounds),
            "seconds": medians,
            "tokens_per_second": {phase: tokens[phase] / medians[phase] for phase in TIMED},
            "memory_peak_mib": max(run["memory_peak_mib"] for run in rounds),
            "memory_added_mib": max(run["memory_peak_mib"] - run["memory_before_mib"] for run in rounds),
        }
    return summary


def ratios(runs: dict[str, list[Run]]) -> dict[str, dict[str, dict[str, Any]]]:
    """This package's seconds per update over each peer's: of all medians, and round by round to show the spread."""
    return {
        side: {
            peer: {
                "of_medians": seconds(runs[side], "total") / seconds(runs[peer], "total"),
                "by_round": [seconds([a], "total") / seconds([b], "total") for a, b in zip(runs[side], runs[peer], strict=True)],
            }
            for peer in PEERS
            if peer in runs
        }
        for side in OURS
        if side in runs
    }


def readme_table(result: dict[str, Any]) -> str:
    """The stored result as the README shows it."""
    summary = result["summary"]
    versions = {side: result["versions"].get(side, {}).get("trl", "") for side in ("trl", "grpo")}
    names = {
        "ppo_edu": "ppo_edu, separate value model",
        "ppo_edu_shared": "ppo_edu, shared trunk",
        "trl": f"trl {versions['trl']} PPO, separate value model",
        "plain": "plain loop, separate value model",
        "grpo": f"trl {versions['grpo']} GRPO, no value model",
    }
    lines = [
        "| | seconds per update | of trl's PPO | of the plain loop's | of trl's GRPO "
        "| generation | scoring | update | new tokens per second | peak memory |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for side, row in summary.items():
        s = row["seconds"]
        shares = [f"{s['total'] / summary[peer]['seconds']['total']:.2f}" if peer in summary else "–" for peer in PEERS]
        lines.append(
            f"| {names[side]} | {_shown(s['total'])} | {' | '.join(shares)} | {' | '.join(_shown(s[phase]) for phase in PHASES)} | "
            f"{row['tokens_per_second']['total']:,.0f} | {row['memory_peak_mib']:,.0f} MiB |"
        )
    meta = result["metadata"]
    machine = f"{meta['gpu']}, bfloat16" if result["workload"]["device"] == "cuda" else f"{meta['processor']}, one thread"
    notes = [f"Measured {meta['date']} on {machine}, torch {meta['versions']['torch']}."]
    if "trl" in summary:
        collecting = summary["trl"]["seconds"]["garbage_collection"]
        share = summary["ppo_edu"]["seconds"]["total"] / (summary["trl"]["seconds"]["total"] - collecting)
        notes.append(
            f"The seconds of trl's PPO include {collecting:.2f} for the two garbage collections that its loop asks for in each update; "
            f"without them the first row would be {share:.2f} of trl's."
        )
    if "grpo" in summary:
        notes.append("GRPO does less: it has no values to compute, store or learn.")
    return "\n".join(lines) + "\n\n" + " ".join(notes) + "\n"


def _shown(seconds: float) -> str:
    return f"{seconds:.2f}" if seconds >= 0.1 else f"{seconds:.3f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--size", choices=SIZES, default="small")
    parser.add_argument("--sequences", type=int, help="other than the size's, to try things out; needs --output")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--updates", type=int, default=6, help="per round and side; the first is dropped")
    add_interpreters(parser, trl="trl 1.12.0", grpo="the newest trl")
    parser.add_argument("--output", type=Path, help="default: the package's data, if no side is lost")
    args = parser.parse_args()
    if args.updates <= WARM_UP:
        parser.error(f"--updates must be more than the {WARM_UP} dropped, got {args.updates}")
    if args.sequences and not args.output:
        parser.error("--sequences must come with --output: such a result is not stored in the package")
    disable_progress_bar()
    pythons = interpreters(parser, args, PROGRAMS)
    if args.device == "cpu":
        torch.set_num_threads(1)  # as on every side: the metadata says so
    metadata = machine_metadata("transformers")
    workload = replace(SIZES[args.size], device=args.device, sequences=args.sequences or SIZES[args.size].sequences)
    runs: dict[str, list[Run]] = {side: [] for side in pythons}
    with tempfile.TemporaryDirectory() as folder:
        save_workload(workload, Path(folder))
        for turn in range(args.rounds):
            for side, python in pythons.items():
                options = ("--workload", folder, "--updates", str(args.updates))
                runs[side].append(run_program(side, python, PROGRAMS[side], *options, one_thread=args.device == "cpu"))
                parts = ", ".join(f"{phase} {seconds(runs[side][-1:], phase):.3f}" for phase in TIMED)
                print(f"round {turn} {side:15} seconds per update: {parts}", flush=True)
    chosen = f"--device {args.device} --size {args.size} --rounds {args.rounds} --updates {args.updates}"
    result = {
        "question": "median seconds per PPO update, same work on all sides, "
        + ("one GPU, bfloat16" if args.device == "cuda" else "one thread, float32"),
        "command": f"python -m benchmarks.lm_vs_peers {chosen}" + (f" --sequences {args.sequences}" if args.sequences else ""),
        "metadata": metadata,
        "workload": asdict(workload),
        "parameters": parameter_count(workload),
        "versions": {side: rounds[0]["versions"] for side, rounds in runs.items()},
        "summary": summarise(runs, workload),
        "ratios": ratios(runs),
        "runs": {side: [{k: v for k, v in run.items() if k != "versions"} for run in rounds] for side, rounds in runs.items()},
    }
    print(readme_table(result))
    name = NAME if (args.device, args.size) == ("cpu", "small") else f"{NAME}_{args.device}_{args.size}"
    store(name, result, readme_table(result), args.output)


if __name__ == "__main__":
    main()
