"""The switches that make a GPU fast: each changes time and memory, none the result; and nothing makes a GPU wait.

They are tested on the CPU, where all of them run. On a machine with a GPU the tests with a `device` run there too, and those
at the end compare it with the CPU.
"""

import copy
import dataclasses
import math
import shutil
from contextlib import ExitStack, contextmanager
from itertools import pairwise

import pytest
import torch
from lm_helpers import PROMPTS, TWO_WORDS_AT_LEAST, add_to_logits, make_lm, make_tokenizer, needs_cuda, seeded_generator, texts_as_tokens
from ppo_helpers import assert_same_run, contents, count_a, distance, make_policy, run, same, small, unmeasured, weights
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.testing import assert_close
from torch.utils._python_dispatch import TorchDispatchMode

from ppo_edu.core import value_checks
from ppo_edu.lm import GPU_SETTINGS, Decoder, LMPPOConfig, encode, generate, models, ppo, sequence_log_probs
from ppo_edu.lm.models import gradient_checkpointing, log_probs_and_values, response_logits
from ppo_edu.runs import Run, column

WORDS = "a b c d e f g " * 3
LONG_AND_SHORT = [WORDS[: 2 * n] for n in (20, 1, 2, 13, 1, 7)]  # prompts of so many tokens
DROPOUT = {"resid_pdrop": 0.3, "embd_pdrop": 0.3, "attn_pdrop": 0.3}


def start(config, *, policy=None, prompts=PROMPTS):
    """A training with its first batch."""
    policy = make_policy(head=0.3) if policy is None else policy
    with Run("lm-ppo", {}) as new_run, value_checks(False):
        state = ppo.start(policy, make_tokenizer(), config, None, 0, new_run)
        batch, _ = ppo.collect(state, list(prompts), count_a, config)
    return state, batch


def steps_of(state, batch, config):
    """What each optimiser step of an update learns: its gradients by name, float64. At learning rate 0, from equal random states."""
    found = []

    def note(*args):
        found.append({name: p.grad.double().clone() for name, p in state.policy.named_parameters() if p.grad is not None})

    state.generator.manual_seed(5)
    handle = state.optimizer.register_step_pre_hook(note)
    with value_checks(False):
        ppo.improve(state, batch, config)
    handle.remove()
    return found


def assert_same_gradients(found, expected, *, tolerance):
    """Their distance over their length, step by step."""
    assert len(found) == len(expected) > 0
    for mine, theirs in zip(found, expected, strict=True):
        length = math.sqrt(sum(float(x.square().sum()) for x in theirs.values()))
        assert length > 0.1
        assert distance(mine, theirs) <= tolerance * length


# Parts by length ------------------------------------------------------------------------------------------------------------


def long_and_short_batch(device="cpu", **changes):
    """Prompts of 1 to 20 tokens, responses of 1 to 16, in float64."""
    settings = {"batch_size": 18, "max_new_tokens": 16, "minibatches": 2, "learning_rate": 0.0, "max_grad_norm": None, "kl_coef": 0.3}
    config = small(**(settings | changes))
    policy = make_policy(head=0.3, n_positions=64).double().to(device)
    add_to_logits(policy.lm, t1=1.5)
    state, batch = start(config, policy=policy, prompts=LONG_AND_SHORT)
    lengths = batch.responses.lengths
    assert lengths.max() > 3 * lengths.min()
    return state, batch, config


@pytest.mark.parametrize("accumulation", [1, 3])
@pytest.mark.parametrize("kl_in", ["reward", "loss"])
def test_sorted_by_length_the_gradients_are_the_same(accumulation, kl_in, device):
    state, batch, config = long_and_short_batch(device, accumulation=accumulation, kl_in=kl_in)
    plain = steps_of(state, batch, config)
    widths, policy_pass = [], state.policy_pass

    def recording(policy, sequences, **settings):
        widths.append(sequences.input_ids.shape)
        assert sequences.prompt_mask.any(0).all(), "no column of the prompts is all padding"
        assert sequences.mask.any(0).all()
        return policy_pass(policy, sequences, **settings)

    state.policy_pass = recording
    found = steps_of(state, batch, dataclasses.replace(config, sort_by_length=True))
    assert_same_gradients(found, plain, tolerance=1e-6)
    assert len(widths) == 2 * 2 * accumulation
    full = batch.responses.input_ids.shape[1]
    computed, unsorted = sum(rows * columns for rows, columns in widths), 2 * 18 * full
    assert sum(rows for rows, _ in widths) == 2 * 18
    assert computed < (0.8 if accumulation == 3 else 1.01) * unsorted


