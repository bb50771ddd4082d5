"""Mistakes around trust regions: how much old data is worth, the adaptive coefficient, the natural-gradient step."""

import torch
from torch import Tensor

from ppo_edu.teach.pitfalls.catalogue import pitfall
from ppo_edu.teach.pitfalls.padding import kept

# effective_sample_size: how many samples of the new policy the old ones are worth --------------------------------------


def _log_weights(log_probs: Tensor, old_log_probs: Tensor, mask: Tensor | None) -> Tensor:
    """log(new / old) of the samples that count, [n]."""
    log_probs, old_log_probs = kept(mask, log_probs, old_log_probs)
    return (log_probs - old_log_probs).flatten()


@pitfall(
    "importance-weights-upside-down",
    target="effective_sample_size",
    mistake="the effective sample size of the weights old / new, the ratio upside down",
    symptom="plausible numbers, ruled by the samples that the new policy has given up instead of those that it prefers",
    exposed_by="an action that the new policy prefers far more than the old one, and few times sampled",
)
def _weights_upside_down(log_probs: Tensor, old_log_probs: Tensor, *, mask: Tensor | None = None) -> Tensor:
    log_weights = -_log_weights(log_probs, old_log_probs, mask)
    return torch.exp(2 * torch.logsumexp(log_weights, 0) - torch.logsumexp(2 * log_weights, 0))


@pitfall(
    "weights-squared-before-they-are-normalised",
    target="effective_sample_size",
    mistake="one over the sum of the squared weights, without making the weights sum to 1 first",
    symptom="below 1 for any number of samples",
    exposed_by="n samples of ratio 1 are worth n",
)
def _not_normalised(log_probs: Tensor, old_log_probs: Tensor, *, mask: Tensor | None = None) -> Tensor:
    return torch.exp(-torch.logsumexp(2 * _log_weights(log_probs, old_log_probs, mask), 0))


@pitfall(
    "effective-share-for-effective-number",
    target="effective_sample_size",
    mistake="the effective *share* of the samples: their effective number divided by n",
    symptom="between 0 and 1; batches of different size look alike",
    exposed_by="n samples of ratio 1 are worth n",
)
def _share(log_probs: Tensor, old_log_probs: Tensor, *, mask: Tensor | None = None) -> Tensor:
    log_weights = _log_weights(log_probs, old_log_probs, mask)
    return torch.exp(2 * torch.logsumexp(log_weights, 0) - torch.logsumexp(2 * log_weights, 0)) / len(log_weights)


@pitfall(
    "weights-overflow",
    target="effective_sample_size",
    mistake="the right formula with the weights exponentiated one by one, which overflows for long sequences",
    symptom="NaN, and only once the policy has moved far: just when the number is needed",
    exposed_by="log-ratios of a hundred",
)
def _overflow(log_probs: Tensor, old_log_probs: Tensor, *, mask: Tensor | None = None) -> Tensor:
    weights = torch.exp(_log_weights(log_probs, old_log_probs, mask))
    return weights.sum().square() / weights.square().sum()


# kl_penalty_update: the coefficient of the KL penalty after an update ---------------------------------------------------


@pitfall(
    "coefficient-steered-away",
    target="kl_penalty_update",
    mistake="the rule in reverse: too large a KL *lowers* the coefficient",
    symptom="the first large step is followed by larger ones; or nothing moves and the coefficient grows for ever",
    exposed_by="a KL far above the target",
)
def _steers_away(coefficient: float, kl: float, target: float) -> float:
    if kl < target / 1.5:
        return coefficient * 2
    return coefficient / 2 if kl > target * 1.5 else coefficient


@pitfall(
    "no-band-around-the-target",
    target="kl_penalty_update",
    mistake="the rule without its band: the coefficient doubles or halves although the KL is near the target",
    symptom="the coefficient never rests and the KL swings around its target",
    exposed_by="a KL a little above the target",
)
def _no_band(coefficient: float, kl: float, target: float) -> float:
    if kl < target:
        return coefficient / 2
    return coefficient * 2 if kl > target else coefficient


