"""What the line-up compares: hand-written numbers for the functions that compute, and scenes for those that act.

A scene is a use of the package so small that all it leaves behind can be compared: names and numbers, the first in the order of
events first. Where a function draws at random, what is told does not depend on how it draws, as far as that can be.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import fields, replace
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium.vector import SyncVectorEnv
from gymnasium.wrappers import TimeLimit
from torch import Tensor

from ppo_edu.control.envs import make_envs
from ppo_edu.control.evaluation import evaluate
from ppo_edu.control.networks import CategoricalPolicy, Policy, make_policy
from ppo_edu.control.normalization import RewardNormalizer, RunningMoments
from ppo_edu.control.ppo import Batch, PPOConfig, TrainState, improve, make_batch, minibatches, ppo_loss
from ppo_edu.control.probes import DelayedReward, ProbeEnv, environment_id
from ppo_edu.control.rollout import Collector, Rollout, sample_actions
from ppo_edu.core import AdaptiveKLCoefficient, clipped_surrogate_loss, gae, probability_ratio

# Numbers ------------------------------------------------------------------------------------------------------------------


def _logs(*probabilities: list[float]) -> Tensor:
    return torch.tensor(probabilities).log()


def _flags(*rows: list[int]) -> Tensor:
    return torch.tensor(rows, dtype=torch.bool)


_OLD = _logs([0.4, 0.3, 0.5], [0.6, 0.2, 0.4], [0.5, 0.3, 0.8], [0.2, 0.6, 0.7])
NUMBERS: dict[str, Any] = {  # by the names of the package's parameters; read as [T, N] by some functions and as [B, T] by others
    "rewards": torch.tensor([[1.0, 2.0, -1.0], [3.0, 0.0, 2.0], [-2.0, 1.0, 4.0], [2.0, -3.0, 1.0]]),
    "values": torch.tensor([[2.0, 1.0, 3.0], [1.0, 4.0, -1.0], [3.0, 2.0, 1.0], [0.5, 1.0, 2.0]]),
    "next_values": torch.tensor([[1.0, 4.0, -1.0], [5.0, 3.0, 1.0], [0.5, 1.0, 6.0], [4.0, 7.0, -2.0]]),
    "bootstrap": torch.tensor([[1.0, 4.0, -1.0], [5.0, 3.0, 1.0], [0.5, 1.0, 6.0], [4.0, 7.0, -2.0]]),
    "terminated": _flags([0, 0, 0], [1, 0, 0], [0, 0, 0], [0, 1, 0]),
    "truncated": _flags([0, 0, 0], [0, 1, 0], [0, 0, 1], [0, 0, 0]),
    "gamma": 0.9,
    "lam": 0.5,
    "n": 2,
    "log_probs": _OLD + _logs([1.5, 0.5, 1.1], [0.81, 1.0, 1.5], [0.5, 1.3, 0.9], [2.0, 1.1, 0.7]),  # these are the ratios
    "old_log_probs": _OLD,
    "ref_log_probs": _logs([0.4, 0.3, 0.2], [0.7, 0.5, 0.6], [0.25, 0.6, 0.3], [0.5, 0.5, 0.2]),
    "advantages": torch.tensor([[1.0, 1.0, 2.0], [-1.0, 1.0, -1.0], [-1.0, 0.5, -2.0], [-1.5, 3.0, 0.25]]),
    "returns": torch.tensor([[2.5, 3.0, 1.0], [0.0, 4.1, 2.0], [1.0, 2.0, -1.0], [0.5, 3.0, 0.0]]),
    "old_values": torch.tensor([[2.1, 0.0, 5.0], [1.5, 4.0, -3.0], [2.0, 2.1, 0.5], [0.6, 4.0, 2.5]]),
    "clip_range": 0.2,
    "mask": _flags([1, 1, 1], [1, 1, 0], [1, 0, 0], [1, 1, 0]),
    "x": torch.tensor([[1.0, -2.0, 4.0], [0.5, 3.0, 50.0], [2.0, 7.0, 9.0], [-1.0, 6.0, -20.0]]),
    "logits": 2 * torch.arange(36.0).sin().reshape(4, 3, 3),
    "logits_p": torch.tensor([[1.0, 0.0, -1.0], [0.0, 0.0, 3.0]]),
    "logits_q": torch.tensor([[0.0, 0.5, 1.0], [2.0, 0.0, 1.0]]),
    "scores": torch.tensor([1.0, -2.0, 3.0, 0.5]),
    "kl_coef": 0.2,
    "first": torch.tensor([1.0, 0.5, -2.0]),
    "second": torch.tensor([0.0, 2.0, 0.3]),
    "targets": torch.tensor([1.0, 0.0, 0.5]),
    "gradient": torch.tensor([1.0, -0.5], dtype=torch.float64),
    "fisher": torch.tensor([[2.0, 1.0], [1.0, 3.0]], dtype=torch.float64),
    "max_kl": 0.01,
    "coefficient": 1.0,
    "kl": 0.1,
    "target": 0.01,
}
_UNDEFINED = ("undefined where terminated", {"next_values": NUMBERS["next_values"].where(~NUMBERS["terminated"], math.nan)})
_PADDED = ("undefined padding", {"x": NUMBERS["x"].where(NUMBERS["mask"], math.nan)})
_KINDS = [(kind, {"kind": kind}) for kind in ("k2", "k3")]
MORE: dict[str, list[tuple[str, dict[str, Any]]]] = {  # what tells two mistakes of one function apart, where the numbers do not
    "gae": [_UNDEFINED],
    "td_residual": [_UNDEFINED],
    "masked_mean": [_PADDED],
    "whiten": [_PADDED, ("all are equal", {"x": torch.full((4, 3), 0.1)})],
    "kl_estimate": _KINDS,
    "kl_loss": _KINDS,
    "approx_kl": _KINDS,
    "effective_sample_size": [("log-ratios near 100", {"log_probs": NUMBERS["log_probs"] + 100.0})],
    "preference_loss": [("a gap of 120", {"first": torch.tensor([120.0, 0.5, -2.0]), "targets": torch.tensor([0.0, 1.0, 0.5])})],
    "natural_step": [("a singular matrix", {"fisher": torch.tensor([[0.25, -0.25], [-0.25, 0.25]], dtype=torch.float64)})],
    "kl_penalty_update": [(f"a KL of {kl}", {"kl": kl}) for kl in (0.001, 0.014, 0.018)],
}
LEARNED = ("log_probs", "old_log_probs", "advantages", "values", "returns", "old_values", "logits", "first", "second")
LOSSES = ("policy_gradient_loss", "surrogate_loss", "clipped_surrogate_loss", "value_loss", "entropy_bonus", "kl_loss", "preference_loss")
DETACHED = ("gae",)  # its result must carry no gradient: asked only where the numbers are right


# Scenes on environments ---------------------------------------------------------------------------------------------------

Scene = Callable[[], dict[str, Any]]  # plays, and returns what it left behind, by name


def _policies() -> dict[str, Any]:
    """three policies, asked about three observations"""
    space, box = (gym.spaces.Box(-2.0, 2.0, (size,)) for size in (1, 2))
    finite = make_policy(space, gym.spaces.Discrete(3), (4,), output_gain=2.0)
    gaussian, squashed = (make_policy(space, box, (4,), output_gain=2.0, squash_actions=squash) for squash in (False, True))
    observations, real = torch.tensor([[-1.0], [0.5], [2.0]]), torch.tensor([[0.5, -1.0], [0.0, 2.0], [20.0, -20.0]])
    return {
        "probabilities of three actions": finite.distribution(observations).log_prob(torch.arange(3)[:, None]).exp(),
        "values": finite.value(observations),
        "log-probabilities of actions of two real numbers": gaussian.distribution(observations).log_prob(real),
        "log-probabilities of squashed actions": squashed.distribution(observations).log_prob(real),
    }


def _actions() -> dict[str, Any]:
    """1000 sampled actions, where one of two has probability 3/4"""
    policy = CategoricalPolicy(1, 2, ())
    policy.load_state_dict(policy.state_dict() | {"actor.0.weight": torch.zeros(2, 1), "actor.0.bias": torch.tensor([0.0, math.log(3)])})
    actions = sample_actions(policy, np.zeros((1000, 1), dtype=np.float32))
    return {"its share, in quarters": round(4 * float(actions.float().mean()))}


def _minibatches() -> dict[str, Any]:
    """two epochs of minibatches of 4 rows out of 12"""
    first, second = (list(minibatches(12, 4)) for _ in range(2))
    return {
        "the sizes of the minibatches": torch.tensor([len(index) for index in first]),
        "the rows of an epoch, sorted": torch.cat(first).sort().values,
        "whether they come in their own order": bool((torch.cat(first) == torch.arange(12)).all()),
        "whether the next epoch repeats them": torch.equal(torch.cat(first), torch.cat(second)),
    }


def _start(**network: Any) -> tuple[Policy, Collector]:
    """A policy for two environments: one whose episodes end after two steps, and one that cuts them after the first."""
    policy = CategoricalPolicy(1, 2, (4,), output_gain=2.0, **network)
    return policy, Collector(SyncVectorEnv([DelayedReward, lambda: TimeLimit(DelayedReward(), 1)]), seed=0)


def _told(rollout: Rollout) -> Iterator[tuple[str, Tensor]]:
    """Name and numbers of what counts in a rollout: nobody reads the rest."""
    yield "valid", rollout.valid
    for field in fields(rollout):
        x = torch.as_tensor(getattr(rollout, field.name))
        if field.name.startswith("episode_"):
            yield field.name, x.sort().values
        else:
            counts = rollout.valid & ~rollout.terminated if field.name == "next_values" else rollout.valid
            yield field.name, torch.where(counts.reshape(*counts.shape, *[1] * (x.ndim - 2)), x, torch.zeros_like(x))


def _rollouts() -> dict[str, Any]:
    """two rollouts in a row, the first ending with an episode; then one of real numbers for actions"""
    policy, collector = _start()
    with closing(make_envs("Pendulum-v1", 2)) as envs:
        gaussian = make_policy(envs.single_observation_space, envs.single_action_space, (4,), log_std_init=1.0)
        rollouts = [collector.collect(policy, 5), collector.collect(policy, 5), Collector(envs, seed=0).collect(gaussian, 5)]
    return {f"{name} of rollout {i}": x for i, rollout in enumerate(rollouts, 1) for name, x in _told(rollout)}


_CONFIG = PPOConfig(num_envs=2, num_steps=5, epochs=4, minibatch_size=10, entropy_coef=0.1, value_clip_range=0.5)


def _batch() -> dict[str, Any]:
    """the batch of a rollout of 7 steps and 3 resets"""
    policy, collector = _start()
    return dict(zip(Batch._fields, make_batch(collector.collect(policy, 5), _CONFIG, gae), strict=True))


def _loss() -> dict[str, Any]:
    """the loss of 7 rows that another policy sampled"""
    policy, collector = _start()
    batch = make_batch(collector.collect(policy, 5), _CONFIG, gae)
    batch = batch._replace(log_probs=batch.log_probs + torch.linspace(-0.5, 0.5, 7), values=batch.values + 1.0)
    loss, parts = ppo_loss(policy, batch, _CONFIG, 0.2, clipped_surrogate_loss)
    gradients = torch.autograd.grad(loss, list(policy.parameters()), allow_unused=True, materialize_grads=True)
    return {"policy loss": parts[0], "value loss": parts[1], "loss": loss, "gradient": torch.cat([x.flatten() for x in gradients])}


def _update() -> dict[str, Any]:
    """four epochs on 7 rows, with running statistics of the observations"""
    policy, collector = _start(normalize_observations=True)
    policy.observe(torch.tensor([[0.0], [1.0], [3.0]]))
    rollout = collector.collect(policy, 5)
    optimizer = torch.optim.Adam(policy.parameters(), lr=_CONFIG.learning_rate, eps=_CONFIG.adam_eps)
    state = TrainState(policy, optimizer, collector)
    improve(state, replace(rollout, rewards=10 * rollout.rewards), _CONFIG, 1.0, gae, clipped_surrogate_loss)
    observations = torch.tensor([[-1.0], [1.0]])
    return {
        "the mean of the observations seen": policy.normalizer.mean,
        "log-probabilities after the update": policy.distribution(observations).logits,
        "values after the update": policy.value(observations),
    }


def _scales() -> dict[str, Any]:
    """running statistics of two batches, and the rewards of two rollouts on one scale"""
    moments, normalizer = RunningMoments(3), RewardNormalizer(3, NUMBERS["gamma"])
    rewards, done = NUMBERS["rewards"], NUMBERS["terminated"] | NUMBERS["truncated"]
    valid = torch.cat([torch.ones_like(done[:1]), ~done[:-1]])
    moments.update(rewards)
    moments.update(rewards + 5.0)
    scaled = [normalizer(torch.where(valid, factor * rewards, 0.0), done, valid) for factor in (1.0, 3.0)]
    return {"mean": moments.mean, "variance": moments.variance, "the first rewards, scaled": scaled[0], "the second": scaled[1]}


class ShortOrLong(ProbeEnv):
    """One of three episodes is 31 steps long, the others 1; each step pays 1: the mean return is 11."""

    def first_observation(self) -> float:
        self.left = 31 if self.np_random.random() < 1 / 3 else 1
        return 0.0

    def outcome(self, action: int) -> tuple[float, bool]:
        self.left -= 1
        return 1.0, self.left == 0


gym.register(environment_id(ShortOrLong), entry_point=ShortOrLong, disable_env_checker=True)


def _evaluation() -> dict[str, Any]:
    """100 episodes, a third of them far longer than the others"""
    returns = evaluate(CategoricalPolicy(1, 2, ()), environment_id(ShortOrLong), episodes=100)
    return {"episodes": len(returns), "mean return, to the nearest ten": round(float(np.mean(returns)), -1)}


def _ratio() -> dict[str, Any]:
    """the ratios of hand-written numbers"""
    log_probs, old = NUMBERS["log_probs"].clone().requires_grad_(), NUMBERS["old_log_probs"]
    ratio = probability_ratio(log_probs, old)
    (gradient,) = torch.autograd.grad(ratio.sum(), log_probs)
    try:
        probability_ratio(log_probs, old[0])
    except Exception:
        return {"ratio": ratio, "gradient": gradient, "whether shapes that do not fit are refused": True}
    return {"ratio": ratio, "gradient": gradient, "whether shapes that do not fit are refused": False}


def _coefficient() -> dict[str, Any]:
    """a coefficient of 0.1 whose target is 5 nats"""
    coefficient = AdaptiveKLCoefficient(value=0.1, target=5.0, horizon=100.0)
    updates = {"after 10 sequences of 5.5 nats": (5.5, 10), "after 40 of them": (5.5, 40), "after 10 of 50 nats": (50.0, 10)}
    return {name: coefficient.updated(*update).value for name, update in updates.items()}


# Scenes with a language model: transformers is imported where one is played -----------------------------------------------


def _language_model() -> tuple[Any, Any]:
    """A GPT-2 of five words, one of which both ends and pads, as a policy with values; and its tokenizer."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    from ppo_edu.lm import PolicyWithValue, make_gpt2

    words = Tokenizer(models.WordLevel({word: i for i, word in enumerate(("<eos>", "a", "b", "c", "d"))}, unk_token="<eos>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, eos_token="<eos>", pad_token="<eos>", padding_side="left")
    policy = PolicyWithValue(make_gpt2(tokenizer, layers=1, width=8, heads=2, context=16, init_std=0.5, seed=5))
    torch.nn.init.normal_(policy.value_head.weight)
    return policy, tokenizer


def _language() -> dict[str, Any]:
    """two prompts with their responses, as tensors, read by a language model at temperature 2"""
    from ppo_edu.lm.models import response_logits, token_log_probs
    from ppo_edu.lm.sequences import encode

    policy, tokenizer = _language_model()
    s = encode(tokenizer, ["a", "b c d"], ["b c", "d"])
    with torch.no_grad():
        logits, values = response_logits(policy, s, temperature=2.0)
        return {
            "prompt_mask": s.prompt_mask,
            "prompt_tokens": torch.where(s.prompt_mask, s.prompt_tokens, 0),
            "mask": s.mask,
            "tokens": torch.where(s.mask, s.tokens, 0),
            "logits": torch.where(s.mask[..., None], logits, 0.0),
            "values": torch.where(s.mask, values, 0.0),
            "log_probs": token_log_probs(logits, s.tokens, s.mask),
        }


def _sampling() -> dict[str, Any]:
    """responses of a language model to three prompts, the likeliest and then sampled ones"""
    from ppo_edu.lm.generation import generate
    from ppo_edu.lm.models import sequence_log_probs
    from ppo_edu.lm.sequences import decode

    policy, tokenizer = _language_model()
    prompts = ["a", "b c d", "d a"]
    likeliest = generate(policy, tokenizer, prompts, max_new_tokens=5, top_k=1)
    sampled = generate(policy, tokenizer, prompts, max_new_tokens=5, temperature=0.5, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        deviation = (sampled.log_probs - sequence_log_probs(policy, sampled, temperature=0.5)).abs().max()
    return {
        "the likeliest responses": decode(tokenizer, likeliest),
        "their lengths": likeliest.lengths,
        "whether they ended": likeliest.ended,
        "their log-probabilities, where there was no choice": likeliest.log_probs.sum(1),
        "whether log-probabilities are those of the distribution sampled from": bool(deviation < 1e-4),
    }


def _training() -> dict[str, Any]:
    """two updates of a language model that has dropout, in two parts each"""
    from ppo_edu.lm import LMPPOConfig, encode, sequence_log_probs, train_ppo
    from ppo_edu.lm.models import log_probs_and_values

    policy, tokenizer = _language_model()
    for layer in policy.modules():
        if isinstance(layer, torch.nn.Dropout):
            layer.p = 0.5
    config = LMPPOConfig(updates=2, batch_size=4, max_new_tokens=4, epochs=2, minibatches=1, accumulation=2, learning_rate=1e-2)
    references = []
    train_ppo(
        policy,
        tokenizer,
        ["a", "b c d", "d a"],
        lambda prompts, responses: torch.tensor([float(response.count("a")) for response in responses]),
        config,
        callback=lambda state: references.append(state.reference),
        progress=False,
    )
    policy.eval()
    s = encode(tokenizer, ["a", "b c d"], ["b c", "d"])
    with torch.no_grad():
        log_probs, values, _ = log_probs_and_values(policy, s)
        return {
            "the reference's log-probabilities after training": sequence_log_probs(references[-1], s),
            "the policy's": log_probs,
            "its values": torch.where(s.mask, values, 0.0),
        }


SCENES: dict[str, Scene] = {  # by the beginning of the dotted path
    "ppo_edu.control.networks": _policies,
    "ppo_edu.control.rollout.sample_actions": _actions,
    "ppo_edu.control.ppo.minibatches": _minibatches,
    "ppo_edu.control.rollout.Collector": _rollouts,
    "ppo_edu.control.ppo.make_batch": _batch,
    "ppo_edu.control.ppo.ppo_loss": _loss,
    "ppo_edu.control.ppo.improve": _update,
    "ppo_edu.control.normalization": _scales,
    "ppo_edu.control.evaluation": _evaluation,
    "ppo_edu.core.objectives.probability_ratio": _ratio,
    "ppo_edu.core.kl.AdaptiveKLCoefficient": _coefficient,
    "ppo_edu.lm.sequences": _language,
    "ppo_edu.lm.models": _language,
    "ppo_edu.lm.generation": _sampling,
    "ppo_edu.lm.ppo": _training,
}
