"""A policy with an adapter of peft: it is its own reference, so that no second model is in memory; only the adapter learns."""

import copy
import dataclasses

import pytest
import torch
from lm_helpers import PROMPTS, TWO_WORDS_AT_LEAST, make_lm, make_tokenizer, seeded_generator
from ppo_helpers import assert_same_run, contents, count_a, distance, run, same, small, weights

from ppo_edu.core import value_checks
from ppo_edu.lm import PolicyWithValue, generate, generation, ppo, sequence_log_probs
from ppo_edu.lm.models import has_adapter, without_adapter
from ppo_edu.runs import CHECKPOINT_NAME, LOG_NAME, Run, column

peft = pytest.importorskip("peft")
pytestmark = pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.* is deprecated:FutureWarning")  # peft asks transformers so

TARGETS = {"gpt2": ["c_attn"], "llama": ["q_proj", "v_proj"]}


@pytest.fixture(params=TARGETS)
def name(request):
    """Two architectures, whose linear layers are of different kinds."""
    return request.param


def with_adapter(name, *, moved=0.0, seed=0):
    """A policy with a LoRA adapter, and its model as it was. `moved`: spread of the adapter's second factor, which starts at 0."""
    lm = make_lm(name, seed=seed)
    original = copy.deepcopy(lm)
    config = peft.LoraConfig(r=4, target_modules=TARGETS[name], fan_in_fan_out=name == "gpt2", task_type="CAUSAL_LM")
    torch.manual_seed(seed)
    adapted = peft.get_peft_model(lm, config)
    with torch.no_grad():
        for parameter_name, parameter in adapted.named_parameters():
            if "lora_B" in parameter_name:
                parameter += moved * torch.randn(parameter.shape, generator=seeded_generator(3))
    return PolicyWithValue(adapted), original


def learns(name):
    return "lora_" in name or name.startswith("value_head")


def test_at_the_start_it_is_the_reference_and_the_kl_is_0(name):
    policy, original = with_adapter(name)
    config = small(recompute_log_probs=True, updates=1)
    row = run(policy, config).log[0]
    assert row["kl"] == row["first_minibatch_ratio_deviation"] == 0.0
    assert not has_adapter(original)
    assert row["sampling_mismatch"] < 1e-5


def test_no_second_model_is_made(name, tmp_path, monkeypatch):
    policy, _ = with_adapter(name)
    states = []
    for module in (ppo, generation):
        monkeypatch.setattr(module, "copy", None)
    run(policy, small(updates=1), log_dir=tmp_path, callback=states.append)
    assert states[0].reference is policy.lm
    assert states[0].decoder.model is policy.lm
    assert sorted(contents(tmp_path)) == [CHECKPOINT_NAME, LOG_NAME], "no reference is stored either"
    tensors = [p for group in states[0].optimizer.param_groups for p in group["params"]]
    assert {id(p) for p in tensors} == {id(p) for n, p in policy.named_parameters() if learns(n)}


@pytest.mark.parametrize(
    "changes", [{}, {"kl_in": "loss", "gradient_checkpointing": True}, {"precision": "bfloat16", "decoding": "static"}]
)
def test_only_the_adapter_and_the_value_head_move(name, changes):
    policy, _ = with_adapter(name)
    before = weights(policy)
    log = run(policy, small(**changes)).log
    after = weights(policy)
    assert {n for n in before if not torch.equal(before[n], after[n])} == {n for n in before if learns(n)}
    assert log[-1]["kl"] > 0.01
    assert {p.requires_grad for n, p in policy.named_parameters() if learns(n)} == {True}
    assert not any(p.requires_grad for n, p in policy.named_parameters() if not learns(n))


@pytest.mark.parametrize("changes", [{}, {"sort_by_length": True, "accumulation": 2}])
def test_the_references_log_probs_are_those_of_the_model_before_the_adapter(name, changes):
    """After training, to the last bit where the batch is computed in the same parts; and sampling has the adapter on."""
    policy, original = with_adapter(name)
    config = small(temperature=0.7, batch_size=12, minibatches=1, **changes)
    run(policy, dataclasses.replace(config, updates=3))
    with Run("lm-ppo", {}) as new_run, value_checks(False):
        state = ppo.start(policy, make_tokenizer(), config, None, 0, new_run)
        batch, row = ppo.collect(state, list(PROMPTS), count_a, config)
    expected = sequence_log_probs(original, batch.responses, temperature=0.7).detach()
    adapted = sequence_log_probs(policy, batch.responses, temperature=0.7).detach()
    if changes:
        torch.testing.assert_close(batch.ref_log_probs, expected, atol=1e-6, rtol=0)
    else:
        assert torch.equal(batch.ref_log_probs, expected)
    torch.testing.assert_close(batch.old_log_probs, adapted, atol=1e-5, rtol=0)
    assert (adapted - expected).abs().mean() > 0.01
    assert row["sampling_mismatch"] < 1e-5
    with without_adapter(policy.lm):
        assert torch.equal(sequence_log_probs(policy, batch.responses, temperature=0.7).detach(), expected)