def test_sorted_parts_hold_every_row_once_and_no_part_is_wider_than_its_longest():
    _, batch, _ = long_and_short_batch()
    responses = batch.responses
    total = responses.prompt_mask.sum(1) + responses.lengths
    groups = list(torch.randperm(18, generator=seeded_generator()).tensor_split(2))
    parts = ppo.split(responses, groups, 4, True)
    for group, of_group in zip(groups, parts, strict=True):
        assert sorted(torch.cat([part.index for part in of_group]).tolist()) == sorted(group.tolist())
        assert [len(part.index) for part in of_group] == [3, 2, 2, 2]
        longest = [int(total[part.index].max()) for part in of_group]
        shortest = [int(total[part.index].min()) for part in of_group]
        assert all(before <= after for before, after in zip(longest[:-1], shortest[1:], strict=True))
        for part in of_group:
            assert part.prompt_width == responses.prompt_mask[part.index].sum(1).max()
            assert part.width == responses.lengths[part.index].max()
            expected = [texts_as_tokens(responses)[i] for i in part.index.tolist()]
            assert texts_as_tokens(part.of(responses)) == expected
            cut = batch.part(part)
            assert texts_as_tokens(cut.responses) == expected
            for name in ("old_log_probs", "advantages", "returns", "values", "ref_log_probs"):
                mine, theirs = getattr(cut, name), getattr(batch, name)[part.index]
                assert torch.equal(mine[cut.responses.mask], theirs[responses.mask[part.index]]), name
    assert all((part.prompt_width, part.width) == (20, responses.tokens.shape[1]) for part in ppo.split(responses, groups, 4, False)[0])


def test_sorted_scores_lie_where_unsorted_ones_do():
    state, batch, config = long_and_short_batch(accumulation=3)
    with value_checks(False), torch.no_grad():
        plain, by_length = (ppo.score(state, batch.responses, dataclasses.replace(config, sort_by_length=on)) for on in (False, True))
    for mine, theirs in zip(by_length, plain, strict=True):
        assert_close(mine, theirs, atol=1e-6, rtol=0)
    assert plain[1].abs().max() > 0.1
    for x in by_length[:3]:
        assert (x[~batch.responses.mask] == 0).all()


# Gradient checkpointing -----------------------------------------------------------------------------------------------------


