"""PPO for language models. The path from the loop to the mathematics: `train_ppo`, `collect`, `improve`, `ppo_loss`.

The mathematics is that of `ppo_edu.core`, as on CartPole; a response is an episode and a token an action. A GPU runs the
same code with other settings (`GPU_SETTINGS`). Left out on purpose: several devices, and sampling while learning.
"""

import copy
import math
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from tqdm import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ppo_edu.core import (
    AdaptiveKLCoefficient,
    FixedKLCoefficient,
    approx_kl,
    clip_fraction,
    clipped_surrogate_loss,
    explained_variance,
    masked_mean,
    masked_var,
    value_checks,
    value_loss,
    whiten,
)
from ppo_edu.core.validation import check_bool, check_count, check_nonnegative, check_positive, check_unit_interval, describe
from ppo_edu.lm.generation import DECODINGS, Decoder, Decoding, check_context, generate
from ppo_edu.lm.models import (
    PolicyWithValue,
    check_vocabulary,
    gradient_checkpointing,
    has_adapter,
    log_probs_and_values,
    sequence_log_probs,
    without_adapter,
)
from ppo_edu.lm.rewards import kl_loss, response_advantages, sequence_kl, token_rewards
from ppo_edu.lm.sequences import Responses, check_prompts, decode, encode_prompts
from ppo_edu.runs import (
    Checkpoint,
    Row,
    Run,
    deferred_interrupt,
    fingerprint,
    load_checkpoint,
    load_into,
    module_tensors,
    optimizer_tensors,
    restore_optimizer,
    save_checkpoint,
    seeded,
)

