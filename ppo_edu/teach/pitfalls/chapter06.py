"""Mistakes around the clipped objective: its one-sided form, the dual clip, value clipping."""

from collections.abc import Callable

import torch
from torch import Tensor

from ppo_edu.teach.pitfalls.catalogue import pitfall
from ppo_edu.teach.pitfalls.padding import kept

# g_form: what the objective of one sample may not exceed ---------------------------------------------------------------


@pitfall(
    "upper-limit-for-both-signs",
    target="g_form",
    mistake="(1 + eps) A for both signs: where A is negative, that limit cuts off everything below ratio 1 + eps",
    symptom="bad actions have no gradient at ratio 1; the policy learns from praise alone",
    exposed_by="A = -1 with eps = 0.2: the limit is -0.8, not -1.2",
)
def _upper_limit(clip_range: float, advantages: Tensor) -> Tensor:
    return (1 + clip_range) * advantages


@pitfall(
    "limits-swapped",
    target="g_form",
    mistake="the two limits exchanged: (1 - eps) A where A is positive, (1 + eps) A where it is negative",
    symptom="every sample is cut off before it has moved: at ratio 1 nothing has a gradient",
    exposed_by="at ratio 1 the objective must be A itself: g may not be smaller than A",
)
def _limits_swapped(clip_range: float, advantages: Tensor) -> Tensor:
    return torch.where(advantages >= 0, 1 - clip_range, 1 + clip_range) * advantages


@pitfall(
    "limit-without-the-advantage",
    target="g_form",
    mistake="the limit on the ratio, 1 + eps or 1 - eps, not yet multiplied by A",
    symptom="large advantages are cut off before the ratio has moved, small ones late and negative ones never",
    exposed_by="an advantage of 2",
)
def _bare_limit(clip_range: float, advantages: Tensor) -> Tensor:
    return torch.where(advantages >= 0, 1 + clip_range, 1 - clip_range)


@pitfall(
    "limit-of-the-absolute-advantage",
    target="g_form",
    mistake="(1 + eps) |A|: where A is negative, that limit lies above everything and never acts",
    symptom="bad actions die out unchecked; good ones are held",
    exposed_by="A = -1 with eps = 0.2: the limit is -0.8, not 1.2",
)
def _absolute_limit(clip_range: float, advantages: Tensor) -> Tensor:
    return (1 + clip_range) * advantages.abs()


# dual_clip: a floor under the objective of bad samples ------------------------------------------------------------------


def _dual_variant(objective: Callable[..., Tensor]) -> Callable:
    """A loss from the per-sample objective, a function of the two usual terms, the advantages and c."""

    def loss(log_probs: Tensor, old_log_probs: Tensor, advantages: Tensor, clip_range: float, dual_clip: float) -> Tensor:
        A, ratio = advantages.detach(), torch.exp(log_probs - old_log_probs.detach())
        clipped = ratio.clamp(1 - clip_range, 1 + clip_range)
        return -objective(ratio * A, clipped * A, A, dual_clip).mean()

    return loss


pitfall(
    "no-dual-clip",
    target="dual_clip",
    mistake="the plain clipped surrogate: the floor c * A is missing",
    symptom="one bad action whose ratio has exploded rules the gradient of its minibatch",
    exposed_by="ratio 5 with A = -1 and c = 3: no gradient may be left",
    discussed="https://arxiv.org/abs/1912.09729",
)(_dual_variant(lambda free, clipped, A, c: torch.minimum(free, clipped)))

pitfall(
    "dual-clip-on-good-samples-too",
    target="dual_clip",
    mistake="the floor c * A under *every* sample: where A is positive, c * A lies above both terms and the max always takes it",
    symptom="good actions have no gradient; the policy learns from punishment alone",
    exposed_by="ratio 1 with A = 1: the gradient is that of the plain clip",
)(_dual_variant(lambda free, clipped, A, c: torch.maximum(torch.minimum(free, clipped), c * A)))

pitfall(
    "dual-clip-on-good-samples-only",
    target="dual_clip",
    mistake="the floor under the samples with positive advantage instead of the negative ones",
    symptom="good actions have no gradient, and bad ones with exploded ratios still rule",
    exposed_by="ratio 1 with A = 1, and ratio 5 with A = -1",
)(
    _dual_variant(
        lambda free, clipped, A, c: torch.where(A > 0, torch.maximum(torch.minimum(free, clipped), c * A), torch.minimum(free, clipped))
    )
)

