"""Mistakes of PPO on language models: where the score lies, which way the KL pulls, what padding must not touch."""

from collections.abc import Callable

import torch
from torch import Tensor

from ppo_edu.core import kl_estimate, masked_mean
from ppo_edu.teach.pitfalls.catalogue import pitfall

# token_rewards: the score on the last real token, a KL penalty on each ----------------------------------------------------


def _penalties(log_probs: Tensor, ref_log_probs: Tensor, mask: Tensor, kl_coef: float) -> Tensor:
    return torch.where(mask, kl_coef * (log_probs - ref_log_probs), 0.0)


def _at(column: Tensor, scores: Tensor, mask: Tensor) -> Tensor:
    """The scores [B] in the given column [B, 1] of each row."""
    return torch.where(torch.arange(mask.shape[1]) == column, scores[:, None], 0.0)


def _last(mask: Tensor) -> Tensor:
    return mask.sum(1, keepdim=True) - 1


@pitfall(
    "score-on-the-first-pad",
    target="token_rewards",
    mistake="rewards with the score one step late, on the first padding token",
    symptom="only the longest responses are paid; the mask hides the rest, and the model learns to write long",
    exposed_by="the sum over the real tokens of a short response must hold its score",
    discussed="https://github.com/huggingface/trl/issues/3750",
)
def _score_on_the_first_pad(scores: Tensor, log_probs: Tensor, ref_log_probs: Tensor, mask: Tensor, *, kl_coef: float) -> Tensor:
    column = (_last(mask) + 1).clamp(max=mask.shape[1] - 1)
    return _at(column, scores, mask) - _penalties(log_probs, ref_log_probs, mask, kl_coef)


@pitfall(
    "score-in-the-last-column",
    target="token_rewards",
    mistake="rewards with the score in the last column of the batch, `[:, -1]`",
    symptom="every response but the longest of the batch goes unpaid",
    exposed_by="wider padding may change nothing",
)
def _score_in_the_last_column(scores: Tensor, log_probs: Tensor, ref_log_probs: Tensor, mask: Tensor, *, kl_coef: float) -> Tensor:
    rewards = -_penalties(log_probs, ref_log_probs, mask, kl_coef)
    rewards[:, -1] += scores
    return rewards


@pitfall(
    "score-on-every-token",
    target="token_rewards",
    mistake="rewards with the score on each token, so that a response of ten tokens is paid ten times",
    symptom="length follows the sign of the score: good responses grow, bad ones shrink",
    exposed_by="without a KL price the rewards of a response must sum to its score",
)
def _score_on_every_token(scores: Tensor, log_probs: Tensor, ref_log_probs: Tensor, mask: Tensor, *, kl_coef: float) -> Tensor:
    return torch.where(mask, scores[:, None], 0.0) - _penalties(log_probs, ref_log_probs, mask, kl_coef)


@pitfall(
    "kl-penalty-sign-reversed",
    target="token_rewards",
    mistake="rewards that pay for leaving the reference: the sign of the penalty, or its log-ratio, is turned round",
    symptom="the KL grows from the first update on, faster with a larger coefficient; text falls apart",
    exposed_by="a token that the policy likes more than the reference must cost something",
    discussed="https://github.com/nebuly-ai/optimate/issues/298",
)
def _kl_sign_reversed(scores: Tensor, log_probs: Tensor, ref_log_probs: Tensor, mask: Tensor, *, kl_coef: float) -> Tensor:
    return _at(_last(mask), scores, mask) + _penalties(log_probs, ref_log_probs, mask, kl_coef)


@pitfall(
    "kl-penalty-absolute",
    target="token_rewards",
    mistake="rewards with the absolute value of each log-ratio as penalty, which is no estimate of the KL divergence",
    symptom="a fine on every token that differs from the reference either way; the optimum is another policy",
    exposed_by="a token that the policy likes less than the reference must be paid back",
    discussed="https://github.com/huggingface/trl/issues/1161",
)
def _kl_absolute(scores: Tensor, log_probs: Tensor, ref_log_probs: Tensor, mask: Tensor, *, kl_coef: float) -> Tensor:
    return _at(_last(mask), scores, mask) - _penalties(log_probs, ref_log_probs, mask, kl_coef).abs()


@pitfall(
    "kl-penalty-without-coefficient",
    target="token_rewards",
    mistake="rewards whose penalty ignores kl_coef",
    symptom="the KL stays near 0 whatever the setting, and the score hardly rises",
    exposed_by="kl_coef 0 leaves the score alone",
)
def _kl_without_coefficient(scores: Tensor, log_probs: Tensor, ref_log_probs: Tensor, mask: Tensor, *, kl_coef: float) -> Tensor:
    return _at(_last(mask), scores, mask) - _penalties(log_probs, ref_log_probs, mask, 1.0)