REFERENCE_NAME = "reference.safetensors"
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class LMPPOConfig:
    """Every choice of a run. The defaults suit the small models of this course on a CPU; larger models want smaller steps."""

    updates: int = 50
    """Updates: sample a batch, then several epochs on it."""
    batch_size: int = 64
    """Responses sampled per update (B)."""
    max_new_tokens: int = 24
    """Longest response, in tokens; one cut there counts as ended."""
    epochs: int = 4
    """Passes over the batch per update."""
    minibatches: int = 4
    """Optimiser steps per epoch: the batch is split into so many parts."""
    accumulation: int = 1
    """Parts that a minibatch is computed in, to save memory; the gradient is the same whatever the number."""
    learning_rate: float = 3e-4
    """Adam's step size."""
    anneal_learning_rate: bool = False
    """Lower the learning rate linearly to 0 over the updates."""
    adam_eps: float = 1e-8
    """Adam's epsilon."""
    temperature: float = 1.0
    """Divides the logits, while sampling and in every log-probability."""
    kl_coef: float = 0.05
    """Price of leaving the reference, in reward per nat."""
    kl_in: Literal["reward", "loss"] = "reward"
    """Where the KL to the reference enters: as a penalty in each token's reward, or as a term of the loss."""
    kl_loss: Literal["k2", "k3"] = "k2"
    """Estimator of the KL loss: k2 has the gradient of KL(policy || reference), k3 that of the reverse. Unused with kl_in reward."""
    kl_target: float | None = None
    """Steer kl_coef so that the KL to the reference meets this, in nats per response. None keeps it fixed."""
    kl_horizon: float = 2_000.0
    """Responses over which the steered kl_coef can change by 20 %; at least batch_size."""
    clip_range: float = 0.2
    """Half-width of the interval around 1 in which a token's probability ratio has gradient."""
    value_clip_range: float | None = None
    """Clip the critic's change per update to this, in units of the return. None does not clip."""
    value_coef: float = 0.1
    """Weight of the value loss."""
    gamma: float = 1.0
    """Discount per token. Below 1 the score counts less for early tokens."""
    lam: float = 0.95
    """GAE's lambda."""
    whiten_rewards: bool = False
    """Divide each batch's token rewards by their root mean square. Score and KL keep their balance, the critic's target its scale."""
    whiten_advantages: bool = True
    """Whiten the advantages of each batch over its real tokens."""
    missing_eos_penalty: float = 0.0
    """Subtracted from the score of a response that did not end, in units of the score."""
    max_grad_norm: float | None = 1.0
    """Scale gradients down to this global norm. None leaves them as they are."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """What the models multiply in. Weights, optimiser, log-softmax, values and losses are float32 always."""
    recompute_log_probs: bool = False
    """Take the old log-probabilities from the pass that training differentiates, not from sampling, whose rounding differs."""
    decoding: Decoding = "dynamic"
    """Key-value cache while sampling: dynamic grows, static keeps its shape, compiled also makes one graph of a token's step."""
    finish_test_every: int = 1
    """Tokens between two tests, while sampling, whether all responses ended. Each makes a GPU wait."""
    compiled_update: bool = False
    """Compile the pass that training differentiates (torch.compile; the first updates are slow)."""
    gradient_checkpointing: bool = False
    """Keep only the layers' inputs for the backward pass: less memory, about a fifth more operations."""
    sort_by_length: bool = False
    """Put responses of similar length into the same part, and cut off the padding. The gradient is the same."""

    def __post_init__(self) -> None:
        counts = ("updates", "batch_size", "max_new_tokens", "epochs", "minibatches", "accumulation", "finish_test_every")
        check_count(**{name: getattr(self, name) for name in counts})
        parts = self.minibatches * self.accumulation
        if self.batch_size < max(2, parts):
            raise ValueError(f"batch_size must be at least 2 and minibatches * accumulation ({parts}), got {self.batch_size}")
        switches = ("anneal_learning_rate", "whiten_rewards", "whiten_advantages", "recompute_log_probs", "compiled_update")
        check_bool(**{name: getattr(self, name) for name in (*switches, "gradient_checkpointing", "sort_by_length")})
        check_unit_interval(gamma=self.gamma, lam=self.lam)
        check_positive(adam_eps=self.adam_eps, temperature=self.temperature, kl_horizon=self.kl_horizon, clip_range=self.clip_range)
        optional = ("kl_target", "value_clip_range", "max_grad_norm")
        check_positive(**{name: x for name in optional if (x := getattr(self, name)) is not None})
        nonnegative = ("learning_rate", "kl_coef", "value_coef", "missing_eos_penalty")
        check_nonnegative(**{name: getattr(self, name) for name in nonnegative})
        options = {"kl_in": ("reward", "loss"), "kl_loss": ("k2", "k3"), "precision": tuple(DTYPES), "decoding": DECODINGS}
        for name, choices in options.items():
            if getattr(self, name) not in choices:
                raise ValueError(f"{name} must be {' or '.join(map(repr, choices))}, got {getattr(self, name)!r}")
        if self.compiled_update and self.gradient_checkpointing:
            raise ValueError("gradient_checkpointing must be False with compiled_update: use accumulation to save memory")
        if self.kl_target is not None and self.kl_horizon < self.batch_size:
            raise ValueError(f"kl_horizon must be at least batch_size ({self.batch_size}), got {self.kl_horizon}")
        if self.kl_target is not None and self.kl_coef == 0.0:
            raise ValueError("kl_coef must be above 0 with a kl_target: steering multiplies it, got 0")


GPU_SETTINGS = {
    "precision": "bfloat16",
    "recompute_log_probs": True,
    "decoding": "compiled",
    "finish_test_every": 8,
    "compiled_update": True,
    "sort_by_length": True,
}
"""Fields of `LMPPOConfig` for a GPU: `LMPPOConfig(..., **GPU_SETTINGS)`. A model that fills its memory needs `accumulation` too."""


@dataclass(frozen=True)
class Sample:
    """One response of the last batch, to look at."""

    prompt: str
    response: str
    score: float  # what reward_fn said
    kl: float  # log pi - log pi_ref of the response, in nats


@dataclass
class TrainState:
    """Where a training stands; what a callback sees after each update."""

    policy: PolicyWithValue
    tokenizer: PreTrainedTokenizerBase
    reference: PreTrainedModel  # with an adapter: the policy's own LM, whose adapter is off while it is the reference
    decoder: Decoder
    policy_pass: Callable[..., tuple[Tensor, Tensor, Tensor | None]]  # log_probs_and_values, compiled or not
    optimizer: torch.optim.Optimizer
    generator: torch.Generator  # of prompts, samples and minibatches
    kl_coefficient: FixedKLCoefficient | AdaptiveKLCoefficient
    update: int = 0
    seconds: float = 0.0  # callbacks excluded
    log: list[Row] = field(default_factory=list)
    samples: list[Sample] = field(default_factory=list)  # the last batch