@pitfall(
    "band-without-the-target",
    target="kl_penalty_update",
    mistake="the rule with the limits 1/1.5 and 1.5 in nats, instead of 1/1.5 and 1.5 times the target",
    symptom="the coefficient halves at every update, since a healthy KL is far below one nat",
    exposed_by="a KL of ten times the target",
)
def _absolute_band(coefficient: float, kl: float, target: float) -> float:
    if kl < 1 / 1.5:
        return coefficient / 2
    return coefficient * 2 if kl > 1.5 else coefficient


@pitfall(
    "band-and-factor-exchanged",
    target="kl_penalty_update",
    mistake="the rule with its constants exchanged: a band of 2 and a factor of 1.5",
    symptom="steers too, but more slowly and with a wider band; results are not those of the paper's rule",
    exposed_by="a KL of 1.8 times the target",
)
def _exchanged(coefficient: float, kl: float, target: float) -> float:
    if kl < target / 2:
        return coefficient / 1.5
    return coefficient * 1.5 if kl > target * 2 else coefficient


# natural_step: the KL-constrained step of TRPO --------------------------------------------------------------------------


def _scaled(direction: Tensor, fisher: Tensor, max_kl: float) -> Tensor:
    """The direction, stretched until 0.5 * step . F step = max_kl."""
    return (2 * max_kl / (direction @ fisher @ direction)).sqrt() * direction


def _right_step(gradient: Tensor, fisher: Tensor, max_kl: float) -> Tensor:
    """The right step, for the mistakes that only scale it."""
    return _scaled(torch.linalg.pinv(fisher, hermitian=True) @ gradient, fisher, max_kl)


@pitfall(
    "plain-gradient-in-a-kl-ball",
    target="natural_step",
    mistake="the plain gradient, stretched until it meets the KL constraint: the length is right, the direction is not",
    symptom="every update moves as far as it may and gains less; rare states hardly learn",
    exposed_by="a Fisher matrix that is not a multiple of the identity",
)
def _plain_direction(gradient: Tensor, fisher: Tensor, max_kl: float) -> Tensor:
    return _scaled(gradient, fisher, max_kl)


@pitfall(
    "fisher-not-inverted",
    target="natural_step",
    mistake="a step along F g instead of F^+ g",
    symptom="worse than the plain gradient: what is sensitive moves most",
    exposed_by="a diagonal Fisher matrix with two different entries",
)
def _not_inverted(gradient: Tensor, fisher: Tensor, max_kl: float) -> Tensor:
    return _scaled(fisher @ gradient, fisher, max_kl)


@pitfall(
    "half-of-the-kl-forgotten",
    target="natural_step",
    mistake="a step that is shorter by the square root of 2: the factor one half of the quadratic KL is missing",
    symptom="measured KL is half of the limit at every update",
    exposed_by="0.5 * step . F step must equal max_kl",
)
def _half_forgotten(gradient: Tensor, fisher: Tensor, max_kl: float) -> Tensor:
    return _right_step(gradient, fisher, max_kl) / 2**0.5


@pitfall(
    "kl-taken-for-a-length",
    target="natural_step",
    mistake="the natural direction scaled so that its *squared length*, not its KL, meets the limit",
    symptom="measured KL changes from update to update although the limit does not",
    exposed_by="a Fisher matrix that is not the identity",
)
def _euclidean_length(gradient: Tensor, fisher: Tensor, max_kl: float) -> Tensor:
    direction = torch.linalg.pinv(fisher, hermitian=True) @ gradient
    return (2 * max_kl) ** 0.5 * direction / direction.norm()


@pitfall(
    "inverse-of-a-singular-fisher",
    target="natural_step",
    mistake="an attempt to invert the Fisher matrix of a softmax table, which is singular",
    symptom="an error, or numbers of 1e15",
    exposed_by="logits that may be shifted together without changing a probability",
)
def _plain_inverse(gradient: Tensor, fisher: Tensor, max_kl: float) -> Tensor:
    return _scaled(torch.linalg.inv(fisher) @ gradient, fisher, max_kl)
