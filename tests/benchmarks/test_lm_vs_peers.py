"""The comparison on language models: all sides do the same work, and the table says what was measured."""

import ast
import sys
from dataclasses import replace

import pytest
import torch
from transformers import GPT2LMHeadModel

from benchmarks.lm_vs_peers import NAME, OURS, PHASES, ROOT, command, ratios, readme_table, run_ppo_edu, summarise
from benchmarks.lm_workload import REWARDED, WordShare, Workload, load_workload, save_workload
from benchmarks.peers import plain_loop
from benchmarks.report import data_path, read_block
from ppo_edu.core import gae
from ppo_edu.teach import load_result

MICRO = Workload(
    sequences=32, prompt_tokens=3, new_tokens=6, layers=1, width=16, heads=2, vocabulary=8, prompts=40, learning_rate=5e-3, temperature=1.0
)
measured = pytest.mark.skipif(not data_path(NAME).exists(), reason="no measurement is committed yet")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("workload")
    save_workload(MICRO, path)
    return path


def rounds(*totals, **extra):
    """Rounds whose first update is slow and whose others take `total`, half of it in the update."""
    return [
        {
            "updates": [{"total": x, "generation": 0.2 * x, "scoring": 0.3 * x, "update": 0.5 * x, **extra} for x in (100.0, total, total)],
            "memory_before_mib": 300.0,
            "memory_peak_mib": 400.0 + total,
        }
        for total in totals
    ]


RUNS = {
    "ppo_edu": rounds(1.0, 3.0, 2.0),
    "ppo_edu_shared": rounds(1.0, 1.0, 1.0),
    "trl": rounds(4.0, 6.0, 8.0, garbage_collection=1.0),
    "plain": rounds(4.0, 4.0, 4.0),
}


def result(runs):
    return {
        "summary": summarise(runs, Workload()),
        "versions": {side: {"trl": "1.12.0"} for side in runs},
        "metadata": {"date": "2026-01-01", "processor": "a processor", "versions": {"torch": "2"}},
    }


def test_ratios_are_ours_over_theirs_and_below_one_means_faster():
    found = ratios(RUNS)
    assert list(found) == list(OURS)
    assert found["ppo_edu"]["trl"] == {"of_medians": 2.0 / 6.0, "by_round": [1 / 4, 3 / 6, 2 / 8]}
    assert found["ppo_edu_shared"]["plain"]["of_medians"] == 0.25


def test_the_summary_drops_the_warm_up_and_counts_tokens():
    row = summarise(RUNS, Workload())["ppo_edu"]
    assert row["updates"] == 6
    assert row["seconds"] == {"total": 2.0, "generation": 0.4, "scoring": pytest.approx(0.6), "update": 1.0}
    assert row["tokens_per_second"] == {"total": 768, "generation": 3840, "scoring": pytest.approx(2048 / 0.6), "update": 8192}
    assert (row["memory_peak_mib"], row["memory_added_mib"]) == (403.0, 103.0)


def test_the_table_shows_the_ratios():
    lines = readme_table(result(RUNS)).splitlines()
    cells = {
        line.split("|")[1].split(",")[0].strip() + str(i): [cell.strip() for cell in line.split("|")[2:-1]]
        for i, line in enumerate(lines[2:6])
    }
    assert cells["ppo_edu0"] == ["2.00", "0.33", "0.50", "0.40", "0.60", "1.00", "768", "403 MiB"]
    assert cells["trl 1.12.02"][:3] == ["6.00", "1.00", "1.50"]
    assert "would be 0.40 of trl's" in lines[-1]  # 2 / (6 - 1)


def test_without_trl_the_table_leaves_its_column_empty():
    text = readme_table(result({side: runs for side, runs in RUNS.items() if side != "trl"}))
    assert "| 2.00 | – | 0.50 |" in text
    assert "garbage" not in text


@measured
def test_readme_shows_the_committed_result():
    shown = read_block(NAME)
    if shown is None:
        pytest.skip("the README has no place for this table")
    assert shown == readme_table(load_result(NAME)).strip()


@measured
def test_summary_and_ratios_are_those_of_the_committed_runs():
    stored = load_result(NAME)
    assert summarise(stored["runs"], Workload(**stored["workload"])) == stored["summary"]
    assert ratios(stored["runs"]) == stored["ratios"]