pitfall(
    "dual-clip-min-for-max",
    target="dual_clip",
    mistake="the smaller of the clipped surrogate and c * A where A is negative: a ceiling in place of a floor",
    symptom="bad actions have no gradient until their ratio exceeds c",
    exposed_by="ratio 1 with A = -1: the gradient is that of the plain clip",
)(
    _dual_variant(
        lambda free, clipped, A, c: torch.where(A < 0, torch.minimum(torch.minimum(free, clipped), c * A), torch.minimum(free, clipped))
    )
)

pitfall(
    "dual-clip-objective-not-negated",
    target="dual_clip",
    mistake="the objective itself instead of the loss: a minimiser would walk it downhill",
    symptom="the return falls from the first update on",
    exposed_by="the sign of the gradient at ratio 1",
)(
    _dual_variant(
        lambda free, clipped, A, c: -torch.where(A < 0, torch.maximum(torch.minimum(free, clipped), c * A), torch.minimum(free, clipped))
    )
)


# value_clip: the critic's loss with a clip ------------------------------------------------------------------------------


def _moved_by_at_most(values: Tensor, old_values: Tensor, clip_range: float) -> Tensor:
    return old_values + (values - old_values).clamp(-clip_range, clip_range)


def _value_variant(
    error: Callable[[Tensor, Tensor], Tensor] = torch.maximum,
    *,
    clip: Callable[[Tensor, Tensor, float], Tensor] = _moved_by_at_most,
    scale: float = 0.5,
    attached: bool = False,
) -> Callable:
    """A critic's loss from two squared errors, that of the value and that of the clipped value; what is given replaces the right part."""

    def loss(
        values: Tensor,
        returns: Tensor,
        old_values: Tensor | None = None,
        clip_range: float | None = None,
        mask: Tensor | None = None,
    ) -> Tensor:
        values, returns = kept(mask, values, returns)
        returns = returns if attached else returns.detach()
        free = (values - returns).square()
        if clip_range is None:
            return scale * free.mean()
        (old_values,) = kept(mask, old_values.detach())
        return scale * error(free, (clip(values, old_values, clip_range) - returns).square()).mean()

    return loss


pitfall(
    "value-clip-min-for-max",
    target="value_clip",
    mistake="the smaller of the two errors in place of the larger",
    symptom="a value that ran away from its target gets no gradient back, and one that runs towards it is not held",
    exposed_by="a value that has left the interval on the side away from its target",
    discussed="https://github.com/openai/baselines/issues/91",
)(_value_variant(torch.minimum))

pitfall(
    "value-clip-without-max",
    target="value_clip",
    mistake="the error of the clipped value alone, without the max: no gradient anywhere outside the interval",
    symptom="a value that ran away from its target gets no gradient back",
    exposed_by="a value that has left the interval on the side away from its target",
)(_value_variant(lambda free, clipped: clipped))

pitfall(
    "no-value-clip",
    target="value_clip",
    mistake="the plain squared error: the clip is missing",
    symptom="the critic moves as far in one update as its targets ask",
    exposed_by="a value that has left the interval towards a target further on: no gradient may be left",
)(_value_variant(lambda free, clipped: free))

pitfall(
    "value-clip-without-one-half",
    target="value_clip",
    mistake="the right loss without the factor 0.5, which doubles the weight of the critic",
    symptom="harmless alone; settings copied from elsewhere mean something else",
    exposed_by="one value inside the interval: the gradient is V - R",
)(_value_variant(scale=1.0))

pitfall(
    "value-clipped-around-zero",
    target="value_clip",
    mistake="the value itself clipped to [-c, c] instead of its change since the rollout",
    symptom="no critic with values beyond the clip range; explained variance stays low where returns are large",
    exposed_by="an old value far from 0",
)(_value_variant(clip=lambda values, old_values, clip_range: values.clamp(-clip_range, clip_range)))

pitfall(
    "value-targets-not-detached",
    target="value_clip",
    mistake="the right loss with the targets still attached: they move to meet the values",
    symptom="with returns = advantages + values the gradient cancels and the critic never learns",
    exposed_by="the gradient with respect to returns must be 0",
)(_value_variant(attached=True))


def _between_multiples(values: Tensor, old_values: Tensor, clip_range: float) -> Tensor:
    ends = old_values * (1 - clip_range), old_values * (1 + clip_range)
    return torch.minimum(torch.maximum(values, torch.minimum(*ends)), torch.maximum(*ends))


pitfall(
    "value-clipped-as-a-ratio",
    target="value_clip",
    mistake="the value clipped to old value * (1 - c, 1 + c), as if it were a ratio: the clip range has the units of the return",
    symptom="near 0 a value can hardly move, and far from 0 hardly anything holds it",
    exposed_by="an old value of 0",
    discussed="https://github.com/hill-a/stable-baselines/issues/216",
)(_value_variant(clip=_between_multiples))
