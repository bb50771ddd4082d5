"""Mistakes in the policy gradient: the score of a softmax, the reward-to-go, the mean over a batch of episodes."""

import torch
from torch import Tensor

from ppo_edu.teach.pitfalls.catalogue import pitfall

# score: the gradient of log pi(a) with respect to the logits, e_a - pi ------------------------------------------------


def _taken(logits: Tensor, action: int) -> Tensor:
    """e_a: 1 at the action taken, 0 elsewhere."""
    return torch.zeros_like(logits).index_fill(0, torch.tensor([action]), 1.0)


@pitfall(
    "score-of-the-taken-logit-only",
    target="score",
    mistake="e_a alone: the normaliser of the softmax, which depends on every logit, was not differentiated",
    symptom="all logits that were ever rewarded grow without end; the mean of the score is pi instead of 0",
    exposed_by="the mean score under pi is 0",
)
def _without_normaliser(logits: Tensor, action: int) -> Tensor:
    return _taken(logits, action)


@pitfall(
    "score-sign",
    target="score",
    mistake="pi - e_a, the gradient of -log pi: right for a loss, reversed for the score",
    symptom="ascent with it makes rewarded actions rarer",
    exposed_by="the entry of the action taken is positive",
)
def _score_sign(logits: Tensor, action: int) -> Tensor:
    return torch.softmax(logits, -1) - _taken(logits, action)


@pitfall(
    "gradient-of-the-probability",
    target="score",
    mistake="the gradient of pi(a) instead of log pi(a): the score times pi(a)",
    symptom="sampled and averaged, every action is weighted by pi twice: rare actions hardly learn, however good",
    exposed_by="a rare action has a score near 1 in its own entry",
)
def _probability_gradient(logits: Tensor, action: int) -> Tensor:
    pi = torch.softmax(logits, -1)
    return pi[action] * (_taken(logits, action) - pi)


@pitfall(
    "one-over-the-probability",
    target="score",
    mistake="1 / pi(a) at the action taken: the derivative with respect to the probability, not to the logits",
    symptom="steps explode on rare actions",
    exposed_by="no entry of a softmax's score is larger than 1",
)
def _one_over_probability(logits: Tensor, action: int) -> Tensor:
    return _taken(logits, action) / torch.softmax(logits, -1)


@pitfall(
    "sigmoid-for-softmax",
    target="score",
    mistake="e_a minus the sigmoid of the logits: sigmoids of several logits do not sum to 1",
    symptom="right for two logits of 0 only; elsewhere the score's mean is not 0, and the policy drifts even where all rewards are equal",
    exposed_by="the entries of the score sum to 0",
)
def _sigmoid(logits: Tensor, action: int) -> Tensor:
    return _taken(logits, action) - torch.sigmoid(logits)


# reward_to_go: G_t = sum_{k >= t} gamma^(k - t) r_k of one episode -----------------------------------------------------


def _backwards(rewards: Tensor, gamma: float) -> Tensor:
    returns, following = torch.zeros_like(rewards), torch.zeros(())
    for t in reversed(range(len(rewards))):
        following = rewards[t] + gamma * following
        returns[t] = following
    return returns


def _powers(rewards: Tensor, gamma: float) -> Tensor:
    """gamma^t [T]."""
    return torch.tensor([gamma**t for t in range(len(rewards))])


@pitfall(
    "rewards-so-far",
    target="reward_to_go",
    mistake="the sum run forwards: each step is credited with the rewards up to it, which it could no longer change",
    symptom="where the reward comes last, only the last action learns; else an agent that repeats what it did after luck",
    exposed_by="rewards 0, 0, 1: every step before the last must get some credit",
    discussed="https://github.com/PacktPublishing/Tensorflow-2-Reinforcement-Learning-Cookbook/issues/27",
)
def _forwards(rewards: Tensor, gamma: float) -> Tensor:
    return _backwards(rewards.flip(0), gamma).flip(0)