@pitfall(
    "kl-penalty-on-padding",
    target="token_rewards",
    mistake="the right rewards on real tokens, with whatever stands in the padding left in",
    symptom="sums over rows and reward whitening depend on how far a response was padded",
    exposed_by="rewards of padding must be 0",
)
def _kl_on_padding(scores: Tensor, log_probs: Tensor, ref_log_probs: Tensor, mask: Tensor, *, kl_coef: float) -> Tensor:
    return _at(_last(mask), scores, mask) - kl_coef * (log_probs - ref_log_probs)


# masked_whitening: advantages of mean 0 and standard deviation 1 over the real tokens --------------------------------------


def _whitening_variant(
    statistics: Callable[[Tensor, Tensor], tuple[Tensor | float, Tensor]], *, zeroed: bool = True, epsilon: float = 1e-8
) -> Callable:
    """A whitening with the mean and the spread that `statistics` draws from all entries and the mask."""

    def whitening(x: Tensor, mask: Tensor | None = None, *, shift_mean: bool = True) -> Tensor:
        counts = torch.ones_like(x, dtype=torch.bool) if mask is None else mask
        mean, spread = statistics(x, counts)
        whitened = (x - mean) / (spread + epsilon) + (0.0 if shift_mean else mean)
        return torch.where(counts, whitened, 0.0) if zeroed else whitened

    return whitening


