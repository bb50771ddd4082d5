"""Mistakes of a trainer: in the policy, while collecting, in the batch, in the update, in the evaluation.

Most are written as "the right function, but for this", so that the one wrong line is all there is to read.
"""

from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, nn
from torch.distributions import Categorical, Independent

from ppo_edu.control.envs import make_envs
from ppo_edu.control.networks import CategoricalPolicy, GaussianPolicy, Policy, greedy_or_sampled
from ppo_edu.control.normalization import RewardNormalizer, RunningMoments
from ppo_edu.control.ppo import improve, make_batch, ppo_loss
from ppo_edu.control.rollout import Collector
from ppo_edu.core import whiten
from ppo_edu.runs import seeded
from ppo_edu.teach.pitfalls.catalogue import pitfall

distribution, gaussian, value = CategoricalPolicy.distribution, GaussianPolicy.distribution, Policy.value
collect, take_in, scale_rewards = Collector.collect, RunningMoments.update, RewardNormalizer.forward

# The policy: what the network's outputs mean ----------------------------------------------------------------------------


@pitfall(
    "probabilities-for-logits",
    target="ppo_edu.control.networks.CategoricalPolicy.distribution",
    mistake="a policy whose probabilities are taken for logits: the softmax is applied twice",
    symptom="sampling stays near uniform whatever is learned: of two actions none gets beyond 0.73",
    exposed_by="how often a confident policy takes its favourite action",
    discussed="https://github.com/ekapolc/RL_course_2019/pull/6",
)
def _softmax_twice(self, observations):
    return Categorical(logits=distribution(self, observations).probs, validate_args=False)


@pitfall(
    "logits-for-probabilities",
    target="ppo_edu.control.networks.CategoricalPolicy.distribution",
    mistake="a policy whose logits are taken for probabilities: they may be negative and are divided by their sum",
    symptom="an error, NaN, or the favourite action changes when all logits move together",
    exposed_by="a constant added to all logits changes nothing",
    discussed="https://github.com/tristandeleu/pytorch-maml-rl/issues/32",
)
def _without_softmax(self, observations):
    return Categorical(probs=self.actor(self.features(observations)), validate_args=False)


@pitfall(
    "sigmoid-for-a-distribution",
    target="ppo_edu.control.networks.CategoricalPolicy.distribution",
    mistake="a sigmoid of each output by itself: the numbers do not sum to 1, and a library that divides by their sum hides it",
    symptom="two actions that both score high are hardly told apart; CartPole is learned all the same",
    exposed_by="the probabilities against a softmax of the outputs",
)
def _sigmoids(self, observations):
    return Categorical(probs=torch.sigmoid(self.actor(self.features(observations))), validate_args=False)


@pitfall(
    "values-with-an-axis-too-many",
    target="ppo_edu.control.networks.Policy.value",
    mistake="values of shape [B, 1] where [B] is meant: subtracted from returns [B] they broadcast to [B, B]",
    symptom="where no shape is checked, one value is learned for all states and explained variance stays at 0; here GAE raises an error",
    exposed_by="the shape of the values",
    discussed="https://github.com/RLinf/RLinf/issues/1568",
)
def _not_squeezed(self, observations):
    return value(self, observations).unsqueeze(-1)


# Collecting: what the buffer holds --------------------------------------------------------------------------------------


@pitfall(
    "argmax-while-collecting",
    target="ppo_edu.control.rollout.sample_actions",
    mistake="the most probable action instead of a sampled one: the log-probabilities are of a policy that was not followed",
    symptom="no exploration: the return depends on the seed and hardly on the number of steps",
    exposed_by="the frequency of the actions against their probabilities",
    discussed="https://github.com/kengz/SLM-Lab/pull/271",
)
def _argmax(policy, observations):
    return greedy_or_sampled(policy, torch.from_numpy(observations), greedy=True)


@pitfall(
    "carried-end-forgotten",
    target="ppo_edu.control.rollout.Collector.collect",
    mistake="a rollout that does not know whether the one before it ended an episode: its first row may be a reset row",
    symptom="a transition that never happened, whenever an episode ends on a rollout's last row; nothing visible in the losses",
    exposed_by="two rollouts in a row, the first ending with an episode",
    discussed="https://github.com/Denys88/rl_games/pull/362",
)
def _carried_end_forgotten(self, policy, num_steps):
    self.done = np.zeros_like(self.done)
    return collect(self, policy, num_steps)