@pitfall(
    "reward-to-go-shifted-by-one",
    target="reward_to_go",
    mistake="the return of the *next* step: the reward that the action itself brought is left out",
    symptom="immediate rewards are credited to the action before; the last action of an episode learns nothing",
    exposed_by="an episode of one step returns its reward",
    discussed="https://github.com/openai/spinningup/issues/50",
)
def _shifted(rewards: Tensor, gamma: float) -> Tensor:
    return torch.cat([_backwards(rewards, gamma)[1:], torch.zeros(1)])


@pitfall(
    "whole-return-at-every-step",
    target="reward_to_go",
    mistake="the return of the whole episode at every step: the rewards before the action are in it",
    symptom="unbiased for the episode's discounted return, but each step carries noise from its past",
    exposed_by="the last step's return is the last reward",
    discussed="https://github.com/udacity/deep-reinforcement-learning/issues/42",
)
def _whole_return(rewards: Tensor, gamma: float) -> Tensor:
    return _backwards(rewards, gamma)[0].expand_as(rewards).clone()


@pitfall(
    "reward-to-go-undiscounted",
    target="reward_to_go",
    mistake="the plain sum of the rewards that follow: gamma was forgotten",
    symptom="another objective, in which a late reward is worth as much as an early one; larger variance",
    exposed_by="rewards 0, 0, 1 with gamma below 1",
)
def _undiscounted(rewards: Tensor, gamma: float) -> Tensor:
    return _backwards(rewards, 1.0)


@pitfall(
    "discounted-from-the-start",
    target="reward_to_go",
    mistake="gamma^t G_t: each reward is discounted from the start of the episode, not from the step",
    symptom="as a weight in REINFORCE it is right; as a target for the critic it calls late states worthless",
    exposed_by="the last step's return is the last reward, undiscounted",
    discussed="https://github.com/huggingface/deep-rl-class/issues/285",
)
def _from_the_start(rewards: Tensor, gamma: float) -> Tensor:
    return _powers(rewards, gamma) * _backwards(rewards, gamma)


# pooled_loss: minus the mean of log pi * weight over all real steps of a batch of episodes --------------------------------


@pitfall(
    "mean-within-each-trajectory-first",
    target="pooled_loss",
    mistake="the mean within each episode, then over episodes: a step of a short episode counts more than one of a long",
    symptom="the agent prefers short episodes: it follows the return per step, not the return",
    exposed_by="two episodes of different length",
)
def _within_first(log_probs: Tensor, weights: Tensor, mask: Tensor) -> Tensor:
    products = torch.where(mask, log_probs * weights, 0.0)
    return -(products.sum(0) / mask.sum(0)).mean()


@pitfall(
    "padding-in-the-count",
    target="pooled_loss",
    mistake="a mean whose sum leaves the padding out but whose count has it in",
    symptom="the step shrinks with the share of padding: one long episode in the batch makes all others learn slowly",
    exposed_by="a longer padding must change nothing",
)
def _padding_counted(log_probs: Tensor, weights: Tensor, mask: Tensor) -> Tensor:
    return -torch.where(mask, log_probs * weights, 0.0).mean()


@pitfall(
    "padding-trained-on",
    target="pooled_loss",
    mistake="the mean over everything, padding included: the mask was not used",
    symptom="steps that never happened are learned from",
    exposed_by="what stands in the padding must change nothing",
)
def _padding_used(log_probs: Tensor, weights: Tensor, mask: Tensor) -> Tensor:
    return -(log_probs * weights).mean()


@pitfall(
    "pooled-loss-sign",
    target="pooled_loss",
    mistake="the loss without its minus sign: an optimiser that descends it lowers the return",
    symptom="the return falls as soon as learning starts",
    exposed_by="one step with a positive weight: its log-probability must rise",
)
def _pooled_sign(log_probs: Tensor, weights: Tensor, mask: Tensor) -> Tensor:
    return torch.where(mask, log_probs * weights, 0.0).sum() / mask.sum()
