"""Growth, levers and drift: the pieces on micro models, and the stored result against its own numbers."""

import math
import statistics
from dataclasses import replace

import pytest
import torch

from benchmarks import scaling
from benchmarks.lm_setup import make_policy, ppo_config
from benchmarks.lm_workload import Workload
from benchmarks.report import data_path
from benchmarks.scaling import grown, let_responses_end, saved_bytes, shortened
from ppo_edu.lm import GPU_SETTINGS, LMPPOConfig, generate, memory_estimate
from ppo_edu.teach import load_result

MICRO = Workload(
    sequences=8, prompt_tokens=4, new_tokens=6, layers=2, width=32, heads=2, vocabulary=30, prompts=16, epochs=1, minibatches=2
)
measured = pytest.mark.skipif(not data_path(scaling.NAME).exists(), reason="no measurement is committed yet")


@pytest.mark.parametrize("changes", [{}, {"sequences": 12}, {"new_tokens": 20}, {"width": 64}, {"layers": 4}], ids=str)
def test_saved_tensors_of_a_part_are_what_the_memory_model_says(changes):
    work = replace(MICRO, **changes)
    policy, *_ = make_policy(work)
    estimate = memory_estimate(policy.lm.config, ppo_config(work, 1), prompt_tokens=work.prompt_tokens)
    assert estimate.activations + estimate.logits // 3 == pytest.approx(saved_bytes(policy, work), rel=0.03)


def test_points_have_seconds_and_memory():
    works = [MICRO, replace(MICRO, new_tokens=12)]
    for work, point in zip(works, grown(works, {}, updates=2), strict=True):
        assert point["token_step_seconds"] == point["generation_seconds"] / work.new_tokens
        assert point["memory_kind"] == "saved tensors of a part"
        assert point["estimated_bytes"] == pytest.approx(point["memory_bytes"], rel=0.03)
        assert min(point[f"{phase}_seconds"] for phase in ("generation", "scoring", "update")) > 0


def test_responses_end_with_the_probability_that_is_asked_for():
    policy, tokenizer, prompts = make_policy(MICRO)
    let_responses_end(policy, tokenizer, MICRO.new_tokens)
    inputs = tokenizer(prompts, return_tensors="pt")["input_ids"]
    probabilities = policy.lm(inputs).logits[:, -1].detach().softmax(-1)
    assert probabilities[:, tokenizer.eos_token_id].mean() == pytest.approx(1 / MICRO.new_tokens, rel=0.05)
    assert probabilities[:, tokenizer.pad_token_id].max() == 0
    responses = generate(policy, tokenizer, prompts * 8, max_new_tokens=MICRO.new_tokens, generator=torch.Generator().manual_seed(0))
    assert len(set(responses.lengths.tolist())) == MICRO.new_tokens


def test_prompts_are_shortened_to_all_lengths():
    prompts = ["a b c d"] * 60
    lengths = [len(prompt.split()) for prompt in shortened(prompts, seed=0)]
    assert set(lengths) == {1, 2, 3, 4}
    assert all("a b c d".startswith(prompt) for prompt in shortened(prompts, seed=0))


def test_levers_take_turns_and_the_first_is_the_yardstick(monkeypatch):
    turns = []

    class Fake(scaling.Training):
        def update(self):
            turns.append(self.config)
            seconds = 4.0 if self.config.decoding == "dynamic" else 2.0
            return dict.fromkeys((f"seconds_{x}" for x in ("generation", "scoring", "update", "total")), seconds) | {"response_length": 3.0}

    monkeypatch.setattr(scaling, "Training", Fake)
    monkeypatch.setattr(scaling, "LEVER_WORK", {"cpu": MICRO})
    monkeypatch.setattr(scaling, "LEVERS", {"plain": {}, "static cache": {"decoding": "static"}})
    rows = scaling.measure_levers("cpu", updates=2)["rows"]
    assert [config.decoding for config in turns] == ["dynamic", "static"] * 5
    assert [row["relative"] for row in rows] == [1.0, 2.0]
    assert rows[1]["tokens_per_second"] == 3.0 * MICRO.sequences / 2.0
    assert rows[1]["settings"] == {"decoding": "static"}


def test_every_lever_is_one_setting_and_the_last_is_all_of_them():
    *single, last = scaling.LEVERS.values()
    assert last == GPU_SETTINGS
    assert all(len(settings) <= 1 and LMPPOConfig(**settings) for settings in single)
    switched = {name for settings in single for name in settings}
    assert switched == set(GPU_SETTINGS) | {"gradient_checkpointing"}


def test_some_sections_alone_must_go_elsewhere(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["scaling", "--sections", "drift"])
    with pytest.raises(SystemExit):
        scaling.main()
    assert "--output must be given" in capsys.readouterr().err


@measured
def test_the_stored_memory_model_agrees_with_the_measurement():
    for point in load_result(scaling.NAME)["growth"]["points"]:
        assert point["estimated_bytes"] == pytest.approx(point["memory_bytes"], rel=0.05)


@measured
def test_the_stored_growth_has_every_point():
    growth = load_result(scaling.NAME)["growth"]
    expected = [(field, value) for field, values in scaling.GROWTH["cpu"].items() for value in values]
    assert [(point["varied"], point["value"]) for point in growth["points"]] == expected
    work, point = Workload(**growth["base"]), growth["points"][-1]
    policy, *_ = make_policy(replace(work, **{point["varied"]: point["value"]}))
    assert point["parameters"] == sum(x.numel() for x in policy.parameters())


@measured
def test_the_stored_levers_are_relative_to_the_first():
    rows = load_result(scaling.NAME)["levers"]["rows"]
    assert {row["name"]: row["settings"] for row in rows} == scaling.LEVERS
    assert all(row["relative"] == row["tokens_per_second"] / rows[0]["tokens_per_second"] for row in rows)
    lengths = [row["response_length"] for row in rows]
    assert math.isclose(statistics.mean(lengths), statistics.median(lengths), rel_tol=0.1)  # the same work for all


@measured
def test_the_stored_drift_is_none_with_recomputed_log_probs_and_small_otherwise():
    rows = load_result(scaling.NAME)["drift"]["rows"]
    assert {row["width"] for row in rows} == set(scaling.DRIFT_WIDTHS)
    for row in rows:
        low = row["precision"] == "bfloat16"
        assert row["sampling_mismatch"] <= (1e-2 if low else 1e-5)
        assert (row["largest_ratio_deviation"] == 0) == row["recompute_log_probs"]
        assert not low or row["sampling_mismatch"] > 1e-4