@dataclass(frozen=True)
class TrainResult:
    """A finished training."""

    policy: PolicyWithValue  # the one that was passed in
    log: list[Row]  # one row of floats per update
    seconds: float  # callbacks excluded


@dataclass(frozen=True)
class Batch:
    """What an update learns from: B responses of T tokens."""

    responses: Responses
    old_log_probs: Tensor  # [B, T] of the policy that sampled
    ref_log_probs: Tensor  # [B, T]
    values: Tensor  # [B, T] at collection time
    advantages: Tensor  # [B, T]
    returns: Tensor  # [B, T] lambda-returns, the critic's target

    def part(self, part: "Part") -> "Batch":
        """The responses of a part, without the padding that it does not need."""
        tensors = {f.name: getattr(self, f.name)[part.index, : part.width] for f in fields(self) if f.name != "responses"}
        return replace(self, responses=part.of(self.responses), **tensors)


class Part(NamedTuple):
    """Some rows of a batch, and how many columns they need."""

    index: Tensor  # [b] int64
    prompt_width: int
    width: int  # of the responses

    def of(self, responses: Responses) -> Responses:
        """These rows, cut to these columns."""
        return responses.rows(self.index).cropped(self.prompt_width, self.width)


RewardFn = Callable[[list[str], list[str]], Tensor]  # (prompts, responses) -> [B]
Callback = Callable[[TrainState], bool | None]


def train_ppo(
    policy: PolicyWithValue,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    reward_fn: RewardFn,
    config: LMPPOConfig | None = None,
    *,
    reference: PreTrainedModel | None = None,
    seed: int = 0,
    callback: Callback | None = None,
    log_dir: str | Path | None = None,
    resume: str | Path | None = None,
    progress: bool = True,
    tensorboard: bool = False,
    checkpoint_every: int = 10,
) -> TrainResult:
    """Train a policy with PPO to raise reward_fn(prompts, responses) [B] while staying near a reference. In place.

    `reference`: the causal LM that the KL is measured to. None: a frozen copy of the policy as it is passed in; a run with
    a directory stores it there, and resuming reads it back. A policy whose LM is a peft model needs no copy: it is its own
    reference, with the adapter off. Only parameters that require gradients are trained.
    `callback(state)` runs after each update; returning True ends the training.
    `log_dir`: where the log and, every `checkpoint_every` updates, the checkpoint go. `resume`: the directory of a run to
    continue; weights and random states come from its checkpoint.

    Dropout is off throughout. Ctrl-C ends the update under way, writes a checkpoint and is raised again.
    Raises: ValueError for a bad argument, reward or checkpoint; FloatingPointError when an update is not finite.

    Source: Ziegler et al. 2019 (arXiv:1909.08593); Ouyang et al. 2022 (arXiv:2203.02155), section 3.5.
    """
    started = time.perf_counter()
    config = LMPPOConfig() if config is None else config
    check_count(checkpoint_every=checkpoint_every)
    prompts = check_arguments(policy, tokenizer, prompts, config, reference)
    identity = asdict(config) | {"prompts": fingerprint(prompts), "reference": "a copy of the policy" if reference is None else "given"}
    with (
        seeded(seed),
        Run("lm-ppo", identity, log_dir=log_dir, resume=resume, tensorboard=tensorboard) as run,
        deferred_interrupt() as interrupted,
    ):
        state = start(policy, tokenizer, config, reference, seed, run)
        stop = state.update >= config.updates
        with tqdm(total=config.updates, initial=state.update, unit=" updates", disable=not progress) as bar:
            while not stop:
                row = train_update(state, prompts, reward_fn, config)
                state.update += 1
                elapsed = time.perf_counter() - started
                state.seconds += elapsed
                tokens_per_second = row["response_length"] * config.batch_size / elapsed
                run.append({"update": state.update, "seconds": state.seconds, **row, "tokens_per_second": tokens_per_second})
                bar.update()
                bar.set_postfix(reward=row["reward"], kl=row["kl"], refresh=False)
                stop = bool(callback(state)) if callback is not None else False
                started = time.perf_counter()
                stop = stop or interrupted() or state.update >= config.updates
                if stop or state.update % checkpoint_every == 0:
                    run.save(state_tensors(state))
        if interrupted():
            raise KeyboardInterrupt
    return TrainResult(policy, state.log, state.seconds)


