"""The memory estimate against what is there: parameters, moments and caches to the byte, activations as autograd keeps them."""

import re

import pytest
import torch
from lm_helpers import add_to_logits, make_lm, make_tokenizer
from ppo_helpers import count_a
from torch.autograd.graph import saved_tensors_hooks
from torch.profiler import ProfilerActivity, profile, record_function
from transformers import GPT2Config

from ppo_edu.lm import Decoder, LMPPOConfig, PolicyWithValue, generate, generation, memory_estimate, ppo, train_ppo
from ppo_edu.lm.memory import BYTES, LOGIT_COPIES, layer_activations
from ppo_edu.lm.models import gradient_checkpointing, log_probs_and_values
from ppo_edu.lm.ppo import DTYPES
from ppo_edu.lm.sequences import Sequences

MIB = 2**20
SHAPES = [  # width, layers, heads, MLP's width, vocabulary; sequences in a part, prompt tokens, new tokens
    (64, 1, 4, 256, 100, 16, 8, 24),
    (128, 4, 4, 512, 64, 5, 8, 24),
    (96, 2, 3, 384, 50, 7, 30, 40),
    (32, 3, 2, 96, 700, 4, 3, 60),
]


def make(architecture, width, layers, heads, mlp, vocabulary, *, separate=False):
    """A policy of this shape; Qwen 3's heads are larger than width / heads, the key-value heads of the Llamas fewer."""
    if architecture == "gpt2":
        sizes = {"n_embd": width, "n_layer": layers, "n_head": heads, "n_inner": mlp, "n_positions": 128}
    else:
        sizes = {"hidden_size": width, "num_hidden_layers": layers, "num_attention_heads": heads, "intermediate_size": mlp}
        sizes |= {"num_key_value_heads": heads // 2 if heads % 2 == 0 else heads, "max_position_embeddings": 128}
        sizes |= {"head_dim": 40} if architecture == "qwen3" else {}
    lms = [make_lm(architecture, vocab_size=vocabulary, **sizes) for _ in range(1 + separate)]
    return PolicyWithValue(*lms).eval()


def sequences(batch, prompt_tokens, new_tokens, vocabulary):
    """Random tokens with one pad on the left: without any, transformers leaves the mask away."""
    generator = torch.Generator().manual_seed(0)
    prompt_mask = torch.ones(batch, prompt_tokens, dtype=torch.bool)
    prompt_mask[0, 0] = False
    prompts, tokens = (torch.randint(2, vocabulary, (batch, n), generator=generator) for n in (prompt_tokens, new_tokens))
    return Sequences(prompts, prompt_mask, tokens, torch.ones(batch, new_tokens, dtype=torch.bool))


def saved_bytes(policy, batch, *, precision="float32", checkpointing=False):
    """Bytes of the memory that autograd keeps for the backward pass, parameters excluded; what is kept twice counts once."""
    kept = {}

    def keep(x):
        kept[x.untyped_storage().data_ptr()] = x  # holds on to it, so that no address is given twice
        return x

    with gradient_checkpointing(policy, checkpointing), saved_tensors_hooks(keep, lambda x: x):
        log_probs_and_values(policy, batch, dtype=DTYPES[precision])
    for parameter in policy.parameters():
        kept.pop(parameter.untyped_storage().data_ptr(), None)
    return sum(x.untyped_storage().nbytes() for x in kept.values())


@pytest.mark.parametrize("separate", [False, True])
@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    ("kind", "shape", "tolerance"),
    [("gpt2", shape, 0.03) for shape in SHAPES] + [(kind, SHAPES[i], 0.05) for kind in ("llama", "qwen2", "qwen3") for i in (1, 2)],
)
def test_activations_are_what_autograd_keeps(kind, shape, tolerance, precision, checkpointing, separate):
    *sizes, b, P, T = shape
    policy = make(kind, *sizes, separate=separate)
    measured = saved_bytes(policy, sequences(b, P, T, sizes[-1]), precision=precision, checkpointing=checkpointing)
    config = LMPPOConfig(batch_size=6 * b, minibatches=2, accumulation=3, max_new_tokens=T, precision=precision)
    config = ppo.replace(config, gradient_checkpointing=checkpointing)
    estimate = memory_estimate(policy.lm.config, config, prompt_tokens=P, separate_value_model=separate)
    expected = estimate.activations + estimate.logits // LOGIT_COPIES  # the log-softmax is kept, its gradients come later
    if checkpointing:  # the layer that is there in full comes during the backward pass
        expected -= layer_activations(policy.lm.config, b, P + T - 1, BYTES[precision])
    assert expected == pytest.approx(measured, rel=tolerance)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("separate", [False, True])
