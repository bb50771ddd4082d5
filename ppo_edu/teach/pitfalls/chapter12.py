"""Mistakes in learning from comparisons: the loss of a pair, and where in a padded row its score is read."""

import torch
from torch import Tensor
from torch.nn import functional as F

from ppo_edu.teach.pitfalls.catalogue import pitfall

# preference_loss: negative log-likelihood of comparisons under Bradley-Terry ---------------------------------------------


@pitfall(
    "preferences-reversed",
    target="preference_loss",
    mistake="the loss with the difference turned round: it teaches to prefer what was rejected",
    symptom="held-out accuracy falls below one half, as far below as it should be above",
    exposed_by="one pair whose better response was preferred: the loss must be below log 2",
)
def _reversed(first: Tensor, second: Tensor, targets: Tensor) -> Tensor:
    return F.binary_cross_entropy_with_logits(second - first, targets)


@pitfall(
    "sigmoid-twice",
    target="preference_loss",
    mistake="a loss that takes probabilities for logits: the sigmoid is applied twice",
    symptom="the loss never falls below 0.313, and the scores run off while accuracy looks fine",
    exposed_by="a wide gap, which must cost next to nothing when it is right",
)
def _sigmoid_twice(first: Tensor, second: Tensor, targets: Tensor) -> Tensor:
    return F.binary_cross_entropy_with_logits(torch.sigmoid(first - second), targets)


@pitfall(
    "tie-counts-as-first",
    target="preference_loss",
    mistake="a loss in which a tie counts as a win of the first",
    symptom="whatever stands first scores higher; swapping the two sides of the data changes the model",
    exposed_by="a tie: swapping the two scores may not change the loss",
)
def _tie_as_first(first: Tensor, second: Tensor, targets: Tensor) -> Tensor:
    return F.binary_cross_entropy_with_logits(first - second, (targets >= 0.5).to(first.dtype))


@pitfall(
    "scores-judged-alone",
    target="preference_loss",
    mistake="a loss of each score by itself, the preferred one taken for good and the other for bad",
    symptom="the answers depend on the prompt more than on the response; a review of medium quality cannot be fitted",
    exposed_by="a constant added to both scores may change nothing",
)
def _judged_alone(first: Tensor, second: Tensor, targets: Tensor) -> Tensor:
    return F.binary_cross_entropy_with_logits(first, targets) + F.binary_cross_entropy_with_logits(second, 1 - targets)


@pitfall(
    "second-wins-ignored",
    target="preference_loss",
    mistake="a loss without its second half: comparisons that the second won count nothing",
    symptom="the scores drift apart without limit, first above second, and the loss goes to 0",
    exposed_by="a pair whose second was preferred",
)
def _second_ignored(first: Tensor, second: Tensor, targets: Tensor) -> Tensor:
    return -(targets * F.logsigmoid(first - second)).mean()


@pitfall(
    "log-of-sigmoid",
    target="preference_loss",
    mistake="the logarithm taken after the sigmoid: a wide gap rounds to 0 or 1 and its logarithm to minus infinity",
    symptom="training runs well for a while, then the loss is infinite or NaN",
    exposed_by="a gap of 120, whose loss is 120",
    discussed="https://github.com/deepspeedai/DeepSpeedExamples/issues/423",
)
def _log_of_sigmoid(first: Tensor, second: Tensor, targets: Tensor) -> Tensor:
    probability = torch.sigmoid(first - second)
    return -(targets * probability.log() + (1 - targets) * (1 - probability).log()).mean()


# last_token_score: the score of a whole response, read at its last real token ---------------------------------------------


@pitfall(
    "score-of-last-column",
    target="last_token_score",
    mistake="the score in the last column, whatever stands there",
    symptom="short responses are scored at a pad: their scores depend on how long the others in the batch are",
    exposed_by="padding on the right",
)
def _last_column(scores: Tensor, mask: Tensor) -> Tensor:
    return scores[:, -1]


@pitfall(
    "score-of-first-pad",
    target="last_token_score",
    mistake="the score one column after the end, at the first pad",
    symptom="only the longest responses are scored right; accuracy depends on the batch size",
    exposed_by="padding on the right",
)
def _first_pad(scores: Tensor, mask: Tensor) -> Tensor:
    positions = torch.arange(mask.shape[1])
    after = (torch.where(mask, positions, -1).amax(1) + 1).clamp(max=mask.shape[1] - 1)
    return scores.gather(1, after[:, None]).squeeze(1)


@pitfall(
    "number-of-tokens-taken-for-position",
    target="last_token_score",
    mistake="the score at the column that the number of tokens gives, as if all padding were on the right",
    symptom="fine until prompts of different length share a batch: then a token in the middle is scored",
    exposed_by="padding on the left",
    discussed="https://github.com/jingyaogong/minimind/issues/541",
)
def _count_as_position(scores: Tensor, mask: Tensor) -> Tensor:
    return scores.gather(1, mask.sum(1, keepdim=True) - 1).squeeze(1)


@pitfall(
    "mean-of-all-scores",
    target="last_token_score",
    mistake="the mean over all real tokens: the first ones have not read the response",
    symptom="accuracy is lower, most of all where a response turns round at its end",
    exposed_by="two tokens with different scores",
)
def _mean_score(scores: Tensor, mask: Tensor) -> Tensor:
    return torch.where(mask, scores, 0.0).sum(1) / mask.sum(1)