@pitfall(
    "ends-one-row-late",
    target="ppo_edu.control.rollout.Collector.collect",
    mistake="flags that say of each row whether the episode ended *before* it, read as if they said whether it ended there",
    symptom="the end is charged to the row after it; lambda carries most of it back, so that CartPole is learned all the same",
    exposed_by="an environment whose episodes are known beforehand",
    discussed="https://github.com/hill-a/stable-baselines/issues/385",
)
def _flags_late(self, policy, num_steps):
    rollout = collect(self, policy, num_steps)
    late = [torch.cat([torch.zeros_like(x[:1]), x[:-1]]) for x in (rollout.terminated, rollout.truncated)]
    return replace(rollout, terminated=late[0], truncated=late[1])


@pitfall(
    "value-of-the-reset-observation",
    target="ppo_edu.control.rollout.Collector.collect",
    mistake="the value of the *next* episode's first observation where that of this one's final observation belongs",
    symptom="states before a time limit are valued like first states: explained variance stays low on Pendulum, hardly a trace on CartPole",
    exposed_by="a critic that tells every observation from every other",
    discussed="https://github.com/openai/gym/issues/3177",
)
def _value_of_reset(self, policy, num_steps):
    rollout = collect(self, policy, num_steps)
    done = rollout.terminated | rollout.truncated
    return replace(rollout, next_values=torch.where(done, rollout.next_values.roll(-1, 0), rollout.next_values))


@pitfall(
    "observation-after-the-action",
    target="ppo_edu.control.rollout.Collector.collect",
    mistake="a buffer that stores the observation that the action led to beside the action, not the one it was chosen from",
    symptom="the first ratio is not 1; the policy learns to have done what it sees the result of",
    exposed_by="the observations against those that the policy was given",
)
def _observation_after(self, policy, num_steps):
    rollout = collect(self, policy, num_steps)
    return replace(rollout, observations=rollout.observations.roll(-1, 0))


# The batch: advantages and targets of the rows that happened ------------------------------------------------------------


@pitfall(
    "reset-rows-trained-on",
    target="ppo_edu.control.ppo.make_batch",
    mistake="a batch with the reset rows in it: transitions that never happened, whose action was ignored",
    symptom="on CartPole the value loss falls more slowly and the return rises later; nothing stands out",
    exposed_by="garbage in the reset rows may change nothing",
    discussed="https://github.com/Denys88/rl_games/pull/362",
)
def _reset_rows_in(rollout, config, advantage_fn):
    return make_batch(replace(rollout, valid=torch.ones_like(rollout.valid)), config, advantage_fn)


@pitfall(
    "reset-rows-in-the-whitening",
    target="ppo_edu.control.ppo.make_batch",
    mistake="advantages whitened with the reset rows counted in, which are dropped only afterwards",
    symptom="the mean of the advantages that are learned from is not 0; the step size depends on the number of resets",
    exposed_by="garbage in the reset rows may change nothing",
)
def _whitened_too_early(rollout, config, advantage_fn):
    batch = make_batch(rollout, replace(config, normalize_advantages=False), advantage_fn)
    if not config.normalize_advantages:
        return batch
    r = rollout
    advantages = advantage_fn(r.rewards, r.values, r.next_values, r.terminated, r.truncated, gamma=config.gamma, lam=config.lam)
    return batch._replace(advantages=whiten(advantages)[r.valid])


@pitfall(
    "targets-from-whitened-advantages",
    target="ppo_edu.control.ppo.make_batch",
    mistake="returns computed from advantages that were already whitened: the critic's target is its own value plus unit noise",
    symptom="values stay near 0 however large the returns are",
    exposed_by="the returns must not depend on whether advantages are normalised",
    discussed="https://github.com/luchris429/model-free-opponent-shaping/issues/1",
)
def _targets_from_whitened(rollout, config, advantage_fn):
    batch = make_batch(rollout, config, advantage_fn)
    return batch._replace(returns=batch.advantages + batch.values)