def test_parameters_gradients_and_moments_to_the_byte(architecture, separate, precision):
    if architecture == "gpt_neox":
        pytest.skip("its activations are not known")
    policy = PolicyWithValue(*(make_lm(architecture) for _ in range(1 + separate)))
    config = LMPPOConfig(updates=1, batch_size=8, max_new_tokens=5, minibatches=2, precision=precision)
    states = []
    train_ppo(policy, make_tokenizer(), ["a", "b c d a e"], count_a, config, callback=lambda state: states.append(state), progress=False)
    (state,) = states
    estimate = memory_estimate(policy.lm.config, config, prompt_tokens=5, separate_value_model=separate)

    def size(tensors):
        return sum(x.numel() * x.element_size() for x in tensors)

    moments = [x for entry in state.optimizer.state.values() for x in entry.values()]
    assert estimate.weights == size(policy.parameters())
    assert estimate.gradients == size(p.grad for p in policy.parameters())
    assert estimate.optimizer == size(moments)
    assert estimate.reference == size(state.reference.parameters())
    assert estimate.decoding_copy == (size(state.decoder.model.parameters()) if precision == "bfloat16" else 0)


@pytest.mark.parametrize("decoding", ["dynamic", "static"])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("kind", ["gpt2", "llama", "qwen3"])
def test_the_cache_to_the_byte(kind, precision, decoding, monkeypatch):
    caches = []
    sample_next = generation.sample_next

    def watched(*arguments):
        output = sample_next(*arguments)
        caches.append(output[2])
        return output

    monkeypatch.setattr(generation, "sample_next", watched)
    lm = add_to_logits(make_lm(kind), t1=-1e9)  # no response ends
    decoder = Decoder(lm, dtype=DTYPES[precision], decoding=decoding)
    generate(decoder, make_tokenizer(), ["a", "b c d a e", "g"], max_new_tokens=9)
    measured = sum(x.nbytes for layer in caches[-1].layers for x in (layer.keys, layer.values))
    config = LMPPOConfig(batch_size=3, minibatches=1, max_new_tokens=9, precision=precision, decoding=decoding)
    assert memory_estimate(lm.config, config, prompt_tokens=5).cache == measured


def peaks(policy, tokenizer, prompts, config):
    """Most bytes alive during each phase of two updates, beyond those of policy and critic."""
    named = {"sampling": "generate", "scoring": "score", "update": "improve"}
    with pytest.MonkeyPatch.context() as patch, profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        for phase, name in named.items():
            patch.setattr(ppo, name, record_function(phase)(getattr(ppo, name)))
        train_ppo(policy, tokenizer, prompts, count_a, config, progress=False)
    events = profiler.profiler.kineto_results.events()
    spans = [(e.name(), e.start_ns(), e.start_ns() + e.duration_ns()) for e in events if e.name() in named]
    alive, most = 0, dict.fromkeys(named, 0)
    for time, change in sorted((e.start_ns(), e.nbytes()) for e in events if e.name() == "[memory]"):
        alive += change
        for phase, start, end in spans:
            if start <= time <= end:
                most[phase] = max(most[phase], alive)
    return most