def saved_bytes(policy, batch):
    """Bytes that autograd keeps for the backward pass, parameters excluded."""
    own, kept = {p.data_ptr() for p in policy.parameters()}, {}

    def pack(x):
        if x.untyped_storage().data_ptr() not in own:
            kept[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
        return x.detach()

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        outputs = log_probs_and_values(policy, batch)  # kept alive, so that no address is used twice
    assert outputs[0].requires_grad
    return sum(kept.values())


@pytest.mark.parametrize("value", ["shared", "separate"])
def test_checkpointed_gradients_are_the_same_and_less_is_kept(architecture, value, device):
    policy, memory = make_policy(architecture, head=0.3, value=value).to(device), []
    config = small(batch_size=12, learning_rate=0.0, accumulation=2)
    state, batch = start(config, policy=policy)
    plain = steps_of(state, batch, config)
    found = steps_of(state, batch, dataclasses.replace(config, gradient_checkpointing=True))
    assert_same_gradients(found, plain, tolerance=0.0 if device.type == "cpu" else 1e-5)  # a GPU's sums have no fixed order
    for enabled in (False, True):
        with gradient_checkpointing(policy, enabled):
            memory.append(saved_bytes(policy, batch.responses))
    assert memory[1] < 0.4 * memory[0]


def test_a_whole_training_is_the_same_with_checkpointing():
    plain, found = (run(config=small(updates=3, recompute_log_probs=True, gradient_checkpointing=on)) for on in (False, True))
    assert same(weights(plain.policy), weights(found.policy))
    assert unmeasured(plain.log) == unmeasured(found.log)


class Kept:
    """What autograd saved; how many bytes of it are alive."""

    alive = 0

    def __init__(self, x):
        self.x = x.detach()
        Kept.alive += x.numel() * x.element_size()

    def __del__(self):
        Kept.alive -= self.x.numel() * self.x.element_size()


@pytest.mark.parametrize("checkpointing", [False, True])
def test_scoring_keeps_no_more_than_training_does(checkpointing):
    """With recompute_log_probs scores are computed with autograd on: one part's graph must go before the next one comes."""
    config = small(batch_size=12, recompute_log_probs=True, accumulation=2, gradient_checkpointing=checkpointing)
    state, batch = start(config)
    policy_pass, peaks = state.policy_pass, []

    def recording(*args, **settings):
        result = policy_pass(*args, **settings)
        peaks.append(Kept.alive)
        return result

    state.policy_pass = recording
    with torch.autograd.graph.saved_tensors_hooks(Kept, lambda kept: kept.x), value_checks(False):
        with torch.no_grad():
            ppo.score(state, batch.responses, config)
        assert Kept.alive == 0
        scoring = max(peaks)
        peaks.clear()
        ppo.improve(state, batch, config)
    assert 0 < scoring <= max(peaks)


@pytest.mark.parametrize("error", [None, RuntimeError, KeyboardInterrupt])
def test_afterwards_each_layer_is_as_it_was(architecture, error):
    policy = make_policy(architecture, value="separate")
    before = {name: dict(module.__dict__) for name, module in policy.named_modules()}
    layers = [module for module in policy.modules() if isinstance(module, models.GradientCheckpointingLayer)]
    with pytest.raises(error) if error else ExitStack(), gradient_checkpointing(policy):
        assert len(layers) == 4
        assert all("forward" in layer.__dict__ for layer in layers)
        if error:
            raise error
    assert {name: dict(module.__dict__) for name, module in policy.named_modules()} == before
    with gradient_checkpointing(policy, False):
        assert not any("forward" in layer.__dict__ for layer in layers)


def test_checkpointing_brings_no_dropout_back():
    """transformers' own switch works in training mode only, and training mode means dropout."""
    config = small(learning_rate=0.0, gradient_checkpointing=True, temperature=0.7, batch_size=12, updates=2)
    log = run(make_policy(head=0.5, **DROPOUT).train(), config).log
    assert column(log, "largest_ratio_deviation").max() < 1e-5
    plain, found = (make_policy(**DROPOUT) for _ in range(2))
    run(plain, small(updates=2))
    run(found.train(), small(updates=2, gradient_checkpointing=True))
    assert same(weights(plain), weights(found))


def test_a_model_without_such_layers_is_refused_by_name(monkeypatch):
    with (
        pytest.raises(ValueError, match=r"^gradient_checkpointing must be False for a model without layers that can be"),
        gradient_checkpointing(nn.Linear(2, 2)),
    ):
        pass
    monkeypatch.setattr(models, "GradientCheckpointingLayer", type("AnotherLayer", (nn.Module,), {}))
    asked = []
    with pytest.raises(ValueError, match=r"^gradient_checkpointing must be False for a model without layers"):
        run(config=small(gradient_checkpointing=True), reward_fn=lambda *args: asked.append(args))
    assert not asked
    run(config=small(updates=1))


# Old log-probabilities ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", ["shared", "separate"])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_recomputed_log_probs_are_those_of_training_to_the_last_bit(architecture, precision, value, device):
    """At learning rate 0 every ratio is 1 in every epoch, and the KL to an own copy is 0: no tolerance. Not so with those of sampling."""
    settings = {"learning_rate": 0.0, "updates": 2, "epochs": 3, "batch_size": 12, "temperature": 0.7, "precision": precision}
    policy = make_policy(architecture, head=0.5, value=value).to(device)
    log = run(policy, small(**settings, recompute_log_probs=True)).log
    assert set(column(log, "largest_ratio_deviation")) == set(column(log, "clip_fraction")) == {0.0}
    assert set(column(log, "kl")) == set(column(log, "approx_kl")) == {0.0}
    assert column(log, "sampling_mismatch").min() > 0.0
    if value == "shared":
        sampled = run(policy, small(**settings)).log
        assert column(sampled, "largest_ratio_deviation").min() > 0.0
        assert column(sampled, "sampling_mismatch").tolist() == column(log, "sampling_mismatch").tolist()


@pytest.mark.parametrize(
    "changes", [{"gradient_checkpointing": True}, {"accumulation": 2}, {"decoding": "static", "kl_in": "loss"}], ids=str
)
def test_so_they_are_with_other_switches(changes):
    config = small(learning_rate=0.0, recompute_log_probs=True, batch_size=12, precision="bfloat16", updates=2, **changes)
    log = run(make_policy(head=0.5), config).log
    assert set(column(log, "largest_ratio_deviation")) == {0.0}


def test_while_learning_the_first_minibatch_has_ratio_1_exactly():
    log = run(config=small(recompute_log_probs=True)).log
    assert set(column(log, "first_minibatch_ratio_deviation")) == {0.0}
    assert column(log, "largest_ratio_deviation").min() > 1e-2
    assert column(log, "sampling_mismatch").max() < 1e-5


SWITCHES = [
    {"decoding": "static"},
    {"decoding": "static", "finish_test_every": 3},
    {"sort_by_length": True, "accumulation": 2},
    {"gradient_checkpointing": True},
]


@pytest.mark.parametrize("changes", SWITCHES, ids=str)
def test_with_learning_rate_0_every_ratio_is_1_with_each_switch(changes, architecture, device):
    """Against the log-probabilities of sampling: positions, temperature and columns fit together; dropout is off."""
    dropout = DROPOUT if architecture == "gpt2" else {"attention_dropout": 0.5}
    policy = make_policy(architecture, head=0.5, **dropout).to(device).train()
    log = run(policy, small(learning_rate=0.0, temperature=0.7, batch_size=12, max_new_tokens=8, updates=2, **changes)).log
    assert column(log, "largest_ratio_deviation").max() < 1e-5
    assert column(log, "sampling_mismatch").max() < 1e-5


# bfloat16 -------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("value", ["shared", "separate"])
def test_in_bfloat16_log_probs_and_values_are_float32_and_near_those_of_float32(architecture, value, temperature, device, tokenizer):
    """Within 2e-2 on average and 0.1 at most: 8 bits of mantissa in numbers of up to about 4."""
    policy = make_policy(architecture, head=0.5, value=value).to(device)
    batch = generate(policy, tokenizer, 4 * PROMPTS, max_new_tokens=8, generator=seeded_generator(1, device))
    exact, rounded = (response_logits(policy, batch, temperature=temperature, dtype=x) for x in (torch.float32, torch.bfloat16))
    assert rounded[0].dtype == rounded[1].dtype == torch.float32
    log_probs = [sequence_log_probs(policy, batch, temperature=temperature, dtype=x)[batch.mask] for x in (torch.float32, torch.bfloat16)]
    for mine, theirs in ((log_probs[1], log_probs[0]), (rounded[1][batch.mask], exact[1][batch.mask])):
        error = (mine - theirs).abs()
        assert 0.0 < error.mean() < 2e-2
        assert error.max() < 0.1
    total = torch.log_softmax(rounded[0], -1).exp().sum(-1)
    assert_close(total, torch.ones_like(total), atol=1e-6, rtol=0)


def test_the_value_head_keeps_its_digits(tokenizer):
    """Hidden states are rounded, what is made of them is not: a return of 100.3 must not become 100.5."""
    policy = make_policy(head=0.5)
    with torch.no_grad():
        policy.value_head.bias.fill_(100.3)
    batch = encode(tokenizer, PROMPTS, PROMPTS[::-1])
    seen = []
    with policy.value_head.register_forward_hook(lambda module, inputs, output: seen.append((inputs[0], output))):
        _, values = response_logits(policy, batch, dtype=torch.bfloat16)
    hidden, output = seen[0]
    assert torch.equal(output, hidden @ policy.value_head.weight.T + policy.value_head.bias)
    assert not torch.equal(values, values.to(torch.bfloat16).float())


def test_in_bfloat16_all_that_learns_stays_float32_and_the_decoder_has_a_rounded_copy():
    policy, before = make_policy(), []
    before.append(weights(policy.lm))

    def look(state):
        assert {p.dtype for p in policy.parameters()} == {p.grad.dtype for p in policy.parameters()} == {torch.float32}
        moments = [x for slots in state.optimizer.state.values() for x in slots.values()]
        assert {x.dtype for x in moments} == {torch.float32}
        assert state.reference.dtype == torch.float32
        assert state.decoder.model is not policy.lm
        for name, x in state.decoder.model.named_parameters():
            assert x.dtype == torch.bfloat16
            assert torch.equal(x, before[-1][name].to(torch.bfloat16)), "the weights that the last batch was sampled with"
        before.append(weights(policy.lm))

    log = run(policy, small(precision="bfloat16", batch_size=24), callback=look).log
    assert len(before) == 7
    assert all(distance(a, b) > 0.01 for a, b in pairwise(before))
    assert column(log, "sampling_mismatch").min() > 1e-4
    assert column(log, "sampling_mismatch").max() < 1e-2


def test_a_weight_that_moves_by_less_than_bfloat16_can_tell_still_moves():
    """What the float32 copy is for: a step of 1e-5 would round away."""
    policy = make_policy()
    before = weights(policy.lm)
    run(policy, small(updates=3, precision="bfloat16", learning_rate=1e-5, epochs=1))
    large = before["transformer.wte.weight"].abs() > 0.1
    moved = (policy.lm.transformer.wte.weight - before["transformer.wte.weight"]).abs()[large]
    assert (moved > 0).float().mean() > 0.9
    assert moved.max() < 1e-4


@pytest.mark.verify
@pytest.mark.parametrize(
    "changes", [{"precision": "bfloat16"}, {"precision": "bfloat16", "decoding": "static", "recompute_log_probs": True}]
)
def test_bfloat16_learns_what_float32_learns(changes):
    """The same task, the same rewards in the end, up to the noise of sampling."""
    rewards = [column(run(config=small(updates=25, batch_size=32, **x)).log, "reward")[-5:].mean() for x in ({}, changes)]
    start = column(run(config=small(updates=1, batch_size=32)).log, "reward")[0]
    assert rewards[0] > start + 1.0
    assert rewards[1] > start + 0.8 * (rewards[0] - start)


# Compiled -------------------------------------------------------------------------------------------------------------------


def test_the_compiled_update_is_the_same_and_is_compiled_once(graphs):
    """One graph for parts of all widths, without a break: so nothing in it can make a GPU wait."""
    settings = {"updates": 3, "batch_size": 24, "max_new_tokens": 8, "recompute_log_probs": True, "sort_by_length": True}
    plain, found = (
        run(make_policy(n_layer=1, head=0.3), small(**settings, compiled_update=on), prompts=TWO_WORDS_AT_LEAST) for on in (False, True)
    )
    assert len(graphs) == 1
    moved = distance(weights(make_policy(n_layer=1, head=0.3)), weights(plain.policy))
    assert distance(weights(found.policy), weights(plain.policy)) < 1e-3 * moved
    for mine, theirs in zip(unmeasured(found.log), unmeasured(plain.log), strict=True):
        assert mine == pytest.approx(theirs, rel=1e-2, abs=1e-4)


@pytest.mark.verify
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch's inductor needs a C++ compiler")
@pytest.mark.filterwarnings("ignore")  # inductor's own
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_the_default_compiler_too(precision, device):
    """Float32: the same training. Both: recomputed log-probabilities are those of training to the last bit, as without a compiler."""
    torch.compiler.reset()
    settings = {"batch_size": 12, "recompute_log_probs": True, "precision": precision, "decoding": "compiled", "finish_test_every": 4}
    log = run(make_policy(head=0.3).to(device), small(updates=2, learning_rate=0.0, compiled_update=True, **settings)).log
    assert set(column(log, "largest_ratio_deviation")) == {0.0}
    assert abs(column(log, "kl")).max() < (1e-5 if precision == "float32" else 0.05), "the reference is not compiled: it rounds elsewhere"
    if precision == "float32":
        plain, found = (run(make_policy(head=0.3).to(device), small(updates=3, compiled_update=on, **settings)) for on in (False, True))
        moved = distance(weights(make_policy(head=0.3).to(device)), weights(plain.policy))
        assert distance(weights(found.policy), weights(plain.policy)) < 1e-2 * moved
    learned = run(
        make_policy(head=0.3).to(device), LMPPOConfig(updates=12, batch_size=24, max_new_tokens=5, learning_rate=1e-2, **GPU_SETTINGS)
    )
    assert column(learned.log, "reward")[-4:].mean() > column(learned.log, "reward")[0] + 0.5


def test_the_settings_for_a_gpu_are_fields_of_the_config():
    config = LMPPOConfig(**GPU_SETTINGS)
    changed = {f.name for f in dataclasses.fields(LMPPOConfig) if getattr(config, f.name) != f.default}
    assert changed == set(GPU_SETTINGS)


# Nothing waits --------------------------------------------------------------------------------------------------------------

WAITS = ("aten::_local_scalar_dense", "aten::nonzero", "aten::masked_select", "aten::equal", "aten::_unique2", "aten::unique_dim")
TO_THE_HOST = ("tolist", "cpu", "numpy", "__array__")


@contextmanager
def waits():
    """Inside this block: whatever would make the CPU wait for a GPU, in order. Indexing with a mask is `nonzero` in disguise."""
    events = []

    class Operators(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            name = func._schema.name
            indexed = name in ("aten::index", "aten::index_put", "aten::index_put_", "aten::_index_put_impl_")
            if name in WAITS or (indexed and any(x is not None and x.dtype == torch.bool for x in args[1])):
                events.append(name)
            return func(*args, **(kwargs or {}))

    class Functions(TorchFunctionMode):
        def __torch_function__(self, func, types, args=(), kwargs=None):
            if getattr(func, "__name__", "") in TO_THE_HOST:
                events.append(func.__name__)
            return func(*args, **(kwargs or {}))

    with Functions(), Operators():
        yield events


def waits_of_an_update(config, **changes):
    """What `improve` waits for, as three lists: before the first gradient is cleared, up to the last step, and after it."""
    policy = make_policy(head=0.3)
    if changes.get("attention") == "eager":
        policy.lm.set_attn_implementation("eager")
    state, batch = start(config, policy=policy)
    marks = []
    clear, step = state.optimizer.zero_grad, state.optimizer.step
    with waits() as events, value_checks(False):

        def marked(fn):
            def wrapper():
                marks.append(len(events))
                fn()
                marks.append(len(events))

            return wrapper

        state.optimizer.zero_grad, state.optimizer.step = marked(clear), marked(step)
        ppo.improve(state, batch, config)
    assert len(marks) == 2 * 2 * config.epochs * config.minibatches
    return events[: marks[0]], events[marks[0] : marks[-1]], events[marks[-1] :]


STEPS = [
    {},
    {"kl_in": "loss", "kl_loss": "k3", "value_clip_range": 0.2, "accumulation": 2, "whiten_rewards": True},
    {"sort_by_length": True, "accumulation": 2},
    {"gradient_checkpointing": True, "precision": "bfloat16", "max_grad_norm": None},
]


@pytest.mark.parametrize("changes", STEPS, ids=str)
def test_no_optimiser_step_waits(changes):
    before, within, after = waits_of_an_update(small(batch_size=12, **changes), attention="eager")
    assert within == []
    assert before == (["tolist"] if changes.get("sort_by_length") else []), "the widths of all parts, once"
    assert 0 < len(after) <= 3, "the numbers to log, once for all steps"


def test_only_transformers_looks_at_the_mask_before_each_pass():
    """Uncompiled, its scaled dot-product attention asks twice whether a mask has padding. Traced (see above) it does not ask."""
    config = small(batch_size=12, accumulation=2)
    _, within, _ = waits_of_an_update(config)
    passes = config.epochs * config.minibatches * config.accumulation
    assert set(within) <= {"aten::_local_scalar_dense"}
    assert len(within) <= 2 * passes


CARELESS = {
    "item": lambda x: x.mean().item(),
    "float": lambda x: float(x.sum()),
    "if": lambda x: 1.0 if (x > 0).any() else 0.0,
    "tolist": lambda x: x.flatten().tolist(),
    "mask": lambda x: x[x > 0].sum(),
    "put": lambda x: x.clone().index_put_((x > 0,), torch.tensor(0.0)),
    "where": lambda x: torch.where(x > 0),
    "cpu": lambda x: x.cpu(),
}


@pytest.mark.parametrize("how", CARELESS)
def test_a_step_that_waits_would_be_noticed(how, monkeypatch):
    original = ppo.approx_kl

    def careless(log_probs, old_log_probs, **options):
        CARELESS[how](log_probs - old_log_probs)
        return original(log_probs, old_log_probs, **options)

    monkeypatch.setattr(ppo, "approx_kl", careless)
    _, within, _ = waits_of_an_update(small(), attention="eager")
    assert len(within) == 2 * 2


@pytest.mark.parametrize("every", [1, 4, 50])
@pytest.mark.parametrize("decoding", ["dynamic", "static"])
def test_sampling_waits_once_per_finish_test_and_once_at_the_end(every, decoding, tokenizer):
    lm = add_to_logits(make_lm("gpt2"), t1=-1e9)
    lm.set_attn_implementation("eager")
    decoder = Decoder(lm, decoding=decoding, finish_test_every=every)
    with waits() as events, value_checks(False):
        responses = generate(decoder, tokenizer, PROMPTS, max_new_tokens=21, generator=seeded_generator())
    assert responses.tokens.shape[1] == 21
    assert events == ["aten::_local_scalar_dense"] * (21 // every + 1)


def test_collecting_waits_a_few_times_whatever_the_size_of_the_batch(monkeypatch):
    counts = []
    for batch_size, minibatches, sort in ((8, 2, True), (24, 6, True), (24, 6, False)):
        policy = make_policy()
        policy.lm.set_attn_implementation("eager")
        config = small(batch_size=batch_size, minibatches=minibatches, finish_test_every=50, sort_by_length=sort)
        state, _ = start(config, policy=policy)
        with waits() as events, value_checks(False), monkeypatch.context() as patch:
            real = ppo.decode

            def decode(tokenizer, sequences, real=real, events=events):
                here = len(events)
                texts = real(tokenizer, sequences)
                assert events[here : here + 2] == ["cpu", "cpu"]
                del events[here + 2 :]  # from here on it reads the CPU's own copy
                return texts

            patch.setattr(ppo, "decode", decode)
            ppo.collect(state, list(PROMPTS), count_a, config)
        counts.append(len(events))
    assert counts[0] == counts[1] == counts[2] + 1 <= 10


# Runs with these switches ---------------------------------------------------------------------------------------------------

ALL = {"precision": "bfloat16", "decoding": "static", "finish_test_every": 3, "sort_by_length": True, "accumulation": 2}


@pytest.mark.parametrize("changes", [ALL | {"recompute_log_probs": True}, ALL | {"gradient_checkpointing": True, "kl_in": "loss"}], ids=str)
def test_a_stopped_run_continues_bit_for_bit(tmp_path, changes):
    config = small(updates=3, **changes)
    whole = run(config=config, log_dir=tmp_path / "whole")
    run(config=config, log_dir=tmp_path / "parts", callback=lambda state: state.update == 2)
    torch.manual_seed(99)
    resumed = run(make_policy(seed=9), config, resume=tmp_path / "parts", seed=77)
    assert same(weights(resumed.policy), weights(whole.policy))
    assert_same_run(tmp_path / "parts", tmp_path / "whole")


@pytest.fixture(scope="module")
def stopped(tmp_path_factory):
    """The directory of a run stopped after one update."""
    directory = tmp_path_factory.mktemp("stopped")
    run(log_dir=directory, callback=lambda state: True)
    return directory


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("precision", "bfloat16"),
        ("recompute_log_probs", True),
        ("decoding", "static"),
        ("finish_test_every", 8),
        ("compiled_update", True),
        ("gradient_checkpointing", True),
        ("sort_by_length", True),
    ],
)
def test_a_run_is_not_resumed_with_another_switch(stopped, name, value):
    """Each changes the order or the rounding of sums, so the run would not go on bit for bit."""
    before = contents(stopped)
    with pytest.raises(ValueError, match=rf"these differ: {name} \(checkpoint {getattr(small(), name)!r}, given {value!r}\)$"):
        run(config=small(**{name: value}), resume=stopped)
    assert contents(stopped) == before


# On a GPU -------------------------------------------------------------------------------------------------------------------


def moved(x, device):
    """A batch, or anything of tensors, on another device."""
    if isinstance(x, torch.Tensor):
        return x.to(device)
    return dataclasses.replace(x, **{f.name: moved(getattr(x, f.name), device) for f in dataclasses.fields(x)})


@needs_cuda
@pytest.mark.parametrize("value", ["shared", "separate"])
def test_cpu_and_gpu_agree_in_float32(architecture, value):
    """Without TF32: log-probabilities and values to 1e-5, losses to 1e-5, gradients to 1e-4 of their length."""
    torch.set_float32_matmul_precision("highest")
    config = small(batch_size=12, learning_rate=0.0, kl_in="loss", value_clip_range=0.2, epochs=1, minibatches=1, max_grad_norm=None)
    found = {}
    policy = make_policy(architecture, head=0.3, value=value)
    _, batch = start(config, policy=policy)
    for device in ("cpu", "cuda"):
        here, of_batch = copy.deepcopy(policy).to(device), moved(batch, device)
        loss, losses, _ = ppo.ppo_loss(here, of_batch, config, 0.3)
        loss.backward()
        gradients = {name: p.grad.cpu() for name, p in here.named_parameters()}
        log_probs, values, entropy = log_probs_and_values(here, of_batch.responses, with_entropy=True)
        numbers = torch.stack([loss.detach(), *losses, entropy]).cpu()
        found[device] = log_probs.detach().cpu(), values.detach().cpu(), numbers, gradients
    for mine, theirs in zip(found["cuda"][:3], found["cpu"][:3], strict=True):
        assert_close(mine, theirs, atol=1e-5, rtol=1e-5)
    assert_same_gradients([found["cuda"][3]], [found["cpu"][3]], tolerance=1e-4)


@needs_cuda
@pytest.mark.filterwarnings("ignore")  # inductor's own
@pytest.mark.parametrize("decoding", ["dynamic", "static", "compiled"])
@pytest.mark.parametrize(("precision", "tolerance"), [("float32", 1e-5), ("bfloat16", 1e-2)])
def test_on_a_gpu_sampling_and_training_agree(precision, tolerance, decoding):
    """The mean deviation of the ratio from 1 at learning rate 0; recomputed, no deviation at all."""
    torch.set_float32_matmul_precision("highest")
    torch.compiler.reset()
    settings = {"learning_rate": 0.0, "batch_size": 64, "precision": precision, "decoding": decoding, "finish_test_every": 8}
    for recompute in (False, True):
        log = run(make_policy(head=0.5).to("cuda"), small(**settings, recompute_log_probs=recompute, updates=4)).log
        assert 0.0 < column(log, "sampling_mismatch").max() <= tolerance
        if recompute:
            assert set(column(log, "largest_ratio_deviation")) == {0.0}
            assert set(column(log, "kl")) == {0.0}


@needs_cuda
@pytest.mark.filterwarnings("ignore")  # inductor's own, and that this debug mode is a prototype
def test_on_a_gpu_no_optimiser_step_waits():
    """PyTorch itself raises at any operation that waits, from the first gradient on to the last step."""
    torch.compiler.reset()
    config = small(batch_size=24, max_new_tokens=8, minibatches=3, **(GPU_SETTINGS | {"decoding": "static"}))
    state, batch = start(config, policy=make_policy(head=0.3).to("cuda"), prompts=TWO_WORDS_AT_LEAST)
    state.generator.manual_seed(5)
    with value_checks(False):
        ppo.improve(state, batch, config)  # compiles, for parts of the very same widths
    state.generator.manual_seed(5)
    clear, step, steps = state.optimizer.zero_grad, state.optimizer.step, []

    def first_clear():
        torch.cuda.set_sync_debug_mode("error")
        clear()

    def last_step():
        step()
        steps.append(1)
        if len(steps) == config.epochs * config.minibatches:
            torch.cuda.set_sync_debug_mode("default")

    state.optimizer.zero_grad, state.optimizer.step = first_clear, last_step
    try:
        with value_checks(False):
            ppo.improve(state, batch, config)
            assert torch.cuda.get_sync_debug_mode() == 0
            torch.cuda.set_sync_debug_mode("error")
            with pytest.raises(RuntimeError, match="synchroniz"):
                batch.values.sum().item()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert len(steps) == config.epochs * config.minibatches
