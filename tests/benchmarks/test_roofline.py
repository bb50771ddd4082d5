"""The roofline: operations against torch's own counter, bytes against the tensors, and the stored result against its own numbers."""

from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from transformers.pytorch_utils import Conv1D

from benchmarks import roofline
from benchmarks.lm_setup import Training, make_policy, ppo_config
from benchmarks.lm_workload import Workload
from benchmarks.report import data_path
from benchmarks.roofline import Machine, Model, Work, forward_operations, generation_work, placed, prompt_work, token_work, update_work
from ppo_edu.lm import Decoder, generate, memory_estimate, sequence_log_probs
from ppo_edu.teach import load_result

WORK = Workload(sequences=6, prompt_tokens=5, new_tokens=7, layers=3, width=32, heads=2, vocabulary=40, prompts=12, temperature=1.0)
measured = pytest.mark.skipif(not data_path(roofline.NAME).exists(), reason="no measurement is committed yet")


@pytest.fixture(scope="module")
def made():
    policy, tokenizer, prompts = make_policy(WORK)
    policy.lm.set_attn_implementation("eager")  # matrix products that the counter sees
    return policy, tokenizer, prompts[: WORK.sequences]


@pytest.fixture(scope="module")
def model(made):
    policy, *_ = made
    return Model.of(policy.lm.config, sum(x.numel() for x in policy.parameters()))


def uncounted(model, length):
    """The counter sees whole squares of attention, where half and the diagonal are needed."""
    return 4 * WORK.sequences * model.attention * length**2 - 2 * WORK.sequences * model.attention * length * (length + 1)


def test_a_models_weights_are_counted_by_what_they_are_for(made, model):
    policy, *_ = made
    products = [m.weight for m in policy.lm.modules() if isinstance(m, nn.Linear | Conv1D)]
    assert model.output == policy.lm.lm_head.weight.numel()
    assert model.matrices == sum(x.numel() for x in products) - model.output


def test_operations_of_a_generation(made, model):
    policy, tokenizer, prompts = made
    with FlopCounterMode(display=False) as counter:
        responses = generate(policy, tokenizer, prompts, max_new_tokens=WORK.new_tokens)
    assert responses.mask.all()
    assert counter.get_total_flops() == generation_work(model, WORK, 4).operations + uncounted(model, WORK.prompt_tokens)


def test_operations_of_forward_and_backward(made, model):
    policy, tokenizer, prompts = made
    responses = generate(policy, tokenizer, prompts, max_new_tokens=WORK.new_tokens)
    with FlopCounterMode(display=False) as counter:
        log_probs = sequence_log_probs(policy.lm, responses)
        forward = counter.get_total_flops()
        log_probs.sum().backward()
    policy.zero_grad()
    length = WORK.prompt_tokens + WORK.new_tokens - 1
    assert forward == sum(forward_operations(model, WORK)) + uncounted(model, length)
    assert counter.get_total_flops() == 3 * forward


def test_operations_of_scoring_and_update(made, model):
    """All of `train_update` but the generation, the critic's head and what the reference's pass adds: it is in scoring."""
    policy, tokenizer, prompts = made
    config = ppo_config(WORK, 1)
    training = Training(policy, tokenizer, prompts, config)
    training.state.reference.set_attn_implementation("eager")
    with FlopCounterMode(display=False) as counter:
        training.update()
    length = WORK.prompt_tokens + WORK.new_tokens - 1
    passes = 2 + 3 * WORK.epochs
    expected = generation_work(model, WORK, 4).operations + uncounted(model, WORK.prompt_tokens) + passes * uncounted(model, length)
    expected += roofline.scoring_work(model, WORK, config, 4).operations + update_work(model, WORK, config, 0, 4).operations
    critic = (1 + 3 * WORK.epochs) * 2 * WORK.sequences * WORK.new_tokens * WORK.width
    assert counter.get_total_flops() == expected + critic


@pytest.mark.parametrize(("dtype", "p"), [(None, 4), (torch.bfloat16, 2)])
def test_bytes_of_a_token_are_those_of_the_weights_and_of_the_cache(made, model, dtype, p, monkeypatch):
    policy, tokenizer, prompts = made
    decoder, caches = Decoder(policy.lm, dtype=dtype), []
    step = decoder.model_step
    decoder.model_step = lambda *arguments: caches.append(step(*arguments)) or caches[-1]
    generate(decoder, tokenizer, prompts, max_new_tokens=3)
    cache = sum(x.nbytes for layer in caches[-1][2].layers for x in (layer.keys, layer.values))
    weights = sum(m.weight.nbytes for m in decoder.model.modules() if isinstance(m, nn.Linear | Conv1D))
    assert token_work(model, WORK.sequences, WORK.prompt_tokens + 2, p).bytes == weights + cache
    assert prompt_work(model, WORK.sequences, WORK.prompt_tokens + 2, p).bytes == weights + cache