@pytest.mark.parametrize(
    ("vocabulary", "changes"),  # with few words the activations weigh most, with many the copies of the logits
    [
        (64, {}),
        (64, {"precision": "bfloat16"}),
        (64, {"gradient_checkpointing": True, "recompute_log_probs": True}),
        (64, {"recompute_log_probs": True}),
        (3000, {"decoding": "static"}),
        (3000, {"accumulation": 2}),
        (3000, {"separate": True}),
    ],
)
def test_phases_are_what_an_update_allocates(vocabulary, changes):
    settings = {"updates": 2, "batch_size": 32, "epochs": 1, "minibatches": 2, "max_new_tokens": 24} | changes
    separate = settings.pop("separate", False)
    policy, config = make("gpt2", 128, 3, 4, 512, vocabulary, separate=separate), LMPPOConfig(**settings)
    add_to_logits(policy.lm, t1=-1e9)  # no response ends
    tokenizer = make_tokenizer(tuple(f"w{i}" for i in range(vocabulary - 3)))
    prompts = [" ".join(f"w{7 * i % 60 + j}" for j in range(16 - i % 2)) for i in range(32)]
    measured = peaks(policy, tokenizer, prompts, config)
    estimate = memory_estimate(policy.lm.config, config, prompt_tokens=16, separate_value_model=separate)
    estimated = {phase: x - estimate.weights for phase, x in estimate.phases.items()}  # they were there before the profiler
    slack = 0.4 if config.gradient_checkpointing else 0.0  # one full layer and the logits are never there together: both are counted
    assert 0.95 < estimated["update"] / measured["update"] < 1.1 + slack
    assert 0.8 < estimated["scoring"] / measured["scoring"] < 1.15 + slack
    if config.precision == "float32":  # in bfloat16 a CPU's matrix products need memory of their own
        assert 0.95 < estimated["sampling"] / measured["sampling"] < 1.3


def test_the_peak_is_that_of_the_largest_phase_and_the_report_says_both():
    config = LMPPOConfig(batch_size=64, max_new_tokens=24, recompute_log_probs=True)
    estimate = memory_estimate(make_lm("gpt2").config, config, prompt_tokens=4)
    assert estimate.peak == max(estimate.phases.values()) == estimate.phases["scoring"]
    report = estimate.report()
    for name, x in {"weights": estimate.weights, "activations": estimate.activations, "most during scoring": estimate.peak}.items():
        assert re.search(rf"^{name} +{x / MIB:.1f} MiB$", report, re.MULTILINE)
    assert len(report.splitlines()) == 13


def test_a_static_cache_is_always_there_and_one_that_grows_is_not():
    config = LMPPOConfig(max_new_tokens=28)
    growing, static = (
        memory_estimate(make_lm("gpt2").config, ppo.replace(config, decoding=decoding), prompt_tokens=4)
        for decoding in ("dynamic", "static")
    )
    assert static.phases["update"] - growing.phases["update"] == static.cache
    assert static.phases["sampling"] - growing.phases["sampling"] == static.cache - growing.cache


def test_an_adapter_is_trained_alone_and_needs_no_reference():
    lm = make_lm("qwen2")
    whole = memory_estimate(lm.config, LMPPOConfig(max_new_tokens=8), prompt_tokens=4)
    adapted = memory_estimate(lm.config, LMPPOConfig(max_new_tokens=8), prompt_tokens=4, adapter_parameters=100)
    assert adapted.weights == whole.weights + 400
    assert adapted.reference == 0
    assert adapted.gradients == 4 * (100 + lm.config.hidden_size + 1)
    assert adapted.optimizer == 2 * adapted.gradients


def test_gpt2_itself():
    """Its 124,439,808 parameters, without a download and without their memory."""
    estimate = memory_estimate(GPT2Config(), LMPPOConfig(batch_size=256, max_new_tokens=128), prompt_tokens=64)
    assert estimate.weights == 4 * (124_439_808 + 769)
    assert estimate.reference == 4 * 124_439_808


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"prompt_tokens": 0}, "prompt_tokens must be"),
        ({"prompt_tokens": 30}, "prompts must leave room for max_new_tokens"),
        ({"separate_value_model": 1}, "separate_value_model must be"),
        ({"adapter_parameters": -1}, "adapter_parameters must be"),
        ({"config": None}, "config must be an LMPPOConfig, got"),
        ({"model_config": make_lm("gpt_neox").config}, "model_config must be the configuration of a gpt2, llama, .* model, got gpt_neox"),
        ({"model_config": "gpt2"}, "model_config must be the configuration of a gpt2, .* model, got"),
    ],
)
def test_bad_input_is_named(changes, message):
    arguments = {"model_config": make_lm("gpt2").config, "config": LMPPOConfig(max_new_tokens=8), "prompt_tokens": 4} | changes
    with pytest.raises(ValueError, match=message):
        memory_estimate(**arguments)
