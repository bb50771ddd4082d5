"""Mistakes of reckoning with a GPU: bytes and operations of a token step, memory of what is trained, the sampler's other rounding."""

import torch
from torch import Tensor

from ppo_edu.teach.pitfalls.catalogue import pitfall

# token_step_seconds: the larger of bytes / bandwidth and operations / matrix rate -----------------------------------------


def _step(weights: int, bytes_per_number: int, sequences: int, cache_bytes: int) -> tuple[int, int]:
    """Bytes and operations of one token step."""
    return weights * bytes_per_number + sequences * cache_bytes, 2 * weights * sequences


@pitfall(
    "bounds-added",
    target="token_step_seconds",
    mistake="the sum of both times: reading and multiplying go on at once, so the longer one is the bound",
    symptom="a bound that a real run undercuts, by up to a factor of two",
    exposed_by="a step whose two times are equal",
)
def _bounds_added(weights: int, bytes_per_number: int, sequences: int, cache_bytes: int, *, bandwidth: float, matrix_rate: float) -> float:
    read, operations = _step(weights, bytes_per_number, sequences, cache_bytes)
    return read / bandwidth + operations / matrix_rate


@pitfall(
    "the-faster-bound",
    target="token_step_seconds",
    mistake="the smaller of both times; whatever takes longer is what one waits for",
    symptom="runs that look hopelessly slow beside their bound",
    exposed_by="one sequence on a device that multiplies fast",
)
def _the_faster_bound(
    weights: int, bytes_per_number: int, sequences: int, cache_bytes: int, *, bandwidth: float, matrix_rate: float
) -> float:
    read, operations = _step(weights, bytes_per_number, sequences, cache_bytes)
    return min(read / bandwidth, operations / matrix_rate)


@pitfall(
    "weights-read-per-sequence",
    target="token_step_seconds",
    mistake="a time in which each sequence reads all weights; they are read once for the whole batch",
    symptom="larger batches seem to gain nothing",
    exposed_by="two sequences without a cache",
)
def _weights_read_per_sequence(
    weights: int, bytes_per_number: int, sequences: int, cache_bytes: int, *, bandwidth: float, matrix_rate: float
) -> float:
    read, operations = _step(weights, bytes_per_number, 1, cache_bytes)
    return sequences * max(read / bandwidth, operations / matrix_rate)


@pitfall(
    "one-operation-per-weight",
    target="token_step_seconds",
    mistake="a time with one operation per weight and token; a multiplication and an addition are two",
    symptom="half of the matrix rate is called all of it",
    exposed_by="a batch that is bound by operations",
)
def _one_operation_per_weight(
    weights: int, bytes_per_number: int, sequences: int, cache_bytes: int, *, bandwidth: float, matrix_rate: float
) -> float:
    read, operations = _step(weights, bytes_per_number, sequences, cache_bytes)
    return max(read / bandwidth, operations / 2 / matrix_rate)


@pitfall(
    "cache-not-read",
    target="token_step_seconds",
    mistake="a time in which only the weights are read, and no keys and values",
    symptom="long texts slow down for no reason that the bound knows",
    exposed_by="a cache as large as the weights",
)
def _cache_not_read(
    weights: int, bytes_per_number: int, sequences: int, cache_bytes: int, *, bandwidth: float, matrix_rate: float
) -> float:
    read, operations = _step(weights, bytes_per_number, sequences, 0)
    return max(read / bandwidth, operations / matrix_rate)


@pitfall(
    "one-cache-for-all",
    target="token_step_seconds",
    mistake="a time in which the cache of one sequence is read for all of them",
    symptom="the bound of large batches is far too low",
    exposed_by="two sequences with a cache",
)
def _one_cache_for_all(
    weights: int, bytes_per_number: int, sequences: int, cache_bytes: int, *, bandwidth: float, matrix_rate: float
) -> float:
    _, operations = _step(weights, bytes_per_number, sequences, cache_bytes)
    return max((weights * bytes_per_number + cache_bytes) / bandwidth, operations / matrix_rate)


# state_bytes: weights, gradients, Adam's moments, reference, decoding copy ------------------------------------------------


@pitfall(
    "optimizer-of-frozen-weights",
    target="state_bytes",
    mistake="bytes with gradients and moments of all parameters, the frozen ones too",
    symptom="an adapter seems to save nothing but the reference",
    exposed_by="fewer trained parameters than parameters",
)
def _optimizer_of_frozen_weights(parameters: int, trained: int, *, own_reference: bool, decoding_copy: bool) -> int:
    return 16 * parameters + 4 * parameters * (not own_reference) + 2 * parameters * decoding_copy


@pitfall(
    "gradients-forgotten",
    target="state_bytes",
    mistake="bytes without the gradients (or with one of Adam's two moments): 8 per trained parameter where 12 are needed",
    symptom="out of memory in the first backward pass, or in the first step of the optimiser",
    exposed_by="any trained parameter",
)
def _gradients_forgotten(parameters: int, trained: int, *, own_reference: bool, decoding_copy: bool) -> int:
    return 4 * parameters + 8 * trained + 4 * parameters * (not own_reference) + 2 * parameters * decoding_copy