def test_an_update_moves_activations_weights_and_moments(model):
    larger = replace(WORK, sequences=16)
    work = update_work(model, larger, ppo_config(larger, 1, accumulation=2), 1000, 2)
    steps, parts = WORK.epochs * WORK.minibatches, 2 * WORK.epochs * WORK.minibatches
    assert work.bytes == parts * (2000 + 4 * (model.matrices + model.output)) + steps * 28 * model.parameters


def test_checkpointing_costs_a_third_more_but_for_the_output_layer(model):
    plain, again = (
        update_work(model, WORK, replace(ppo_config(WORK, 1), gradient_checkpointing=on), 0, 4).operations for on in (False, True)
    )
    layers, _ = forward_operations(model, WORK)
    assert again - plain == WORK.epochs * layers


@pytest.mark.parametrize(
    ("work", "bound", "fraction"), [(Work(operations=400, bytes=10), "matrix", 0.4), (Work(operations=40, bytes=80), "bandwidth", 0.8)]
)
def test_a_phase_under_its_roof(work, bound, fraction):
    row = placed(work, [1.0, 1.0, 7.0], Machine(copy_bandwidth=100.0, matrix_rate=1000.0))
    assert (row["bound"], row["seconds"]) == (bound, 1.0)
    assert row["fraction"] == fraction == max(row["bandwidth_fraction"], row["matrix_fraction"])
    assert row["intensity"] == work.operations / work.bytes


@measured
def test_the_stored_result_follows_from_its_own_seconds():
    stored = load_result(roofline.NAME)
    limits = stored["machine"]
    machine = Machine(limits["copy_bandwidth"], limits["matrix_rate"][limits["precision"]])
    p = roofline.BYTES[limits["precision"]]
    assert stored["crossing"] == p * machine.matrix_rate / (2 * machine.copy_bandwidth)
    for size in stored["sizes"].values():
        work = Workload(**size["workload"])
        config = ppo_config(work, 1, **size["settings"])
        model = Model(size["matrices"], size["output"], work.layers * work.width, size["parameters"])
        estimate = memory_estimate(gpt2_config(work), config, prompt_tokens=work.prompt_tokens)
        expected = {
            "generation": generation_work(model, work, p),
            "scoring": roofline.scoring_work(model, work, config, p),
            "update": update_work(model, work, config, estimate.activations, p),
        }
        assert size["phases"] == {phase: placed(expected[phase], row["by_update"], machine) for phase, row in size["phases"].items()}
    for row in stored["decoding"]["rows"]:
        found = {name: x for name, x in row.items() if name != "batch"}
        assert found == placed(Work(row["operations"], row["bytes"]), row["by_update"], machine)


def gpt2_config(work):
    policy, *_ = make_policy(replace(work, prompts=1))
    return policy.lm.config


def test_the_table_names_every_phase():
    row = placed(Work(400, 10), [2.0], Machine(100.0, 1000.0))
    result = {
        "machine": {"copy_bandwidth": 1e9, "matrix_rate": {"float32": 2e9}},
        "crossing": 4.0,
        "sizes": {"3m": {"phases": {"generation": row}}},
        "decoding": {"rows": [{"batch": 8, **row}]},
    }
    text = roofline.table(result)
    assert "1.0 GB/s" in text
    assert "crossing at B = 4" in text
    assert [line.split()[0] for line in text.splitlines()[1:]] == ["3m", "decoding"]
    assert "20.0% achieved" in text


def test_the_decoder_of_the_sweep_is_measured_per_token():
    """Micro sizes: rows for each batch, with the work of a middle token."""
    result = roofline.measure_decoding(WORK, {}, Machine(1e9, 1e9), (1, 3), repeats=2)
    assert [row["batch"] for row in result["rows"]] == [1, 3]
    assert all(len(row["by_update"]) == 2 for row in result["rows"])
    policy, *_ = make_policy(WORK)
    model = Model.of(policy.lm.config, 0)
    lengths = range(WORK.prompt_tokens + 1, WORK.prompt_tokens + WORK.new_tokens)
    assert result["rows"][1]["operations"] == sum(token_work(model, 3, n, 4).operations for n in lengths) / len(lengths)


def test_a_size_is_measured_phase_by_phase():
    size = roofline.measure_size(WORK, {}, Machine(1e9, 1e9), updates=2, warm_up=1)
    assert list(size["phases"]) == ["generation", "scoring", "update"]
    assert all(len(row["by_update"]) == 2 and row["seconds"] > 0 for row in size["phases"].values())
    assert Workload(**size["workload"]) == WORK
