"""PPO for classic control. The path from the loop to the mathematics: `train`, `improve`, `ppo_loss`, `clipped_surrogate_loss`.

Left out on purpose: recurrent policies, image observations and several processes. Each changes the plumbing, none the algorithm.
"""

import math
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

import torch
from gymnasium.vector import VectorEnv
from torch import Tensor, nn
from tqdm import tqdm

from ppo_edu.control.envs import environment_tensors, make_envs, restore_environment, warn_fresh_episodes
from ppo_edu.control.networks import Policy, make_policy
from ppo_edu.control.normalization import RewardNormalizer
from ppo_edu.control.rollout import Collector, Rollout
from ppo_edu.core import approx_kl, clip_fraction, clipped_surrogate_loss, explained_variance, gae, value_checks, value_loss, whiten
from ppo_edu.core.validation import check_bool, check_count, check_nonnegative, check_number, check_positive, check_unit_interval, describe
from ppo_edu.runs import (
    CHECKPOINT_NAME,
    Checkpoint,
    Row,
    Run,
    deferred_interrupt,
    load_checkpoint,
    load_into,
    module_tensors,
    optimizer_tensors,
    restore_optimizer,
    seeded,
)

SWITCHES = ("anneal_learning_rate", "anneal_clip_range", "normalize_advantages", "normalize_observations", "normalize_rewards")
SWITCHES += ("orthogonal_init", "shared_network", "squash_actions")