def check_arguments(
    policy: PolicyWithValue,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    config: LMPPOConfig,
    reference: PreTrainedModel | None,
) -> list[str]:
    """Everything that can be said before the first update is said here, not an hour later. Returns the prompts as a list."""
    if not isinstance(policy, PolicyWithValue):
        raise ValueError(f"policy must be a PolicyWithValue, got {type(policy).__name__}; wrap the model: PolicyWithValue(lm)")
    check_prompts(prompts)
    check_vocabulary(policy, tokenizer)
    prompt_tokens, _ = encode_prompts(tokenizer, prompts)
    check_context(policy.lm, prompt_tokens.shape[1], config.max_new_tokens)
    if config.gradient_checkpointing:
        with gradient_checkpointing(policy):  # whether this model can
            pass
    if reference is not None:
        if not isinstance(reference, PreTrainedModel | PolicyWithValue):
            raise ValueError(f"reference must be a causal LM of transformers, got {type(reference).__name__}")
        if {id(p) for p in reference.parameters()} & {id(p) for p in policy.parameters()}:
            raise ValueError("reference must share no parameters with the policy, which moves; leave it out for a frozen copy")
        check_vocabulary(reference, tokenizer)
    return list(prompts)


def start(
    policy: PolicyWithValue,
    tokenizer: PreTrainedTokenizerBase,
    config: LMPPOConfig,
    reference: PreTrainedModel | None,
    seed: int,
    run: Run,
) -> TrainState:
    """A new training, or the one that the run resumes."""
    own = reference is None and has_adapter(policy.lm)
    copied = reference is None and not own
    if reference is None:
        reference = policy.lm if own else copy.deepcopy(policy.lm)
    policy.eval()
    reference.eval()
    decoder = Decoder(
        policy.lm,
        dtype=DTYPES[config.precision] if config.precision != "float32" else None,
        decoding=config.decoding,
        finish_test_every=config.finish_test_every,
    )
    policy_pass = log_probs_and_values
    if config.compiled_update:
        with torch.no_grad():
            policy(torch.zeros(1, 1, dtype=torch.int64, device=policy.device))  # the first call installs hooks: not to be traced
        policy_pass = torch.compile(log_probs_and_values, dynamic=True)
    trained = [parameter for parameter in policy.parameters() if parameter.requires_grad]
    optimizer = torch.optim.Adam(trained, lr=config.learning_rate, eps=config.adam_eps, fused=True)
    generator = torch.Generator(policy.device).manual_seed(seed)
    if config.kl_target is None:
        coefficient = FixedKLCoefficient(config.kl_coef)
    else:
        coefficient = AdaptiveKLCoefficient(config.kl_coef, config.kl_target, config.kl_horizon)
    state = TrainState(policy, tokenizer, reference, decoder, policy_pass, optimizer, generator, coefficient, log=run.log)
    if run.resumed is None:
        if copied and run.directory is not None:
            save_checkpoint(run.directory / REFERENCE_NAME, Checkpoint(module_tensors(reference, ""), "lm-reference", {}, 0))
        run.save(state_tensors(state))  # so that a run killed in its first update can be resumed too
    else:
        if copied:
            load_into(reference, load_checkpoint(run.directory / REFERENCE_NAME, kind="lm-reference").tensors, "")
        restore(state, run.resumed)
    return state


def train_update(state: TrainState, prompts: list[str], reward_fn: RewardFn, config: LMPPOConfig) -> Row:
    """One update: sample a batch, learn from it, steer the KL coefficient. Returns the row to log."""
    rate = config.learning_rate * (1.0 - state.update / config.updates if config.anneal_learning_rate else 1.0)
    for group in state.optimizer.param_groups:
        group["lr"] = rate
    with value_checks(False):  # the logged numbers are checked instead
        batch, collected = collect(state, prompts, reward_fn, config)
        row = collected | improve(state, batch, config) | {"learning_rate": rate, "peak_memory_mb": peak_memory_mb(state.policy.device)}
    for name, x in row.items():
        if not math.isfinite(x) and name != "peak_memory_mb":
            raise FloatingPointError(f"training diverged at update {state.update + 1}: {name} is {x}")
    state.kl_coefficient = state.kl_coefficient.updated(row["kl"], config.batch_size)
    return row