@pitfall(
    "critic-trained-on-the-reward",
    target="ppo_edu.control.ppo.make_batch",
    mistake="the immediate reward as the critic's target",
    symptom="values of one reward's size: explained variance near 0, a value loss far too small, and a return that is never steady",
    exposed_by="the targets against advantages + values",
)
def _reward_as_target(rollout, config, advantage_fn):
    return make_batch(rollout, config, advantage_fn)._replace(returns=rollout.rewards[rollout.valid])


# The update: minibatches, the loss, the optimiser -----------------------------------------------------------------------


@pitfall(
    "minibatch-of-one",
    target="ppo_edu.control.ppo.minibatches",
    mistake="an optimiser step after every single row",
    symptom="so many noisy steps that updates go too far; NaN where each normalises its own advantages, as one number has no spread",
    exposed_by="the sizes of the minibatches",
    discussed="https://github.com/DLR-RM/stable-baselines3/issues/265",
)
def _single_rows(num_rows: int, minibatch_size: int) -> Iterator[Tensor]:
    yield from torch.randperm(num_rows).split(1)


@pitfall(
    "minibatches-drawn-with-replacement",
    target="ppo_edu.control.ppo.minibatches",
    mistake="minibatches drawn with replacement: in one epoch some rows are seen several times and a third of them never",
    symptom="noisier than need be; nothing breaks",
    exposed_by="one epoch must hold every row once",
)
def _with_replacement(num_rows: int, minibatch_size: int) -> Iterator[Tensor]:
    yield from torch.randint(num_rows, (num_rows,)).tensor_split(max(1, min(round(num_rows / minibatch_size), num_rows // 2)))


@pitfall(
    "minibatches-never-shuffled",
    target="ppo_edu.control.ppo.minibatches",
    mistake="minibatches of neighbouring rows, the same in every epoch",
    symptom="each step sees a few moments of the rollout, whose rows resemble each other; learning is rougher",
    exposed_by="two epochs must differ in their order",
)
def _in_order(num_rows: int, minibatch_size: int) -> Iterator[Tensor]:
    yield from torch.arange(num_rows).tensor_split(max(1, min(round(num_rows / minibatch_size), num_rows // 2)))


@pitfall(
    "old-log-probs-from-the-new-policy",
    target="ppo_edu.control.ppo.ppo_loss",
    mistake="a loss that computes the old log-probabilities from the policy as it is now: every ratio is 1 at every step",
    symptom="the loss is minus the mean advantage, the clip never acts, and several epochs run away",
    exposed_by="old log-probabilities that differ from the new ones must change the loss",
    discussed="https://github.com/abhisheksuran/Reinforcement_Learning/issues/4",
)
def _old_from_new(policy, batch, config, clip_range, policy_loss_fn):
    with torch.no_grad():
        log_probs = policy.distribution(batch.observations).log_prob(batch.actions)
    return ppo_loss(policy, batch._replace(log_probs=log_probs), config, clip_range, policy_loss_fn)


@pitfall(
    "entropy-minimised",
    target="ppo_edu.control.ppo.ppo_loss",
    mistake="a loss to which the entropy is added: minimised with it, randomness is punished",
    symptom="entropy collapses, faster with a larger coefficient; the policy stops exploring",
    exposed_by="one step with the bonus alone must raise the entropy",
    discussed="https://github.com/google-deepmind/open_spiel/issues/962",
)
def _entropy_added(policy, batch, config, clip_range, policy_loss_fn):
    loss, parts = ppo_loss(policy, batch, config, clip_range, policy_loss_fn)
    return loss + 2 * config.entropy_coef * policy.distribution(batch.observations).entropy().mean(), parts


@pitfall(
    "optimizer-anew-at-each-step",
    target="ppo_edu.control.ppo.improve",
    mistake="an update that makes its optimiser anew before each step: Adam forgets its moments, and every step is a first one",
    symptom="every step moves every weight by the whole learning rate, whatever the size of its gradient; the return may hardly show it",
    exposed_by="Adam's step counter, and the weights after two steps against Adam by hand",
    discussed="https://github.com/OpenNMT/OpenNMT-py/issues/617",
)
def _optimizer_anew(state, rollout, config, remaining, advantage_fn, policy_loss_fn):
    forgetting = state.optimizer.register_step_post_hook(lambda optimizer, *_: optimizer.state.clear())
    try:
        return improve(state, rollout, config, remaining, advantage_fn, policy_loss_fn)
    finally:
        forgetting.remove()


@pitfall(
    "model-anew-at-each-update",
    target="ppo_edu.control.ppo.improve",
    mistake="an update of a network that is made inside the loop: what was learned before is gone",
    symptom="the return never gets beyond what one update can teach, and the first ratios of an update are not 1",
    exposed_by="learning rate 0 must leave the weights as they are",
)
def _model_anew(state, rollout, config, remaining, advantage_fn, policy_loss_fn):
    for layer in state.policy.modules():
        if isinstance(layer, nn.Linear):
            layer.reset_parameters()
    return improve(state, rollout, config, remaining, advantage_fn, policy_loss_fn)


@pitfall(
    "gradients-pile-up",
    target="ppo_edu.control.ppo.improve",
    mistake="an update without zero_grad: each step goes along the sum of all gradients so far",
    symptom="the gradient norm grows and the policy collapses; with max_grad_norm next to nothing, as the pile is cut at each step",
    exposed_by="at learning rate 0 the gradient norm must not grow with the number of epochs",
    discussed="https://github.com/pytorch/pytorch/issues/47175",
)
def _no_zero_grad(state, rollout, config, remaining, advantage_fn, policy_loss_fn):
    state.optimizer.zero_grad = lambda: None
    try:
        return improve(state, rollout, config, remaining, advantage_fn, policy_loss_fn)
    finally:
        del state.optimizer.zero_grad


@pitfall(
    "gradient-never-clipped",
    target="ppo_edu.control.ppo.improve",
    mistake="an update that ignores max_grad_norm (as one does that clips after the optimiser's step)",
    symptom="next to nothing with Adam, whose step does not grow with the gradient; without it, one odd batch makes a huge step",
    exposed_by="the length of one step of plain gradient descent",
)
def _never_clipped(state, rollout, config, remaining, advantage_fn, policy_loss_fn):
    return improve(state, rollout, replace(config, max_grad_norm=None), remaining, advantage_fn, policy_loss_fn)


# Actions that are real numbers, and numbers brought to one scale --------------------------------------------------------


@pitfall(
    "one-log-prob-per-component",
    target="ppo_edu.control.networks.GaussianPolicy.distribution",
    mistake="a Gaussian whose components have a log-probability each, [B, A]: their sum is that of the action",
    symptom="an error at best; else each component has a ratio and a clip of its own",
    exposed_by="a multivariate normal with a diagonal covariance",
    discussed="https://github.com/JuliaReinforcementLearning/ReinforcementLearningZoo.jl/pull/169",
)
def _per_component(self, observations):
    return gaussian(self, observations).base_dist


@pitfall(
    "density-of-the-clipped-action",
    target="ppo_edu.control.rollout.Collector.collect",
    mistake="a rollout that stores the action as the environment got it, clipped to its box, and the density there",
    symptom="updates go too far where the policy leans on the edge of the box: the density of an edge is not its probability",
    exposed_by="the stored actions against those that were sampled",
    discussed="https://github.com/thu-ml/tianshou/issues/312",
)
def _clipped_action(self, policy, num_steps):
    rollout = collect(self, policy, num_steps)
    if type(policy) is not GaussianPolicy:
        return rollout
    actions = torch.from_numpy(policy.to_environment(rollout.actions))
    with torch.no_grad():
        log_probs = policy.distribution(rollout.observations).log_prob(actions)
    return replace(rollout, actions=actions, log_probs=log_probs)


@pitfall(
    "tanh-without-its-jacobian",
    target="ppo_edu.control.networks.SquashedNormal.log_prob",
    mistake="the log-density of the Gaussian for that of its tanh: the logarithm of the Jacobian is missing",
    symptom="none in PPO's ratio, where it cancels; wrong wherever a log-probability stands alone, as in a sampled entropy",
    exposed_by="the density must integrate to 1 over the box",
)
def _without_jacobian(self, u):
    return Independent.log_prob(self, u)


@pitfall(
    "jacobian-rounds-to-zero",
    target="ppo_edu.control.networks.log_tanh_derivative",
    mistake="log(1 - tanh(u)^2) as it is written: from u = 9 on the bracket rounds to 0 and its logarithm is minus infinity",
    symptom="NaN once an action saturates; here in the first update, since the entropy is computed from such actions too",
    exposed_by="u = 20, where the right answer is near -38.6",
    discussed="https://github.com/didriknielsen/survae_flows/pull/12",
)
def _rounding_jacobian(u):
    return torch.log(1 - torch.tanh(u).square())


@pitfall(
    "statistics-moved-before-the-update",
    target="ppo_edu.control.ppo.improve",
    mistake="running statistics of the observations that take in a rollout before it is learned from: another policy acted",
    symptom="the first ratios of each update are not 1; the return does not show it",
    exposed_by="with normalised observations, every ratio of an update's first minibatch is 1",
)
def _statistics_first(state, rollout, config, remaining, advantage_fn, policy_loss_fn):
    state.policy.observe(rollout.observations[rollout.valid])
    return improve(state, rollout, config, remaining, advantage_fn, policy_loss_fn)


@pitfall(
    "variances-averaged",
    target="ppo_edu.control.normalization.RunningMoments.update",
    mistake="variances of batches averaged as if the batches had one mean: how far their means lie apart is left out",
    symptom="the scale is too small where the data drift, as they do while a policy learns",
    exposed_by="moments over batches against those of all rows at once",
)
def _variances_averaged(self, rows):
    squares = self.squares + (rows.double() - rows.double().mean(0)).square().sum(0)
    take_in(self, rows)
    self.squares.copy_(squares)


@pitfall(
    "rewards-centred",
    target="ppo_edu.control.normalization.RewardNormalizer.forward",
    mistake="rewards from which their mean is taken, too: that pays or charges for every step of an episode's length",
    symptom="where long episodes are good they are no longer sought, and where they are bad no longer avoided",
    exposed_by="the sign of every reward must stay",
    discussed="https://github.com/DLR-RM/stable-baselines3/issues/348",
)
def _rewards_centred(self, rewards, done, valid):
    scaled = scale_rewards(self, rewards, done, valid)
    return scaled - scaled[valid].mean()


@pitfall(
    "yardstick-runs-over-the-end",
    target="ppo_edu.control.normalization.RewardNormalizer.forward",
    mistake="a discounted sum for the scale of the rewards that is not set back at the end of an episode",
    symptom="the scale is that of one endless episode: on CartPole rewards come out too small at first and too large in the end",
    exposed_by="the scale against the returns of each episode by itself",
    discussed="https://github.com/openai/baselines/issues/538",
)
def _yardstick_runs_on(self, rewards, done, valid):
    return scale_rewards(self, rewards, torch.zeros_like(done), valid)


# The evaluation ---------------------------------------------------------------------------------------------------------


@pitfall(
    "first-to-finish",
    target="ppo_edu.control.evaluation.evaluate",
    mistake="the returns of whichever episodes end first: short ones are over-represented",
    symptom="where a long episode is a good one, the score is too low, and where it is a bad one too high",
    exposed_by="episodes of length 1 or 20 by the toss of a coin",
    discussed="https://github.com/chainer/chainerrl/issues/368",
)
def _first_to_finish(policy, env_id, *, episodes=100, seed=0, greedy=True):
    returns: list[float] = []
    with seeded(seed), closing(make_envs(env_id, min(episodes, 100))) as envs:
        observations, _ = envs.reset(seed=seed)
        running = np.zeros(envs.num_envs)
        while len(returns) < episodes:
            actions = greedy_or_sampled(policy, torch.from_numpy(observations).float(), greedy)
            observations, rewards, terminated, truncated, _ = envs.step(policy.to_environment(actions))
            running += rewards
            done = terminated | truncated
            returns += running[done].tolist()
            running[done] = 0.0
    return np.array(returns[:episodes])