@dataclass(frozen=True)
class PPOConfig:
    """Every choice of a run. The defaults solve CartPole-v1 in seconds; other tasks want smaller steps and more of them."""

    env_id: str = "CartPole-v1"
    """Gymnasium environment with vector observations; actions Discrete or a Box of one axis."""
    total_steps: int = 40_000
    """Environment steps to train for; the run ends with the update that reaches them."""
    num_envs: int = 32
    """Environments stepped together (N)."""
    num_steps: int = 32
    """Steps of each environment per update (T)."""
    epochs: int = 8
    """Passes over the rollout per update."""
    minibatch_size: int = 512
    """Rows per optimiser step, approximately, since the valid rows are split evenly."""
    learning_rate: float = 1e-2
    """Adam's step size."""
    anneal_learning_rate: bool = True
    """Lower the learning rate linearly to 0 over total_steps."""
    adam_eps: float = 1e-5
    """Adam's epsilon."""
    gamma: float = 0.99
    """Discount per step."""
    lam: float = 0.95
    """GAE's lambda, from 0 (trust the critic after one reward) to 1 (never trust it)."""
    clip_range: float = 0.2
    """Half-width of the interval around 1 in which the probability ratio has gradient."""
    anneal_clip_range: bool = False
    """Lower the clip range linearly to 0 over total_steps."""
    normalize_advantages: bool = True
    """Whiten the advantages of each rollout."""
    value_coef: float = 0.5
    """Weight of the value loss."""
    value_clip_range: float | None = None
    """Clip the critic's change per update to this, in units of the return. None does not clip."""
    entropy_coef: float = 0.0
    """Weight of the entropy bonus, per nat."""
    max_grad_norm: float | None = 0.5
    """Scale gradients down to this global norm. None leaves them as they are."""
    target_kl: float | None = None
    """Stop an update's epochs once the approximate KL from old to new policy exceeds this many nats. None never stops."""
    hidden_sizes: tuple[int, ...] = (64, 64)
    """Widths of the hidden layers of actor and critic."""
    shared_network: bool = False
    """One trunk of hidden layers under both actor and critic, instead of two networks."""
    orthogonal_init: bool = True
    """Orthogonal initialisation instead of torch's default."""
    output_gain: float = 0.01
    """Gain of the actor's last layer; small: the first policy hardly depends on the observation. For orthogonal_init."""
    normalize_observations: bool = False
    """Shift and scale observations by their running mean and standard deviation."""
    normalize_rewards: bool = False
    """Divide rewards by the running standard deviation of the discounted return."""
    log_std_init: float = 0.0
    """For Box actions: logarithm of the first standard deviation, in units of the action (before squashing)."""
    squash_actions: bool = False
    """For Box actions: tanh into the box, instead of clipping what the environment gets."""

    def __post_init__(self) -> None:
        if not isinstance(self.hidden_sizes, tuple):
            raise ValueError(f"hidden_sizes must be a tuple of ints, got {describe(self.hidden_sizes)}")
        counts = {name: getattr(self, name) for name in ("total_steps", "num_envs", "num_steps", "epochs", "minibatch_size")}
        counts |= {f"hidden_sizes[{i}]": width for i, width in enumerate(self.hidden_sizes)}
        check_count(**counts)
        if self.num_envs * (self.num_steps // 2) < 2:
            raise ValueError(
                "num_envs * (num_steps // 2) must be at least 2, since every other row can be a reset, "
                f"got num_envs {self.num_envs}, num_steps {self.num_steps}"
            )
        if not 2 <= self.minibatch_size <= self.num_envs * self.num_steps:
            raise ValueError(
                f"minibatch_size must be from 2 to num_envs * num_steps = {self.num_envs * self.num_steps}, got {self.minibatch_size}"
            )
        check_bool(**{name: getattr(self, name) for name in SWITCHES})
        check_unit_interval(gamma=self.gamma, lam=self.lam)
        check_positive(adam_eps=self.adam_eps, clip_range=self.clip_range)
        optional = ("value_clip_range", "max_grad_norm", "target_kl")
        check_positive(**{name: x for name in optional if (x := getattr(self, name)) is not None})
        check_nonnegative(learning_rate=self.learning_rate, value_coef=self.value_coef, entropy_coef=self.entropy_coef)
        check_nonnegative(output_gain=self.output_gain)
        check_number(log_std_init=self.log_std_init)


@dataclass
class TrainState:
    """Where a training stands; what a callback sees after each update."""

    policy: Policy
    optimizer: torch.optim.Optimizer
    collector: Collector
    reward_normalizer: RewardNormalizer | None = None
    env_steps: int = 0  # valid rows so far
    update: int = 0
    seconds: float = 0.0  # callbacks excluded
    log: list[Row] = field(default_factory=list)


@dataclass(frozen=True)
class TrainResult:
    """A finished training."""

    policy: Policy
    log: list[Row]  # one row of floats per update
    env_steps: int
    seconds: float  # callbacks excluded


class Batch(NamedTuple):
    """The valid rows of a rollout, flattened: B rows."""

    observations: Tensor  # [B, D]
    actions: Tensor  # [B, ...]
    log_probs: Tensor  # [B] of the policy that acted
    values: Tensor  # [B] at collection time
    advantages: Tensor  # [B]
    returns: Tensor  # [B] lambda-returns, the critic's target

    def rows(self, index: Tensor) -> "Batch":
        """The rows at these positions."""
        return Batch(*(x[index] for x in self))


AdvantageFn = Callable[..., Tensor]  # called as core.gae is
PolicyLossFn = Callable[..., Tensor]  # called as core.clipped_surrogate_loss is
Callback = Callable[[TrainState], bool | None]


def train(
    config: PPOConfig | None = None,
    *,
    seed: int = 0,
    advantage_fn: AdvantageFn = gae,
    policy_loss_fn: PolicyLossFn = clipped_surrogate_loss,
    callback: Callback | None = None,
    log_dir: str | Path | None = None,
    resume: str | Path | None = None,
    progress: bool = True,
    tensorboard: bool = False,
    checkpoint_every: int = 1,
) -> TrainResult:
    """Train a policy with PPO. The same seed gives the same weights on the same processor.

    `advantage_fn` and `policy_loss_fn`: your own, called exactly as `gae` and `clipped_surrogate_loss` are.
    `callback(state)` runs after each update; returning True ends the training.
    `log_dir`: where the log and, every `checkpoint_every` updates, the checkpoint go. `resume`: the directory of a run to
    continue; its random states come from the checkpoint, and `seed` then only seeds environments that cannot be saved.

    Ctrl-C ends the update under way, writes a checkpoint and is raised again.
    Raises: ValueError for a bad argument, environment or checkpoint; FloatingPointError when an update is not finite.

    Source: Schulman et al. 2017 (arXiv:1707.06347), algorithm 1.
    """
    started = time.perf_counter()
    config = PPOConfig() if config is None else config
    if not isinstance(config, PPOConfig):
        raise ValueError(f"config must be a PPOConfig or None, got {describe(config)}")
    check_count(checkpoint_every=checkpoint_every)
    with (
        seeded(seed),
        closing(make_envs(config.env_id, config.num_envs)) as envs,
        Run("control", config, log_dir=log_dir, resume=resume, tensorboard=tensorboard) as run,
        deferred_interrupt() as interrupted,
    ):
        state = start(config, seed, envs, run)
        stop = state.env_steps >= config.total_steps
        with tqdm(total=config.total_steps, initial=state.env_steps, unit=" steps", disable=not progress) as bar:
            while not stop:
                remaining = 1.0 - state.env_steps / config.total_steps  # from 1 down to 0: what annealing multiplies by
                rollout = state.collector.collect(state.policy, config.num_steps)
                row = improve(state, with_scaled_rewards(rollout, state), config, remaining, advantage_fn, policy_loss_fn)
                state.policy.observe(rollout.observations[rollout.valid])  # only now: the update is that of the policy that acted
                state.update += 1
                state.env_steps += int(rollout.valid.sum())
                state.seconds += time.perf_counter() - started
                run.append({"update": state.update, "env_steps": state.env_steps, "seconds": state.seconds, **row})
                bar.update(min(state.env_steps, config.total_steps) - bar.n)
                bar.set_postfix(episode_return=row["episode_return"], refresh=False)
                stop = bool(callback(state)) if callback is not None else False
                started = time.perf_counter()
                stop = stop or interrupted() or state.env_steps >= config.total_steps
                if stop or state.update % checkpoint_every == 0:
                    run.save(state_tensors(state))
        if interrupted():
            raise KeyboardInterrupt
    return TrainResult(state.policy, state.log, state.env_steps, state.seconds)


def start(config: PPOConfig, seed: int, envs: VectorEnv, run: Run) -> TrainState:
    """A new training, or the one that the run resumes."""
    policy = policy_for(envs, config)
    optimizer = torch.optim.Adam(policy.parameters(), lr=config.learning_rate, eps=config.adam_eps, fused=True)
    reward_normalizer = RewardNormalizer(config.num_envs, config.gamma) if config.normalize_rewards else None
    state = TrainState(policy, optimizer, Collector(envs, seed), reward_normalizer, log=run.log)
    if run.resumed is None:
        run.save(state_tensors(state))  # so that a run killed in its first update can be resumed too
    else:
        restore(state, run.resumed)
        if "env.state" not in run.resumed.tensors:
            warn_fresh_episodes(config.env_id)
    return state


def policy_for(envs: VectorEnv, config: PPOConfig) -> Policy:
    """A new policy for these environments."""
    return make_policy(
        envs.single_observation_space,
        envs.single_action_space,
        config.hidden_sizes,
        squash_actions=config.squash_actions,
        log_std_init=config.log_std_init,
        orthogonal=config.orthogonal_init,
        output_gain=config.output_gain,
        shared_network=config.shared_network,
        normalize_observations=config.normalize_observations,
    )


def with_scaled_rewards(rollout: Rollout, state: TrainState) -> Rollout:
    """The rollout as it is learned from; its `episode_returns`, which are logged, stay in the environment's units."""
    if state.reward_normalizer is None:
        return rollout
    done = rollout.terminated | rollout.truncated
    return replace(rollout, rewards=state.reward_normalizer(rollout.rewards, done, rollout.valid))


def improve(
    state: TrainState, rollout: Rollout, config: PPOConfig, remaining: float, advantage_fn: AdvantageFn, policy_loss_fn: PolicyLossFn
) -> Row:
    """One PPO update: several epochs of minibatch steps on one rollout. Returns the row to log."""
    policy, optimizer = state.policy, state.optimizer
    clip_range = config.clip_range * (remaining if config.anneal_clip_range else 1.0)
    for group in optimizer.param_groups:
        group["lr"] = config.learning_rate * (remaining if config.anneal_learning_rate else 1.0)

    with value_checks(False):  # the logged numbers are checked instead
        batch = make_batch(rollout, config, advantage_fn)
        steps = []
        for epoch in range(1, config.epochs + 1):
            for index in minibatches(len(batch.returns), config.minibatch_size):
                loss, parts = ppo_loss(policy, batch.rows(index), config, clip_range, policy_loss_fn)
                optimizer.zero_grad()
                loss.backward()
                grad_norm = nn.utils.clip_grad_norm_(policy.parameters(), config.max_grad_norm or math.inf)
                optimizer.step()
                steps.append([*parts, grad_norm])
            if config.target_kl is not None and kl_from_old(policy, batch) > config.target_kl:
                break
        row = diagnose(policy, batch, clip_range)
    policy_losses, value_losses, grad_norms = torch.tensor(steps).mean(0).tolist()
    row = {"policy_loss": policy_losses, "value_loss": value_losses, "grad_norm": grad_norms, **row, "epochs": epoch}
    row |= {"learning_rate": optimizer.param_groups[0]["lr"], "clip_range": clip_range}
    for name, x in row.items():
        if not math.isfinite(x):
            raise FloatingPointError(f"training diverged at update {state.update + 1}: {name} is {x}")
    ended = len(rollout.episode_returns) > 0
    row["episode_return"] = float(rollout.episode_returns.mean()) if ended else math.nan
    row["episode_length"] = float(rollout.episode_lengths.mean()) if ended else math.nan
    return row


def ppo_loss(
    policy: Policy, batch: Batch, config: PPOConfig, clip_range: float, policy_loss_fn: PolicyLossFn
) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """The loss of one minibatch, and its parts (policy loss, value loss).

        L = L_policy + value_coef * L_value - entropy_coef * entropy

    Source: Schulman et al. 2017, equation 9 (there an objective to maximise; here a loss, so the signs are reversed).
    """
    distribution = policy.distribution(batch.observations)
    log_probs = distribution.log_prob(batch.actions)
    policy_loss = policy_loss_fn(log_probs, batch.log_probs, batch.advantages, clip_range=clip_range)
    if not isinstance(policy_loss, Tensor) or policy_loss.shape != ():
        raise ValueError(f"policy_loss_fn must return a scalar tensor, got {describe(policy_loss)}")
    values = policy.value(batch.observations)
    old_values = None if config.value_clip_range is None else batch.values
    critic_loss = value_loss(values, batch.returns, old_values=old_values, clip_range=config.value_clip_range)
    loss = policy_loss + config.value_coef * critic_loss
    if config.entropy_coef:
        loss = loss - config.entropy_coef * distribution.entropy().mean()
    return loss, (policy_loss.detach(), critic_loss.detach())


def make_batch(rollout: Rollout, config: PPOConfig, advantage_fn: AdvantageFn) -> Batch:
    """Advantages and returns of a rollout; only its valid rows, whitened together, are kept."""
    r = rollout
    advantages = advantage_fn(r.rewards, r.values, r.next_values, r.terminated, r.truncated, gamma=config.gamma, lam=config.lam)
    if not isinstance(advantages, Tensor) or advantages.shape != r.rewards.shape:
        raise ValueError(f"advantage_fn must return a tensor of shape {list(r.rewards.shape)}, got {describe(advantages)}")
    returns = advantages + r.values
    valid = r.valid
    kept = advantages[valid]
    if config.normalize_advantages:
        kept = whiten(kept)
    return Batch(r.observations[valid], r.actions[valid], r.log_probs[valid], r.values[valid], kept, returns[valid])


def minibatches(num_rows: int, minibatch_size: int) -> Iterator[Tensor]:
    """Random disjoint index sets that cover all rows once, of even sizes near `minibatch_size`, none of a single row."""
    count = max(1, min(round(num_rows / minibatch_size), num_rows // 2))
    yield from torch.randperm(num_rows).tensor_split(count)


@torch.no_grad()
def kl_from_old(policy: Policy, batch: Batch) -> float:
    """Approximate KL from the policy that acted to the policy as it is now, in nats."""
    return float(approx_kl(policy.distribution(batch.observations).log_prob(batch.actions), batch.log_probs))


@torch.no_grad()
def diagnose(policy: Policy, batch: Batch, clip_range: float) -> Row:
    """How far the whole update moved the policy, measured on its rollout once all epochs are done."""
    distribution = policy.distribution(batch.observations)
    log_probs = distribution.log_prob(batch.actions)
    return {
        "approx_kl": float(approx_kl(log_probs, batch.log_probs)),
        "clip_fraction": float(clip_fraction(log_probs, batch.log_probs, clip_range=clip_range)),
        "explained_variance": float(explained_variance(batch.values, batch.returns)),
        "entropy": float(distribution.entropy().mean()),
    }


COLLECTOR_ARRAYS = ("observations", "done", "running_return", "running_length")


def state_tensors(state: TrainState) -> dict[str, Tensor]:
    """All that a resumed training needs: weights, moments, random states, where environments and counters stand."""
    collector = state.collector
    return {
        **{f"policy.{name}": x for name, x in state.policy.state_dict().items()},
        **optimizer_tensors(state.optimizer),
        **(module_tensors(state.reward_normalizer, "reward_normalizer.") if state.reward_normalizer else {}),
        **(environment_tensors(collector.envs) or {}),
        "torch_generator": torch.get_rng_state(),
        "env_steps": torch.tensor(state.env_steps),
        "seconds": torch.tensor(state.seconds, dtype=torch.float64),
        **{f"collector.{name}": torch.from_numpy(getattr(collector, name).copy()) for name in COLLECTOR_ARRAYS},
    }


def restore(state: TrainState, checkpoint: Checkpoint) -> None:
    """Put back what `state_tensors` returned. Without saved environments, episodes start afresh."""
    tensors = checkpoint.tensors
    missing = [name for name in state_tensors(state) if name not in tensors and not name.startswith("env.")]
    if missing:
        raise ValueError(f"the checkpoint must be complete, it lacks {missing}")
    load_into(state.policy, tensors, "policy.")
    restore_optimizer(state.optimizer, tensors)
    if state.reward_normalizer is not None:
        load_into(state.reward_normalizer, tensors, "reward_normalizer.")
        if "env.state" not in tensors:
            state.reward_normalizer.discounted.zero_()  # the episodes whose rewards it holds are gone
    if "env.state" in tensors:
        restore_environment(state.collector.envs, tensors)
        for name in COLLECTOR_ARRAYS:
            setattr(state.collector, name, tensors[f"collector.{name}"].numpy().copy())
    torch.set_rng_state(tensors["torch_generator"])
    state.update, state.env_steps, state.seconds = checkpoint.update, int(tensors["env_steps"]), float(tensors["seconds"])


def load_policy(path: str | Path) -> tuple[Policy, PPOConfig]:
    """The policy in a run's checkpoint (the run's directory or the file), and the config it was trained with."""
    path = Path(path)
    checkpoint = load_checkpoint(path / CHECKPOINT_NAME if path.is_dir() else path, kind="control")
    try:
        config = PPOConfig(**{k: tuple(v) if isinstance(v, list) else v for k, v in checkpoint.config.items()})
    except TypeError as error:
        raise ValueError(f"{path} was written with another set of options: {error}") from error
    with closing(make_envs(config.env_id, 1)) as envs, seeded(0):  # the caller's random state stays; the weights are replaced
        policy = policy_for(envs, config)
    load_into(policy, checkpoint.tensors, "policy.")
    return policy, config