@torch.no_grad()
def collect(state: TrainState, prompts: list[str], reward_fn: RewardFn, config: LMPPOConfig) -> tuple[Batch, Row]:
    """Sample a batch of responses, score them, and turn scores into advantages. Returns what can be logged of it, too."""
    clock = [time.perf_counter()]
    chosen = [prompts[i] for i in draw_prompts(len(prompts), config.batch_size, state.generator)]
    state.decoder.refresh()
    responses = generate(
        state.decoder,
        state.tokenizer,
        chosen,
        max_new_tokens=config.max_new_tokens,
        temperature=config.temperature,
        generator=state.generator,
    )
    clock.append(time.perf_counter())
    mask = responses.mask
    texts = decode(state.tokenizer, responses)
    scores = call_reward_fn(reward_fn, chosen, texts, state.policy.device)
    log_probs, values, ref_log_probs, entropy = score(state, responses, config)
    mismatch = masked_mean((torch.exp(log_probs - responses.log_probs) - 1.0).abs(), mask)
    old_log_probs = log_probs if config.recompute_log_probs else responses.log_probs

    penalised = scores - config.missing_eos_penalty * (~responses.ended)
    kl_coef = state.kl_coefficient.value
    rewards = token_rewards(penalised, old_log_probs, ref_log_probs, mask, kl_coef=kl_coef if config.kl_in == "reward" else 0.0)
    if config.whiten_rewards:
        rewards = rewards / (masked_mean(rewards.square(), mask).sqrt() + 1e-8)  # no shift: it would pay, or fine, each token
    advantages = response_advantages(rewards, values, mask, gamma=config.gamma, lam=config.lam)
    returns = advantages + values
    kl = sequence_kl(old_log_probs, ref_log_probs, mask)
    state.samples = [Sample(*x) for x in zip(chosen, texts, scores.tolist(), kl.tolist(), strict=True)]
    numbers = {
        "reward": scores.mean(),
        "reward_std": scores.std(),
        "kl": kl.mean(),
        "entropy": entropy,
        "explained_variance": explained_variance(values, returns, mask=mask),
        "response_length": responses.lengths.float().mean(),
        "eos_fraction": responses.ended.float().mean(),
        "sampling_mismatch": mismatch,  # mean |ratio - 1| between the pass that training differentiates and sampling
    }
    row = dict(zip(numbers, torch.stack(list(numbers.values())).tolist(), strict=True))  # one wait for all
    row |= {"kl_coef": kl_coef, "seconds_generation": clock[1] - clock[0], "seconds_scoring": time.perf_counter() - clock[1]}
    return Batch(responses, old_log_probs, ref_log_probs, values, advantages, returns), row


def score(state: TrainState, responses: Responses, config: LMPPOConfig) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """What policy, critic and reference say of sampled responses: (log_probs, values, ref_log_probs, entropy), [B, T] each, [].

    In as many parts as training computes its gradients in, so that scoring needs no more memory than training.
    """
    settings = {"temperature": config.temperature, "dtype": DTYPES[config.precision]}
    log_probs, values, ref_log_probs = (torch.zeros_like(responses.log_probs) for _ in range(3))
    entropy, tokens = torch.zeros([], device=log_probs.device), responses.mask.sum()
    everything = [torch.arange(len(responses), device=log_probs.device)]
    (parts,) = split(responses, everything, config.minibatches * config.accumulation, config.sort_by_length)
    for part in parts:
        these = part.of(responses)
        place = part.index, slice(part.width)
        with (
            torch.set_grad_enabled(config.recompute_log_probs),  # then it is the very pass that training differentiates
            gradient_checkpointing(state.policy, config.gradient_checkpointing),
        ):
            outputs = state.policy_pass(state.policy, these, with_entropy=True, **settings)
            part_log_probs, part_values, part_entropy = (x.detach() for x in outputs)
        del outputs  # and with it the graph, before the next part builds its own
        log_probs[place] = part_log_probs
        values[place] = torch.where(these.mask, part_values, 0.0)
        with without_adapter(state.reference):
            ref_log_probs[place] = sequence_log_probs(state.reference, these, **settings)
        entropy += part_entropy * these.mask.sum() / tokens
    return log_probs, values, ref_log_probs, entropy