@pytest.mark.parametrize("changes", [{}, {"decoding": "static"}, {"gradient_checkpointing": True}])
def test_with_learning_rate_0_every_ratio_is_1_with_the_adapter_on(name, changes):
    policy, _ = with_adapter(name, moved=0.3)
    log = run(policy, small(learning_rate=0.0, temperature=0.7, updates=3, **changes)).log
    assert column(log, "largest_ratio_deviation").max() < 1e-5
    assert column(log, "kl").mean() > 0.01, "and the reference has it off"


def test_a_copy_in_bfloat16_has_the_adapter_too(name, tokenizer):
    policy, _ = with_adapter(name, moved=0.3)
    decoder = ppo.Decoder(policy.lm, dtype=torch.bfloat16)
    exact, rounded = (generate(x, tokenizer, 4 * PROMPTS, max_new_tokens=4, generator=seeded_generator()) for x in (policy, decoder))
    with torch.no_grad():
        for parameter_name, parameter in policy.named_parameters():
            if "lora_B" in parameter_name:
                parameter.zero_()
    decoder.refresh()
    plain = generate(decoder, tokenizer, 4 * PROMPTS, max_new_tokens=4, generator=seeded_generator())
    first = [x.log_probs[:, 0] for x in (exact, rounded, plain)]
    drawn = [x.tokens[:, 0] for x in (exact, rounded, plain)]
    same_token = (drawn[0] == drawn[1]) & (drawn[0] == drawn[2])
    assert same_token.sum() > 8
    near, far = ((first[0] - x)[same_token].abs().mean() for x in first[1:])
    assert near < 2e-2
    assert far > 2 * near


@pytest.mark.parametrize("changes", [{}, {"precision": "bfloat16", "decoding": "static", "recompute_log_probs": True}])
def test_a_stopped_run_continues_bit_for_bit(name, tmp_path, changes):
    config = small(updates=3, **changes)
    whole = run(with_adapter(name)[0], config, log_dir=tmp_path / "whole")
    run(with_adapter(name)[0], config, log_dir=tmp_path / "parts", callback=lambda state: state.update == 2)
    resumed = run(with_adapter(name, seed=9)[0], config, resume=tmp_path / "parts", seed=77)  # all state comes from the checkpoint
    assert same(weights(resumed.policy), weights(whole.policy))
    assert_same_run(tmp_path / "parts", tmp_path / "whole")


def test_a_reference_can_still_be_given(name):
    policy, _ = with_adapter(name)
    reference, states = make_lm(name, seed=5), []
    log = run(policy, reference=reference, callback=states.append).log
    assert states[0].reference is reference
    assert abs(log[0]["kl"]) > 0.01


def test_an_adapter_beside_a_value_model_leaves_the_critic_free():
    policy, _ = with_adapter("gpt2")
    policy = PolicyWithValue(policy.lm, make_lm("gpt2", seed=7))
    before = weights(policy)
    run(policy)
    after = weights(policy)
    moved = {n for n in before if not torch.equal(before[n], after[n])}
    assert {n.split(".")[0] for n in moved} == {"lm", "value_head", "value_trunk"}
    assert all("lora_" in n for n in moved if n.startswith("lm."))
    assert distance(before, after) > 0.1


def test_other_models_are_left_alone_by_without_adapter(gpt2):
    assert not has_adapter(gpt2)
    with without_adapter(gpt2):
        assert gpt2(torch.tensor([[3, 4]])).logits.requires_grad


@pytest.mark.verify
def test_it_compiles_as_any_policy_does(name, graphs):
    """One graph for the update and one for a token's step: switching the adapter off for the reference breaks neither."""
    settings = {"updates": 3, "batch_size": 24, "recompute_log_probs": True}
    plain = run(with_adapter(name)[0], small(decoding="static", **settings), prompts=TWO_WORDS_AT_LEAST)
    found = run(with_adapter(name)[0], small(decoding="compiled", compiled_update=True, **settings), prompts=TWO_WORDS_AT_LEAST)
    assert len(graphs) == 2
    before = weights(with_adapter(name)[0])
    assert distance(weights(found.policy), weights(plain.policy)) < 1e-3 * distance(before, weights(plain.policy))