def test_special_tokens_have_probability_zero_before_and_after_training(folder):
    work, tokenizer, prompts = load_workload(folder)
    special = [tokenizer.pad_token_id, tokenizer.eos_token_id]
    policy, reference = (GPT2LMHeadModel.from_pretrained(folder) for _ in range(2))
    inputs = tokenizer(prompts, return_tensors="pt")
    assert inputs["input_ids"].shape == (work.prompts, work.prompt_tokens)
    assert policy(**inputs).logits.softmax(-1)[..., special].max() == 0
    before = policy.lm_head.weight.detach().clone()
    value_model = plain_loop.ValueModel(GPT2LMHeadModel.from_pretrained(folder).transformer)
    plain_loop.train(policy, reference, value_model, tokenizer, prompts, WordShare(), work, updates=2)
    assert policy(**inputs).logits.softmax(-1)[..., special].max() == 0
    assert not torch.equal(policy.lm_head.weight, before)  # it did train


def test_the_plain_loop_learns(folder):
    work, tokenizer, prompts = load_workload(folder)
    policy, reference = (GPT2LMHeadModel.from_pretrained(folder) for _ in range(2))
    value_model = plain_loop.ValueModel(GPT2LMHeadModel.from_pretrained(folder).transformer)
    reward_fn = WordShare()
    rows = plain_loop.train(policy, reference, value_model, tokenizer, prompts, reward_fn, work, updates=15)
    reward_fn.check(work, updates=15)
    rewards = [row["reward"] for row in rows]
    assert sum(rewards[:3]) / 3 < 0.3  # one word of six
    assert sum(rewards[-3:]) / 3 > 0.6


@pytest.mark.parametrize(
    "run", [plain_loop.run, lambda *args: run_ppo_edu(*args, shared_trunk=False), lambda *args: run_ppo_edu(*args, shared_trunk=True)]
)
def test_a_side_reports_seconds_by_phase_and_memory(folder, run):
    printed = run(folder, 2)
    assert len(printed["updates"]) == 2
    for update in printed["updates"]:
        assert all(update[phase] > 0 for phase in PHASES)
        assert sum(update[phase] for phase in PHASES[1:]) <= update["total"] + 1e-6
    assert 0 < printed["memory_before_mib"] <= printed["memory_peak_mib"]
    assert printed["versions"]["torch"] == torch.__version__


@pytest.mark.parametrize("seed", range(5))
def test_advantages_of_the_plain_loop_are_gae(seed):
    generator = torch.Generator().manual_seed(seed)
    rewards, values = torch.randn(2, 4, 7, generator=generator)
    advantages, returns = plain_loop.advantages_and_returns(rewards, values, gamma=0.9, lam=0.8)
    terminated = torch.zeros(7, 4, dtype=torch.bool)
    terminated[-1] = True
    following = torch.cat([values[:, 1:], torch.zeros(4, 1)], dim=1)
    expected = gae(rewards.T, values.T, following.T, terminated, torch.zeros_like(terminated), gamma=0.9, lam=0.8)
    torch.testing.assert_close(advantages, expected.T)
    torch.testing.assert_close(returns, advantages + values)


def test_word_share_counts_words_and_notices_a_short_response():
    reward_fn = WordShare()
    work = replace(MICRO, sequences=2, new_tokens=2)
    assert reward_fn(["", ""], [f"{REWARDED} w02", "w03 w04"]).tolist() == [0.5, 0.0]
    reward_fn.check(work, updates=1)
    reward_fn(["", ""], ["w03 w04", "w03"])
    with pytest.raises(RuntimeError, match="new tokens must be 8, none of them special, got 7"):
        reward_fn.check(work, updates=2)


def test_the_trl_side_runs_in_its_own_environment(folder):
    line = command("trl", folder, 3, "/elsewhere/python")
    assert line[0] == "/elsewhere/python"
    assert command("plain", folder, 3, None)[0] == sys.executable
    tree = ast.parse((ROOT / "benchmarks" / "peers" / "trl_ppo.py").read_text())
    imported = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    imported |= {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert not {name for name in imported if name.split(".")[0] in {"benchmarks", "ppo_edu"}}
    assert any(name.startswith("trl.") for name in imported)