def draw_prompts(n: int, batch_size: int, generator: torch.Generator) -> list[int]:
    """Random positions of `batch_size` of n prompts: none twice before all were drawn once."""
    rounds = [torch.randperm(n, generator=generator, device=generator.device) for _ in range(math.ceil(batch_size / n))]
    return torch.cat(rounds)[:batch_size].tolist()


def call_reward_fn(reward_fn: RewardFn, prompts: list[str], responses: list[str], device: torch.device) -> Tensor:
    """Scores [B] float32. Raises: ValueError that says what was wrong with what came."""
    try:
        scores = reward_fn(prompts, responses)
    except Exception as error:
        raise ValueError(f"reward_fn must not fail, it raised {type(error).__name__}: {error}") from error
    if not isinstance(scores, Tensor) or scores.shape != (len(responses),):
        raise ValueError(
            f"reward_fn must return a tensor of shape [{len(responses)}], one score per response, got {describe(scores)[:200]}"
        )
    scores = scores.detach().to(device, torch.float32)
    if not scores.isfinite().all():
        i = int((~scores.isfinite()).nonzero()[0])
        raise ValueError(f"reward_fn must return finite scores, got {scores[i].item()} for the response {responses[i]!r}")
    return scores


def improve(state: TrainState, batch: Batch, config: LMPPOConfig) -> Row:
    """Several epochs of minibatch steps on one batch. Returns what to log of them."""
    started = time.perf_counter()
    policy, optimizer, mask = state.policy, state.optimizer, batch.responses.mask
    kl_weight = state.kl_coefficient.value if config.kl_in == "loss" else 0.0
    if config.whiten_advantages:  # before splitting: the scale must not depend on the split
        kl_weight = kl_weight / (masked_var(batch.advantages, mask).sqrt() + 1e-8)  # the loss is then scaled as a whole
        batch = replace(batch, advantages=whiten(batch.advantages, mask))
    orders = [torch.randperm(config.batch_size, generator=state.generator, device=mask.device) for _ in range(config.epochs)]
    minibatches = [index for order in orders for index in order.tensor_split(config.minibatches)]
    steps: list[Tensor] = []
    with gradient_checkpointing(policy, config.gradient_checkpointing):
        for parts in split(batch.responses, minibatches, config.accumulation, config.sort_by_length):
            tokens = sum(mask[part.index].sum() for part in parts)
            optimizer.zero_grad()
            numbers = torch.zeros(len(STEP_COLUMNS), device=mask.device)
            deviation = numbers[0]
            for part in map(batch.part, parts):
                share = part.responses.mask.sum() / tokens  # means of parts, weighted by their tokens, make the mean of all
                loss, losses, largest = ppo_loss(policy, part, config, kl_weight, policy_pass=state.policy_pass)
                (share * loss).backward()
                numbers = numbers + share * torch.stack(losses)
                deviation = torch.maximum(deviation, largest)
            grad_norm = nn.utils.clip_grad_norm_(policy.parameters(), config.max_grad_norm or math.inf)
            optimizer.step()
            steps.append(torch.cat([numbers, torch.stack([grad_norm.detach(), deviation])]))
    table = torch.stack(steps)
    *last_epoch, _ = table[-config.minibatches :].mean(0).tolist()
    deviations = table[:, -1]
    return {
        **dict(zip([*STEP_COLUMNS, "grad_norm"], last_epoch, strict=True)),
        "first_minibatch_ratio_deviation": float(deviations[0]),
        "largest_ratio_deviation": float(deviations.max()),
        "seconds_update": time.perf_counter() - started,
    }


STEP_COLUMNS = ["policy_loss", "value_loss", "kl_loss", "approx_kl", "clip_fraction"]


