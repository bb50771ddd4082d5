"""The comparison on language models: all sides do the same work, and the table says what was measured."""

import gc
import json
from dataclasses import asdict, replace
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from transformers import GPT2LMHeadModel

from benchmarks import lm_ppo_edu, lm_workload
from benchmarks.lm_vs_peers import NAME, OURS, PEERS, PROGRAMS, ratios, readme_table, summarise
from benchmarks.lm_workload import PHASES, REWARDED, SIZES, TIMED, WordShare, Workload, load_workload, parameter_count, save_workload
from benchmarks.peers import plain_loop, trl_shared
from ppo_edu.core import gae
from ppo_edu.teach import load_result

MICRO = Workload(
    sequences=32, prompt_tokens=3, new_tokens=6, layers=1, width=16, heads=2, vocabulary=8, prompts=40, learning_rate=5e-3, temperature=1.0
)


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
    "grpo": rounds(2.0, 2.5, 2.5, garbage_collection=0.0),
}


def result(runs):
    return {
        "summary": summarise(runs, Workload()),
        "workload": asdict(Workload()),
        "versions": {side: {"trl": "1.16.0" if side == "grpo" else "1.12.0"} for side in runs},
        "metadata": {"date": "2026-01-01", "processor": "a processor", "versions": {"torch": "2"}},
    }


def test_ratios_are_ours_over_theirs_and_below_one_means_faster():
    found = ratios(RUNS)
    assert list(found) == list(OURS)
    assert found["ppo_edu"]["trl"] == {"of_medians": 2.0 / 6.0, "by_round": [1 / 4, 3 / 6, 2 / 8]}
    assert found["ppo_edu_shared"]["plain"]["of_medians"] == 0.25
    assert found["ppo_edu_shared"]["grpo"] == {"of_medians": 1 / 2.5, "by_round": [1 / 2, 1 / 2.5, 1 / 2.5]}


def test_the_summary_drops_the_warm_up_and_counts_tokens():
    row = summarise(RUNS, Workload())["ppo_edu"]
    assert row["updates"] == 6
    assert row["seconds"] == {"total": 2.0, "generation": 0.4, "scoring": pytest.approx(0.6), "update": 1.0}
    assert row["tokens_per_second"] == {"total": 768, "generation": 3840, "scoring": pytest.approx(2048 / 0.6), "update": 8192}
    assert (row["memory_peak_mib"], row["memory_added_mib"]) == (403.0, 103.0)


def test_the_table_shows_the_ratios():
    lines = readme_table(result(RUNS)).splitlines()
    names, cells = zip(*((row[1], row[2:-1]) for row in ([cell.strip() for cell in line.split("|")] for line in lines[2:7])), strict=True)
    assert names[0] == "ppo_edu, separate value model"
    assert cells[0] == ["2.00", "0.33", "0.50", "0.80", "0.40", "0.60", "1.00", "768", "403 MiB"]
    assert names[2] == "trl 1.12.0 PPO, separate value model"
    assert cells[2][:4] == ["6.00", "1.00", "1.50", "2.40"]
    assert names[4] == "trl 1.16.0 GRPO, no value model"
    assert cells[4][:4] == ["2.50", "0.42", "0.62", "1.00"]
    assert "would be 0.40 of trl's" in lines[-1]  # 2 / (6 - 1)
    assert "GRPO does less" in lines[-1]


def test_without_trl_the_table_leaves_its_columns_empty():
    text = readme_table(result({side: runs for side, runs in RUNS.items() if side not in ("trl", "grpo")}))
    assert "| 2.00 | – | 0.50 | – |" in text
    assert "garbage" not in text
    assert "GRPO does less" not in text


def test_a_result_from_a_gpu_names_it():
    measured = result(RUNS)
    measured["workload"]["device"] = "cuda"
    measured["metadata"]["gpu"] = "a card"
    assert "on a card, bfloat16, torch 2." in readme_table(measured)


def test_seconds_below_a_tenth_keep_two_digits():
    text = readme_table(result({"ppo_edu": rounds(0.06), "plain": rounds(0.06)}))
    assert "| 0.060 | – | 1.00 | – | 0.012 | 0.018 | 0.030 |" in text


def test_summary_and_ratios_are_those_of_the_committed_runs():
    stored = load_result(NAME)
    assert summarise(stored["runs"], Workload(**stored["workload"])) == stored["summary"]
    assert ratios(stored["runs"]) == stored["ratios"]
    assert list(stored["summary"]) == [*OURS, *PEERS] == list(PROGRAMS)
    assert stored["parameters"] == parameter_count(Workload(**stored["workload"]))


@pytest.mark.parametrize("size", SIZES)
def test_parameters_by_formula(size):
    """Per layer 12 w^2 + 13 w (attention 4 w^2 + 4 w, two matrices of 4 w^2 with 5 w biases, two norms of 2 w); embeddings; last norm."""
    work = SIZES[size]
    w, positions = work.width, work.prompt_tokens + work.new_tokens
    assert parameter_count(work) == work.layers * (12 * w**2 + 13 * w) + (work.vocabulary + positions + 2) * w


def test_the_sizes_are_what_they_are_called():
    assert {size: round(parameter_count(work) / 1e6) for size, work in SIZES.items()} == {"small": 0, "3m": 3, "30m": 30, "124m": 124}
    assert SIZES["small"] == Workload()


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


@pytest.mark.parametrize("run", [plain_loop.run, partial(lm_ppo_edu.run, shared_trunk=False), partial(lm_ppo_edu.run, shared_trunk=True)])
def test_a_side_reports_seconds_by_phase_and_memory(folder, run):
    printed = run(folder, 2)
    assert len(printed["updates"]) == 2
    for update in printed["updates"]:
        assert all(update[phase] > 0 for phase in TIMED)
        assert sum(update[phase] for phase in PHASES) <= update["total"] + 1e-6
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


def test_a_program_prints_what_its_run_returned(folder, capsys):
    lm_workload.main(lambda path, updates: {"path": str(path), "updates": updates}, None, ["--workload", str(folder), "--updates", "4"])
    assert json.loads(capsys.readouterr().out) == {"path": str(folder), "updates": 4}


def test_the_clock_of_trl_divides_an_update_into_phases(monkeypatch):
    hand = SimpleNamespace(time=0.0)
    monkeypatch.setattr(trl_shared, "now", lambda device: hand.time)

    def work(seconds):
        hand.time += seconds
        return seconds

    clock = trl_shared.Clock("cpu", steps=2)
    monkeypatch.setattr(gc, "callbacks", [x for x in gc.callbacks if x != clock._on_collection])  # counted by hand below
    generate = clock.stamped(work, before="generate", after="generated")
    score = clock.stamped(work, after="update")
    clock.on_train_begin(None, None, None)
    for update in (1, 2):
        work(1.0)  # the data loader: in the total alone
        assert generate(2.0) == 2.0
        score(4.0)
        for step in (2 * update - 1, 2 * update):
            work(8.0 * update)
            clock.on_step_end(None, SimpleNamespace(global_step=step), None)
    expected = [{"total": 7.0 + 16.0 * update, "generation": 2.0, "scoring": 4.0, "update": 16.0 * update} for update in (1, 2)]
    assert [{phase: row[phase] for phase in TIMED} for row in clock.rows] == expected


def test_the_clock_of_trl_counts_full_garbage_collections_alone():
    clock = trl_shared.Clock("cpu")
    clock.on_train_begin(None, None, None)
    gc.collect(0)
    assert clock.collecting == 0.0
    gc.collect()
    assert clock.collecting > 0.0
    gc.callbacks.remove(clock._on_collection)
