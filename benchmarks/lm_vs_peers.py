"""Seconds per PPO update on a language model: this package, trl 1.12.0 (the last with a PPO trainer) and a plain loop.

    python -m benchmarks.lm_vs_peers [--rounds 3] [--updates 6] [--trl-python PATH] [--output FILE]

The same work on all sides, in float32 on one torch thread: 64 sequences per update, prompts of 8 tokens, 24 new tokens each
(the end token cannot be sampled, see `lm_workload.py`; a side whose responses are shorter fails), a GPT-2 of 2 layers, width
128, 4 heads and 64 words whose weights are read from one folder, KL to a frozen reference, 4 epochs of 4 minibatches.
The policy, a value model of the same size and the reference are three models, on all sides; `ppo_edu_shared`, which the peers
do not offer, puts the value head on the policy's trunk.

Every side runs in a process of its own, and the sides take turns, round by round, so that all meet the same weather on a noisy
machine. The first update of each round is a warm-up and dropped. Start-up, loading, saving and evaluation are not timed.

trl lives in an environment of its own, named by `--trl-python` or TRL_PYTHON (how to make it: `peers/trl_ppo.py`); without
one that side is skipped, and the result is printed but does not replace the stored one. What the sides do differently, each
time to the peer's advantage: trl's reward model is a stub that counts words in token ids, whereas this package (and the plain
loop) decode the responses to text; trl and the plain loop do not clip gradients; only this package and trl compute statistics.
And to trl's disadvantage: its loop calls `gc.collect()` twice per update. That is part of what a user waits for and of its
total, but it depends on what is imported, so it is measured separately too.

The JSON, `ppo_edu/teach/data/lm_vs_peers.json`:

    question, command, metadata   what was asked, how, on which machine, with which versions
    workload                      the fields of `lm_workload.Workload`
    versions                      {side: {package: version}}
    runs      {side: [one per round: {"updates": [seconds of each update: {"total", "generation", "scoring", "update"}],
              "memory_before_mib": after the imports, "memory_peak_mib": largest resident size}]}; trl's updates also have
              "garbage_collection", which is part of the others; a total is more than its three phases
    summary   {side: {"updates": how many were counted, "seconds": medians by phase, "tokens_per_second": by phase,
              "memory_peak_mib", "memory_added_mib": peak less what the imports took, the largest of the rounds}}
              tokens: new ones for generation and total (64 * 24), whole sequences for scoring (64 * 32) and update (4 epochs of those)
    ratios    {side of this package: {peer: {"of_medians": seconds / peer's seconds, "by_round": the same in each round}}}
              below 1: this package is faster
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from transformers import GPT2LMHeadModel
from transformers.utils.logging import disable_progress_bar

from benchmarks.lm_workload import WordShare, Workload, load_workload, save_workload
from benchmarks.metadata import machine_metadata, peak_memory_mib, versions
from benchmarks.report import ROOT, data_path, write_block, write_json
from ppo_edu.lm import LMPPOConfig, PolicyWithValue, train_ppo

NAME = "lm_vs_peers"
OURS = ("ppo_edu", "ppo_edu_shared")
PEERS = ("trl", "plain")
PHASES = ("total", "generation", "scoring", "update")
WARM_UP = 1  # updates dropped at the beginning of each round

Run = dict[str, Any]  # what one side prints in one round


def run_ppo_edu(folder: Path, updates: int, *, shared_trunk: bool) -> Run:
    """This package on the workload in `folder`; seconds per update and memory."""
    before = peak_memory_mib()
    work, tokenizer, prompts = load_workload(folder)
    value_model = None if shared_trunk else GPT2LMHeadModel.from_pretrained(folder)
    policy = PolicyWithValue(GPT2LMHeadModel.from_pretrained(folder), value_model=value_model)
    config = LMPPOConfig(
        updates=updates,
        batch_size=work.sequences,
        max_new_tokens=work.new_tokens,
        epochs=work.epochs,
        minibatches=work.minibatches,
        learning_rate=work.learning_rate,
        temperature=work.temperature,
        kl_coef=work.kl_coef,
        clip_range=work.clip_range,
        value_clip_range=work.value_clip_range,
        value_coef=work.value_coef,
        gamma=work.gamma,
        lam=work.lam,
    )
    reward_fn = WordShare()
    log = train_ppo(policy, tokenizer, prompts, reward_fn, config, seed=work.seed, progress=False).log
    reward_fn.check(work, updates)
    ends = [0.0, *(row["seconds"] for row in log)]
    return {
        "updates": [
            {"total": end - begin, **{phase: row[f"seconds_{phase}"] for phase in PHASES[1:]}}
            for row, begin, end in zip(log, ends, ends[1:], strict=False)
        ],
        "memory_before_mib": before,
        "memory_peak_mib": peak_memory_mib(),
        "versions": versions("torch", "transformers"),
    }


def command(side: str, folder: Path, updates: int, trl_python: str | None) -> list[str]:
    """The command line that runs one side and prints its JSON last."""
    programs = {
        "ppo_edu": [sys.executable, "-m", "benchmarks.lm_vs_peers", "--side", "ppo_edu"],
        "ppo_edu_shared": [sys.executable, "-m", "benchmarks.lm_vs_peers", "--side", "ppo_edu_shared"],
        "trl": [trl_python, str(ROOT / "benchmarks" / "peers" / "trl_ppo.py")],
        "plain": [sys.executable, "-m", "benchmarks.peers.plain_loop"],
    }
    return [*programs[side], "--workload", str(folder), "--updates", str(updates)]


def run_side(side: str, folder: Path, updates: int, trl_python: str | None = None) -> Run:
    """One round of one side in a process of its own. Raises RuntimeError with what it said if it failed."""
    one_thread = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        command(side, folder, updates, trl_python), cwd=ROOT, env=os.environ | one_thread, capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        raise RuntimeError(f"side {side} must end with exit status 0, got {done.returncode}:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


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
        phases = rounds[0]["updates"][0].keys() & {*PHASES, "garbage_collection"}
        medians = {phase: seconds(rounds, phase) for phase in sorted(phases)}
        summary[side] = {
            "updates": sum(len(run["updates"][WARM_UP:]) for run in rounds),
            "seconds": medians,
            "tokens_per_second": {phase: tokens[phase] / medians[phase] for phase in PHASES},
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
    names = {
        "ppo_edu": "ppo_edu, separate value model",
        "ppo_edu_shared": "ppo_edu, shared trunk",
        "trl": f"trl {result['versions'].get('trl', {}).get('trl', '')}, separate value model",
        "plain": "plain loop, separate value model",
    }
    lines = [
        "| | seconds per update | of trl's | of the plain loop's | generation | scoring | update | new tokens per second | peak memory |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for side, row in summary.items():
        s = row["seconds"]
        shares = [f"{s['total'] / summary[peer]['seconds']['total']:.2f}" if peer in summary else "–" for peer in PEERS]
        lines.append(
            f"| {names[side]} | {s['total']:.2f} | {' | '.join(shares)} | {s['generation']:.2f} | {s['scoring']:.2f} | {s['update']:.2f} | "
            f"{row['tokens_per_second']['total']:,.0f} | {row['memory_peak_mib']:.0f} MiB |"
        )
    meta = result["metadata"]
    notes = [f"Measured {meta['date']} on {meta['processor']}, one thread, torch {meta['versions']['torch']}."]
    if "trl" in summary:
        collecting = summary["trl"]["seconds"]["garbage_collection"]
        share = summary["ppo_edu"]["seconds"]["total"] / (summary["trl"]["seconds"]["total"] - collecting)
        notes.append(
            f"trl's seconds include {collecting:.2f} for the two garbage collections that its loop asks for in each update; "
            f"without them the first row would be {share:.2f} of trl's."
        )
    return "\n".join(lines) + "\n\n" + " ".join(notes) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--updates", type=int, default=6, help="per round and side; the first is dropped")
    parser.add_argument("--trl-python", default=os.environ.get("TRL_PYTHON"), help="interpreter of an environment with trl 1.12.0")
    parser.add_argument("--output", type=Path, help="default: the package's data, if all sides ran")
    parser.add_argument("--side", choices=OURS, help=argparse.SUPPRESS)  # what a process of one side is started with
    parser.add_argument("--workload", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.updates <= WARM_UP:
        parser.error(f"--updates must be more than the {WARM_UP} dropped, got {args.updates}")
    if args.trl_python and shutil.which(args.trl_python) is None:
        parser.error(f"--trl-python must be an executable file, got {args.trl_python}")

    torch.set_num_threads(1)
    disable_progress_bar()
    if args.side:
        print(json.dumps(run_ppo_edu(args.workload, args.updates, shared_trunk=args.side == "ppo_edu_shared")))
        return
    sides = [side for side in (*OURS, *PEERS) if side != "trl" or args.trl_python]
    if "trl" not in sides:
        print("trl is skipped: name an interpreter that has it by --trl-python or TRL_PYTHON (see benchmarks/peers/trl_ppo.py)")
    workload = Workload()
    runs: dict[str, list[Run]] = {side: [] for side in sides}
    with tempfile.TemporaryDirectory() as folder:
        save_workload(workload, Path(folder))
        for turn in range(args.rounds):
            for side in sides:
                runs[side].append(run_side(side, Path(folder), args.updates, args.trl_python))
                parts = ", ".join(f"{phase} {seconds(runs[side][-1:], phase):.3f}" for phase in PHASES)
                print(f"round {turn} {side:15} seconds per update: {parts}", flush=True)
    result = {
        "question": "median seconds per PPO update, same work on all sides, one thread",
        "command": f"python -m benchmarks.lm_vs_peers --rounds {args.rounds} --updates {args.updates}",
        "metadata": machine_metadata("transformers"),
        "workload": asdict(workload),
        "versions": {side: rounds[0]["versions"] for side, rounds in runs.items()},
        "summary": summarise(runs, workload),
        "ratios": ratios(runs),
        "runs": {side: [{k: v for k, v in run.items() if k != "versions"} for run in rounds] for side, rounds in runs.items()},
    }
    print(readme_table(result))
    output = args.output or (data_path(NAME) if "trl" in sides else None)
    if output is None:
        print("Not stored: a result without trl does not replace one with it. Use --output to keep it elsewhere.")
        return
    write_json(result, output)
    if output == data_path(NAME) and not write_block(NAME, readme_table(result)):
        print(f"The README has no markers <!-- {NAME} --> and <!-- /{NAME} -->: its table was not written.")


if __name__ == "__main__":
    main()