def _right_statistics(x: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    return x[mask].mean(), x[mask].std()


pitfall(
    "whitened-over-padding",
    target="masked_whitening",
    mistake="advantages whitened with the padding counted in, and masked afterwards",
    symptom="the mean of the real advantages is not 0, and the step size depends on the longest response of the batch",
    exposed_by="wider padding may change nothing",
    discussed="https://github.com/MarcoMeter/recurrent-ppo-truncated-bptt/issues/10",
)(_whitening_variant(lambda x, mask: (x.mean(), x.std())))


@pitfall(
    "whitened-with-padding-as-zeros",
    target="masked_whitening",
    mistake="advantages whitened with the padding counted as zeros",
    symptom="as with padding counted in, but harder to see: the padding looks harmless",
    exposed_by="the mean over the real tokens must be 0",
)
@_whitening_variant
def _padding_as_zeros(x: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    filled = torch.where(mask, x, 0.0)
    return filled.mean(), filled.std()


@pitfall(
    "whitened-per-response",
    target="masked_whitening",
    mistake="advantages whitened within each response",
    symptom="no response is better than another: the reward does not rise, whatever the reward model says",
    exposed_by="two responses, one good and one bad",
)
@_whitening_variant
def _per_response(x: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    counts = mask.sum(-1, keepdim=True)
    mean = torch.where(mask, x, 0.0).sum(-1, keepdim=True) / counts
    squares = torch.where(mask, (x - mean).square(), 0.0).sum(-1, keepdim=True)
    return mean, (squares / (counts - 1).clamp(min=1)).sqrt()


pitfall(
    "padding-not-zeroed-after-whitening",
    target="masked_whitening",
    mistake="the right numbers on real tokens, and numbers instead of zeros in the padding",
    symptom="harmless as long as everything that follows is masked; a plain mean later on is not",
    exposed_by="the padding must come out 0",
)(_whitening_variant(_right_statistics, zeroed=False))

pitfall(
    "whitening-without-shift",
    target="masked_whitening",
    mistake="advantages divided by their standard deviation, the mean left in",
    symptom="while the critic is off, every token of the batch is praised, or every one blamed",
    exposed_by="the mean over the real tokens must be 0",
)(_whitening_variant(lambda x, mask: (0.0, x[mask].std())))

pitfall(
    "spread-without-epsilon",
    target="ppo_edu.core.masking.whiten",
    mistake="advantages divided by their spread alone: where all are equal that is 0 / 0",
    symptom="NaN as soon as a batch, or a group of responses to one prompt, earns one and the same reward",
    exposed_by="a constant batch must whiten to 0",
    discussed="https://github.com/michaelnny/deep_rl_zoo/issues/17",
)(_whitening_variant(_right_statistics, epsilon=0.0))


# kl_loss: the KL to the reference as a term of the loss ----------------------------------------------------------------------


def _kl_variant(estimator: str | None = None, weighted: bool = True, detached: bool = True) -> Callable:
    """The loss on whole responses with another estimator (None: the one that is asked for), or another weight."""

    def loss(log_probs: Tensor, old_log_probs: Tensor, ref_log_probs: Tensor, mask: Tensor, *, kind: str = "k2") -> Tensor:
        total, old, reference = (torch.where(mask, x, 0.0).sum(1) for x in (log_probs, old_log_probs, ref_log_probs))
        weight = torch.exp(total - old) if weighted else torch.ones_like(total)
        weight = weight.detach() if detached else weight
        return (weight * kl_estimate(total, reference.detach(), estimator or kind)).sum() / mask.sum()

    return loss


pitfall(
    "k1-as-a-loss",
    target="kl_loss",
    mistake="k1 as the loss: on fresh samples its gradient is the score, whose mean is 0",
    symptom="a KL loss is logged and falls, and the KL is not held at all; the gradient is noisier than without it",
    exposed_by="one token where the policy sampled: the gradient is the log-ratio, not 1",
    discussed="https://arxiv.org/abs/2510.01555",
)(_kl_variant("k1"))

pitfall(
    "k3-as-a-loss",
    target="kl_loss",
    mistake="k3 as the loss: its gradient is that of the reverse divergence, KL(reference || policy)",
    symptom="training is healthy, and its end is not the tilted reference but another policy",
    exposed_by="the exact gradient of KL(policy || reference) on an enumerable language",
    discussed="https://github.com/verl-project/verl/pull/2953",
)(_kl_variant("k3"))

pitfall(
    "kl-loss-without-ratio",
    target="kl_loss",
    mistake="k2 without the ratio of the response: right for the first step on a batch, not after it",
    symptom="the more epochs on a batch, the further the KL term pulls in a direction of its own",
    exposed_by="a policy that has moved since it sampled",
    discussed="https://github.com/OpenRLHF/OpenRLHF/pull/1309",
)(_kl_variant(weighted=False))

pitfall(
    "kl-loss-weight-attached",
    target="kl_loss",
    mistake="the right value, with the gradient flowing through the ratio as well",
    symptom="the gradient gains half the squared log-ratio times the score: responses far from the reference are hit twice",
    exposed_by="the gradient at one token",
)(_kl_variant(detached=False))


@pitfall(
    "kl-loss-per-token",
    target="kl_loss",
    mistake="k2 of each token by itself: a token no longer answers for the KL of the tokens after it",
    symptom="the policy chooses its first tokens without counting how far the text after them strays from the reference",
    exposed_by="a response of two tokens",
)
def _kl_per_token(log_probs: Tensor, old_log_probs: Tensor, ref_log_probs: Tensor, mask: Tensor, *, kind: str = "k2") -> Tensor:
    log_probs, old_log_probs, ref_log_probs = (torch.where(mask, x, 0.0) for x in (log_probs, old_log_probs, ref_log_probs))
    weight = torch.exp((log_probs - old_log_probs).sum(1, keepdim=True)).detach()
    return masked_mean(weight * kl_estimate(log_probs, ref_log_probs.detach(), kind), mask)


# accumulated_loss: a batch computed in parts, the gradient as if it were whole ----------------------------------------------


@pitfall(
    "mean-of-part-means",
    target="accumulated_loss",
    mistake="the mean of the parts' means: a token in a part of few tokens weighs more",
    symptom="the gradient changes with the number of parts; nothing else shows it",
    exposed_by="two responses of different length, in one part and in two",
    discussed="https://github.com/ml-explore/mlx-lm/pull/1413",
)
def _mean_of_part_means(losses: Tensor, mask: Tensor, parts: int) -> Tensor:
    pairs = zip(losses.tensor_split(parts), mask.tensor_split(parts), strict=True)
    return torch.stack([masked_mean(x, kept) for x, kept in pairs]).mean()


@pitfall(
    "sum-of-part-means",
    target="accumulated_loss",
    mistake="the sum of the parts' means, not divided by anything",
    symptom="the gradient grows with the number of parts; clipping its norm hides it",
    exposed_by="one batch in one part and in two",
)
def _sum_of_part_means(losses: Tensor, mask: Tensor, parts: int) -> Tensor:
    pairs = zip(losses.tensor_split(parts), mask.tensor_split(parts), strict=True)
    return torch.stack([masked_mean(x, kept) for x, kept in pairs]).sum()


@pitfall(
    "mean-of-response-means",
    target="accumulated_loss",
    mistake="the mean over responses of their means: every response weighs the same, and its tokens less the longer it is",
    symptom="independent of the split, but another objective: long responses are learned from less per token",
    exposed_by="two responses of different length in one part",
    discussed="https://arxiv.org/abs/2503.20783",
)
def _mean_of_response_means(losses: Tensor, mask: Tensor, parts: int) -> Tensor:
    return (torch.where(mask, losses, 0.0).sum(1) / mask.sum(1)).mean()


@pitfall(
    "padding-in-the-mean",
    target="accumulated_loss",
    mistake="the sum over real tokens divided by all entries, padding included",
    symptom="the step shrinks when one response of the batch is long",
    exposed_by="a short and a long response in one part",
)
def _padding_in_the_mean(losses: Tensor, mask: Tensor, parts: int) -> Tensor:
    return torch.where(mask, losses, 0.0).mean()
