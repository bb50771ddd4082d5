"""How much memory a PPO run needs, from the model's configuration and the run's: known before a GPU says that it has too little."""

import math
from dataclasses import dataclass, fields
from typing import NamedTuple

import torch
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedConfig

from ppo_edu.core.validation import check_bool, check_count, describe
from ppo_edu.lm.generation import CACHE_STEP, check_context, context_length
from ppo_edu.lm.ppo import LMPPOConfig

BYTES = {"float32": 4, "bfloat16": 2}  # per number
LOGIT_COPIES = 3  # of a part's logits as the backward pass begins: their log-softmax, its gradient and theirs
SCORING_COPIES = 7  # while a part is scored: logits, log-softmax, and five steps to the entropies
SAMPLING_COPIES = 6  # of one token's logits: as they come, in float32, noise, log-probs, probabilities, their quotient


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes, by what they are for; the formulas are those of `memory_estimate`."""

    weights: int  # of policy and critic; always there, as are the next four
    gradients: int  # of what is trained
    optimizer: int  # Adam's two moments
    reference: int  # the frozen copy that the KL is measured to
    decoding_copy: int  # of the LM, in the precision of sampling
    cache: int  # keys and values of the whole batch at its full length
    sampling_work: int  # beside the cache: one layer's results for all prompts, or one token's logits
    scoring_work: int  # of one part: logits on their way to entropies, and the activations where autograd is on
    activations: int  # what the backward pass of one part reads, logits excepted
    logits: int  # copies of one part's logits as the backward pass begins
    cache_stays: bool  # a static cache is kept from batch to batch, one that grows is not

    @property
    def phases(self) -> dict[str, int]:
        """The largest need while sampling, scoring and updating: what is always there, and what comes and goes."""
        kept = self.weights + self.gradients + self.optimizer + self.reference + self.decoding_copy + self.cache * self.cache_stays
        return {
            "sampling": kept + self.cache * (not self.cache_stays) + self.sampling_work,
            "scoring": kept + self.scoring_work,
            "update": kept + self.activations + self.logits,
        }

    @property
    def peak(self) -> int:
        """The largest need of all."""
        return max(self.phases.values())

    def report(self) -> str:
        """The estimate as text: one line per purpose and one per phase."""
        purposes = {f.name.replace("_", " "): getattr(self, f.name) for f in fields(self) if f.name != "cache_stays"}
        rows = purposes | {f"most during {phase}": x for phase, x in self.phases.items()}
        return "\n".join(f"{name:24}{x / 2**20:12,.1f} MiB" for name, x in rows.items())


def memory_estimate(
    model_config: PreTrainedConfig,
    config: LMPPOConfig,
    *,
    prompt_tokens: int,
    separate_value_model: bool = False,
    adapter_parameters: int | None = None,
) -> MemoryEstimate:
    r"""Bytes that `train_ppo` needs at most for a model of this configuration and prompts of up to `prompt_tokens` tokens.

    `separate_value_model`: the critic has a trunk of its own, as large as the policy's. `adapter_parameters`: what an adapter
    adds to the LM (peft); it and the critic alone are trained then, and no reference is copied.

    Parameters are counted on the model itself, made without memory (on torch's meta device). With p bytes per number, 4 or 2:

        weights   = 4 (LM + critic)      gradients = 4 trained       optimizer = 8 trained, and 4 per tensor for its step count
        reference = 4 LM                 decoding copy = 2 LM, in bfloat16 only
        cache     = batch_size * places * layers * 2 * key-value heads * head size * p
        logits    = 3 * 4 * b * max_new_tokens * vocabulary

    places: L = prompt_tokens + max_new_tokens - 1, for the last token is not read; in a static cache, multiples of 32. A part has
    b = ceil(ceil(batch_size / minibatches) / accumulation) sequences. With w the width of the model, m of its MLP, h heads and
    a = h * head size, autograd keeps, for each of the b * L tokens in each layer of GPT-2,

        4 (2w + 4)        inputs of both layer norms, their means and deviations, float32 in either precision
        p (2w + 4a)       inputs of attention and MLP; queries, keys, values, and what attention makes of them
        p (5m)            of the MLP: gelu_new is written in Python and keeps four results; the input of the projection
        4h + pL           logarithms of the attention's sums; a row of the mask. Not the attention matrix: it is computed again

    which is about 28 w numbers where m = 4w. Llama, Qwen 2 and Qwen 3 keep input and result of their norms (written in Python
    as well), 4m of their MLP, and in bfloat16 a cast input for each linear layer. After the layers follow one more norm and the
    inputs of output layer and critic. In bfloat16 each linear layer's weight has a cast copy, 2 bytes per weight. With gradient
    checkpointing one layer is there in full, of the others only the input, 4w, and of all together one mask, L bytes.

    Beside the cache, sampling needs the larger of p (6w + 4m) per token of all prompts, in the layer that is being computed, and six
    copies of one token's logits. Scoring a part takes seven copies of its logits and, with recompute_log_probs, its activations.

    Not counted: what the allocator cannot use, the CUDA context (about half a GiB), the memory pools of compiled graphs, results
    that live for one operation. A compiled update keeps less, and so does an adapter, whose frozen layers need no input.
    `benchmarks/scaling.py` measures.

    Source: the counting is that of Korthikanti et al. 2022 (arXiv:2205.05198), section 4; the operations are those of transformers 5.
    Raises: ValueError naming the argument; among them an architecture whose operations are not known here.
    """
    check_count(prompt_tokens=prompt_tokens)
    check_bool(separate_value_model=separate_value_model)
    if adapter_parameters is not None:
        check_count(adapter_parameters=adapter_parameters)
    if not isinstance(config, LMPPOConfig):
        raise ValueError(f"config must be an LMPPOConfig, got {describe(config)}")
    if (kind := getattr(model_config, "model_type", describe(model_config))) not in LAYERS:
        raise ValueError(f"model_config must be the configuration of a {', '.join(LAYERS)} model, got {kind}")
    with torch.device("meta"):
        lm = AutoModelForCausalLM.from_config(model_config)
    check_context(lm, prompt_tokens, config.max_new_tokens)

    language_model, tensors = count(lm)
    trunk, trunk_tensors = count(lm.base_model) if separate_value_model else (0, 0)
    critic, tensors = trunk + model_config.hidden_size + 1, tensors + trunk_tensors + 2
    adapter = adapter_parameters or 0
    trained = critic + (language_model if adapter_parameters is None else adapter)

    p = BYTES[config.precision]
    size = layer_size(model_config)
    T, length = config.max_new_tokens, prompt_tokens + config.max_new_tokens - 1
    static = config.decoding != "dynamic"
    places = min(math.ceil((length + 1) / CACHE_STEP) * CACHE_STEP, context_length(lm)) if static else length
    b = math.ceil(math.ceil(config.batch_size / config.minibatches) / config.accumulation)

    layers = model_config.num_hidden_layers * (1 + separate_value_model)
    one_layer = layer_activations(model_config, b, length, p)
    activations = layers * one_layer
    if config.gradient_checkpointing:
        activations = one_layer + b * length * (layers * 4 * size.width + length * (1 + separate_value_model))
    activations += (1 + separate_value_model) * b * length * norm_bytes(model_config)
    activations += b * T * (p + 4) * size.width + (2 * model_config.vocab_size * size.width if p == 2 else 0)
    part_logits = 4 * b * T * model_config.vocab_size
    passing = p * (6 * size.width + 4 * size.mlp)  # per token, of the layer that is being computed
    if config.recompute_log_probs:
        scoring = activations + SCORING_COPIES * part_logits
    else:
        scoring = max(b * length * passing, (SCORING_COPIES - 1) * part_logits)
    return MemoryEstimate(
        weights=4 * (language_model + adapter + critic),
        gradients=4 * trained,
        optimizer=8 * trained + (4 * tensors if adapter_parameters is None else 0),
        reference=4 * language_model if adapter_parameters is None else 0,
        decoding_copy=2 * (language_model + adapter) if p == 2 else 0,
        cache=config.batch_size * places * model_config.num_hidden_layers * 2 * size.kv_width * p,
        sampling_work=config.batch_size * max(prompt_tokens * passing, SAMPLING_COPIES * 4 * model_config.vocab_size),
        scoring_work=scoring,
        activations=activations,
        logits=LOGIT_COPIES * part_logits,
        cache_stays=static,
    )


class Size(NamedTuple):
    """What a layer's numbers are counted in."""

    width: int
    heads: int
    kv_heads: int
    head_size: int
    mlp: int

    @property
    def kv_width(self) -> int:
        """Numbers of one token's keys, or of its values."""
        return self.kv_heads * self.head_size


class Layer(NamedTuple):
    """What autograd keeps of one layer, per token."""

    norm: tuple[int, int]  # of each norm, in float32: times the width, and numbers beside it
    inputs: tuple[int, int]  # of the linear layers before attention and MLP, times the width: in float32, and where autocast casts
    mlp: int  # times the MLP's width
    gated: bool = True  # three matrices in the MLP, not two
    normed_heads: bool = False  # queries and keys have norms of their own


LLAMA = Layer(norm=(2, 1), inputs=(2, 5), mlp=4)
LAYERS = {
    "gpt2": Layer(norm=(1, 2), inputs=(2, 2), mlp=5, gated=False),
    "llama": LLAMA,
    "qwen2": LLAMA,
    "qwen3": LLAMA._replace(normed_heads=True),
}


def layer_size(model_config: PreTrainedConfig) -> Size:
    """Of a model's layers, under the names that its architecture gives."""
    width, heads = model_config.hidden_size, model_config.num_attention_heads
    mlp = getattr(model_config, "intermediate_size", None) or getattr(model_config, "n_inner", None) or 4 * width
    kv_heads = getattr(model_config, "num_key_value_heads", None) or heads
    return Size(width, heads, kv_heads, getattr(model_config, "head_dim", None) or width // heads, mlp)


def norm_bytes(model_config: PreTrainedConfig) -> int:
    """What autograd keeps of one norm, per token."""
    times, more = LAYERS[model_config.model_type].norm
    return 4 * (times * model_config.hidden_size + more)


def layer_activations(model_config: PreTrainedConfig, sequences: int, length: int, p: int) -> int:
    """Bytes that autograd keeps of one layer for `sequences` of `length` tokens, with p bytes per number in matrix products."""
    layer, size = LAYERS[model_config.model_type], layer_size(model_config)
    attention = size.heads * size.head_size
    numbers = layer.inputs[p < 4] * size.width + 4 * attention + layer.mlp * size.mlp + length
    per_token = 2 * norm_bytes(model_config) + p * numbers + 4 * size.heads
    if layer.normed_heads:
        heads = attention + size.kv_width
        per_token += (4 + p) * heads + 4 * (size.heads + size.kv_heads)
    projections = size.width * (2 * attention + 2 * size.kv_width)  # queries, output; keys, values
    weights = projections + (3 if layer.gated else 2) * size.width * size.mlp
    return sequences * length * per_token + (2 * weights if p < 4 else 0)


def count(module: nn.Module) -> tuple[int, int]:
    """Parameters of a model, and tensors that hold them; shared ones count once."""
    parameters = list(module.parameters())
    return sum(parameter.numel() for parameter in parameters), len(parameters)