@pitfall(
    "half-precision-weights",
    target="state_bytes",
    mistake="bytes with weights and gradients of 2 bytes: then there are no master weights, and small steps are rounded away",
    symptom="the estimate is too low for a run that learns, or right for one that does not",
    exposed_by="full training without a decoding copy",
)
def _half_precision_weights(parameters: int, trained: int, *, own_reference: bool, decoding_copy: bool) -> int:
    return 2 * parameters + 10 * trained + 4 * parameters * (not own_reference) + 2 * parameters * decoding_copy


@pitfall(
    "reference-forgotten",
    target="state_bytes",
    mistake="bytes without the frozen reference, which is a whole model where no adapter can be switched off",
    symptom="out of memory before the first update, as the reference is copied",
    exposed_by="full training",
)
def _reference_forgotten(parameters: int, trained: int, *, own_reference: bool, decoding_copy: bool) -> int:
    return 4 * parameters + 12 * trained + 2 * parameters * decoding_copy


@pitfall(
    "adapter-with-a-second-model",
    target="state_bytes",
    mistake="bytes with a frozen copy as reference even where the model with its adapter off is the reference",
    symptom="twice the weights that an adapter needs",
    exposed_by="a model that is its own reference",
)
def _adapter_with_a_second_model(parameters: int, trained: int, *, own_reference: bool, decoding_copy: bool) -> int:
    return 8 * parameters + 12 * trained + 2 * parameters * decoding_copy


# truncated_surrogate: the clip around the recomputed policy, a truncated weight for the sampler's ------------------------


def _clipped(ratio: Tensor, advantages: Tensor, clip_range: float) -> Tensor:
    return torch.minimum(ratio * advantages, ratio.clamp(1 - clip_range, 1 + clip_range) * advantages)


@pitfall(
    "clip-around-the-sampler",
    target="truncated_surrogate",
    mistake="the clipped surrogate with ratios to the sampler and no weight: its rounding uses up part of the clip",
    symptom="the clip fraction is above 0 before the first step, and ratios at learning rate 0 are not 1",
    exposed_by="a policy that has not moved, and a sampler that was rounded",
)
def _clip_around_the_sampler(
    log_probs: Tensor, old_log_probs: Tensor, sampling_log_probs: Tensor, advantages: Tensor, *, clip_range: float, cap: float
) -> Tensor:
    return -_clipped(torch.exp(log_probs - sampling_log_probs), advantages, clip_range).mean()


@pitfall(
    "sampler-ignored",
    target="truncated_surrogate",
    mistake="the clipped surrogate with ratios to the recomputed policy and no weight, as if that policy had sampled",
    symptom="every ratio starts at 1, and the gradient is off by as much as the two policies differ: sampling_mismatch says by how much",
    exposed_by="a sampler that differs from the recomputed policy",
)
def _sampler_ignored(
    log_probs: Tensor, old_log_probs: Tensor, sampling_log_probs: Tensor, advantages: Tensor, *, clip_range: float, cap: float
) -> Tensor:
    return -_clipped(torch.exp(log_probs - old_log_probs), advantages, clip_range).mean()


@pitfall(
    "weight-upside-down",
    target="truncated_surrogate",
    mistake="a loss with the weight sampler / policy in place of policy / sampler",
    symptom="the mismatch is doubled where it should be taken out",
    exposed_by="a token that the sampler liked too much must count for less",
)
def _weight_upside_down(
    log_probs: Tensor, old_log_probs: Tensor, sampling_log_probs: Tensor, advantages: Tensor, *, clip_range: float, cap: float
) -> Tensor:
    weight = torch.exp(sampling_log_probs - old_log_probs).clamp(max=cap)
    return -(weight * _clipped(torch.exp(log_probs - old_log_probs), advantages, clip_range)).mean()


@pitfall(
    "weight-without-a-cap",
    target="truncated_surrogate",
    mistake="a loss with the full weight: one rare token can outweigh the batch",
    symptom="the gradient norm jumps now and then",
    exposed_by="a token that the sampler found far less likely than the policy",
)
def _weight_without_a_cap(
    log_probs: Tensor, old_log_probs: Tensor, sampling_log_probs: Tensor, advantages: Tensor, *, clip_range: float, cap: float
) -> Tensor:
    weight = torch.exp(old_log_probs - sampling_log_probs)
    return -(weight * _clipped(torch.exp(log_probs - old_log_probs), advantages, clip_range)).mean()


@pitfall(
    "mismatch-counted-twice",
    target="truncated_surrogate",
    mistake="a loss with ratios to the sampler and the weight besides, so that the mismatch enters twice",
    symptom="what counted too little without the weight counts too much with it",
    exposed_by="a policy that has not moved",
)
def _mismatch_counted_twice(
    log_probs: Tensor, old_log_probs: Tensor, sampling_log_probs: Tensor, advantages: Tensor, *, clip_range: float, cap: float
) -> Tensor:
    weight = torch.exp(old_log_probs - sampling_log_probs).clamp(max=cap)
    return -(weight * _clipped(torch.exp(log_probs - sampling_log_probs), advantages, clip_range)).mean()