def ppo_loss(
    policy: PolicyWithValue,
    batch: Batch,
    config: LMPPOConfig,
    kl_weight: float | Tensor,
    *,
    policy_pass: Callable[..., tuple[Tensor, Tensor, Tensor | None]] = log_probs_and_values,
) -> tuple[Tensor, list[Tensor], Tensor]:
    """The loss of one minibatch, its parts in the order of `STEP_COLUMNS`, and the largest |ratio - 1|.

        L = L_policy + value_coef * L_value (+ kl_weight * L_kl, where the KL is a loss)

    Source: Schulman et al. 2017, equation 9, over the real tokens of all responses together.
    """
    responses, mask, old_log_probs = batch.responses, batch.responses.mask, batch.old_log_probs
    settings = {"temperature": config.temperature, "dtype": DTYPES[config.precision]}
    log_probs, values, _ = policy_pass(policy, responses, with_entropy=config.compiled_update, **settings)  # compiled: as when scored
    policy_loss = clipped_surrogate_loss(log_probs, old_log_probs, batch.advantages, clip_range=config.clip_range, mask=mask)
    old_values = None if config.value_clip_range is None else batch.values
    critic_loss = value_loss(values, batch.returns, old_values=old_values, clip_range=config.value_clip_range, mask=mask)
    loss = policy_loss + config.value_coef * critic_loss
    reference_loss = torch.zeros_like(loss)
    if config.kl_in == "loss":
        reference_loss = kl_loss(log_probs, old_log_probs, batch.ref_log_probs, mask, kind=config.kl_loss)
        loss = loss + kl_weight * reference_loss
    with torch.no_grad():
        diagnostics = [
            approx_kl(log_probs, old_log_probs, mask=mask),
            clip_fraction(log_probs, old_log_probs, clip_range=config.clip_range, mask=mask),
        ]
        largest = (torch.exp(log_probs - old_log_probs) - 1.0).abs().max()  # both are 0 on padding
    return loss, [policy_loss.detach(), critic_loss.detach(), reference_loss.detach(), *diagnostics], largest


def split(responses: Responses, groups: list[Tensor], count: int, by_length: bool) -> list[list[Part]]:
    """Each group of rows in `count` parts of even size. `by_length`: similar lengths together, each part as wide as it must be."""
    if not by_length:
        widths = responses.prompt_tokens.shape[1], responses.tokens.shape[1]
        return [[Part(index, *widths) for index in group.tensor_split(count)] for group in groups]
    prompts, lengths = responses.prompt_mask.sum(1), responses.lengths
    total = prompts + lengths
    indices = [index for group in groups for index in group[total[group].argsort(stable=True)].tensor_split(count)]
    widths = torch.stack([torch.stack([prompts[index].max(), lengths[index].max()]) for index in indices]).tolist()  # one wait for all
    parts = [Part(index, *width) for index, width in zip(indices, widths, strict=True)]
    return [parts[i : i + count] for i in range(0, len(parts), count)]


def peak_memory_mb(device: torch.device) -> float:
    """Most memory in use so far, in MiB: the card's (what torch allocated), or the process's; NaN where it cannot be asked."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    try:
        import resource
    except ImportError:  # Windows
        return math.nan
    unit = 2**20 if sys.platform == "darwin" else 2**10  # bytes there, KiB elsewhere
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit


# Checkpoints -----------------------------------------------------------------------------------------------------------


def state_tensors(state: TrainState) -> dict[str, Tensor]:
    """Everything that a resumed run needs, as named tensors."""
    return {
        **module_tensors(state.policy, "policy."),
        **optimizer_tensors(state.optimizer),
        "random.generator": state.generator.get_state(),
        "random.torch": torch.get_rng_state(),
        "kl_coefficient": torch.tensor(state.kl_coefficient.value, dtype=torch.float64),
        "seconds": torch.tensor(state.seconds, dtype=torch.float64),
    }


def restore(state: TrainState, checkpoint: Checkpoint) -> None:
    """Put back what `state_tensors` returned."""
    tensors = checkpoint.tensors
    missing = [name for name in state_tensors(state) if name not in tensors]
    if missing:
        raise ValueError(f"the checkpoint must be complete, it lacks {missing}")
    load_into(state.policy, tensors, "policy.")
    restore_optimizer(state.optimizer, tensors)
    state.generator.set_state(tensors["random.generator"])
    torch.set_rng_state(tensors["random.torch"])
    state.kl_coefficient = replace(state.kl_coefficient, value=float(tensors["kl_coefficient"]))
    state.seconds = float(tensors["seconds"])
    state.update = checkpoint.update
