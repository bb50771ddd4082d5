"""Mistakes between a language model and the arrays of PPO: the shift of the logits, the end token, positions under padding."""

import torch
from torch import Tensor

from ppo_edu.teach.pitfalls.catalogue import pitfall

# response_log_probs: log pi of each response token from the logits of the whole sequence --------------------------------


def _pick(log_probs: Tensor, tokens: Tensor) -> Tensor:
    return log_probs.gather(-1, tokens[:, :, None]).squeeze(-1)


@pitfall(
    "logits-not-shifted",
    target="response_log_probs",
    mistake="log-probabilities read at the position of the token itself: those logits predict the token after it",
    symptom="the ratio is 1 where both sides make the mistake, no error is raised, and nothing is learned",
    exposed_by="a case of two tokens computed by hand, or how often a response is sampled",
    discussed="https://github.com/AI-Hypercomputer/maxtext/issues/2103",
)
def _logits_not_shifted(logits: Tensor, input_ids: Tensor, prompt_length: int) -> Tensor:
    return _pick(torch.log_softmax(logits[:, prompt_length:], -1), input_ids[:, prompt_length:])


@pitfall(
    "tokens-not-shifted",
    target="response_log_probs",
    mistake="log-probabilities of the tokens that the model had just read, from the last of the prompt on",
    symptom="the prompt is trained and the end token never is",
    exposed_by="a case of two tokens computed by hand",
)
def _tokens_not_shifted(logits: Tensor, input_ids: Tensor, prompt_length: int) -> Tensor:
    rows = slice(prompt_length - 1, -1)
    return _pick(torch.log_softmax(logits[:, rows], -1), input_ids[:, rows])


@pitfall(
    "first-response-token-skipped",
    target="response_log_probs",
    mistake="the right log-probabilities from the second response token on: the slice begins one late",
    symptom="the first token, on which all others depend, is never trained",
    exposed_by="a response of one token",
    discussed="https://github.com/nlp-with-transformers/notebooks/issues/67",
)
def _first_token_skipped(logits: Tensor, input_ids: Tensor, prompt_length: int) -> Tensor:
    return _pick(torch.log_softmax(logits[:, prompt_length:-1], -1), input_ids[:, prompt_length + 1 :])


@pitfall(
    "logits-taken-for-log-probs",
    target="response_log_probs",
    mistake="the logits of the tokens: the log-softmax is missing",
    symptom="a gradient that raises the sampled tokens without lowering the others; logits grow without bound",
    exposed_by="a constant added to all logits may change nothing",
)
def _raw_logits(logits: Tensor, input_ids: Tensor, prompt_length: int) -> Tensor:
    return _pick(logits[:, prompt_length - 1 : -1], input_ids[:, prompt_length:])


@pitfall(
    "softmax-over-time",
    target="response_log_probs",
    mistake="a log-softmax over the positions instead of the vocabulary",
    symptom="numbers that look like log-probabilities and change when the text after them does",
    exposed_by="the probabilities of all tokens at one position sum to 1",
)
def _softmax_over_time(logits: Tensor, input_ids: Tensor, prompt_length: int) -> Tensor:
    return _pick(torch.log_softmax(logits[:, prompt_length - 1 : -1], 1), input_ids[:, prompt_length:])


@pitfall(
    "response-probabilities-without-log",
    target="response_log_probs",
    mistake="the probabilities of the tokens, not their logarithms",
    symptom="ratios exp(new - old) between 1/e and e whatever happens; the clip hardly ever acts",
    exposed_by="a log-probability is never above 0",
)
def _probabilities(logits: Tensor, input_ids: Tensor, prompt_length: int) -> Tensor:
    return _pick(torch.softmax(logits[:, prompt_length - 1 : -1], -1), input_ids[:, prompt_length:])


# response_mask: which columns belong to a response ----------------------------------------------------------------------


@pitfall(
    "end-token-dropped",
    target="response_mask",
    mistake="a mask that ends before the end token",
    symptom="stopping is an action that is never trained: responses run to the limit",
    exposed_by="the end token of a finished response must count",
    discussed="https://github.com/huggingface/trl/issues/1623",
)
def _end_token_dropped(tokens: Tensor, eos: int) -> Tensor:
    return (tokens == eos).cumsum(1) == 0


@pitfall(
    "end-token-taken-for-padding",
    target="response_mask",
    mistake="a mask of all tokens that differ from the end token, as one gets from comparing with a pad token that is the end token",
    symptom="stopping is never trained, and where something was written after the end, that counts",
    exposed_by="a finished response, padded with its end token",
    discussed="https://github.com/huggingface/trl/issues/976",
)
def _end_taken_for_padding(tokens: Tensor, eos: int) -> Tensor:
    return tokens != eos


@pitfall(
    "padding-after-the-end-kept",
    target="response_mask",
    mistake="a mask that is True everywhere",
    symptom="losses and diagnostics are averaged over padding: the shorter the responses, the less any number says of them",
    exposed_by="wider padding may change nothing",
)
def _everything_kept(tokens: Tensor, eos: int) -> Tensor:
    return torch.ones_like(tokens, dtype=torch.bool)


@pitfall(
    "cut-response-taken-for-empty",
    target="response_mask",
    mistake="the first end token found by argmax, which says 0 where there is none: a cut response keeps one token",
    symptom="the longest responses are hardly trained, and their score sits on their first token",
    exposed_by="a response without an end token",
)
def _argmax_without_end(tokens: Tensor, eos: int) -> Tensor:
    first = (tokens == eos).long().argmax(1, keepdim=True)
    return torch.arange(tokens.shape[1]) <= first


@pitfall(
    "up-to-the-last-end-token",
    target="response_mask",
    mistake="a mask up to the *last* end token of the row: padding with the end token counts as response",
    symptom="a finished response is made to end again and again; its log-probability depends on the padding",
    exposed_by="a short response, padded with the end token",
)
def _up_to_the_last_end(tokens: Tensor, eos: int) -> Tensor:
    is_end = tokens == eos
    ends_from_here = is_end.flip(1).cumsum(1).flip(1)
    return (ends_from_here > 0) | ~is_end.any(1, keepdim=True)


# position_ids: which position a token has, whatever stands before it ------------------------------------------------------


@pitfall(
    "padding-counted-as-positions",
    target="position_ids",
    mistake="the number of the column: padding before a prompt shifts its positions",
    symptom="the ratio is not 1 at learning rate 0 where prompts differ in length, on models with absolute positions",
    exposed_by="left padding may change no log-probability",
    discussed="https://github.com/CarperAI/trlx/issues/508",
)
def _column_numbers(attention_mask: Tensor) -> Tensor:
    return torch.arange(attention_mask.shape[1]).expand(attention_mask.shape)


@pitfall(
    "positions-from-one",
    target="position_ids",
    mistake="positions that start at 1: the sum over the mask includes the token itself",
    symptom="every text is read one position late; the longest falls off the end of the position table",
    exposed_by="the first token of a text without padding has position 0",
)
def _positions_from_one(attention_mask: Tensor) -> Tensor:
    return attention_mask.long().cumsum(1)


@pitfall(
    "padding-of-the-first-row",
    target="position_ids",
    mistake="positions with the padding of the first row subtracted in all rows",
    symptom="right for a batch of one prompt, wrong as soon as prompts differ in length",
    exposed_by="two prompts of different length",
)
def _padding_of_the_first_row(attention_mask: Tensor) -> Tensor:
    padding = int(attention_mask[0].long().argmax())
    return (torch.arange(attention_mask.shape[1]) - padding).clamp(min=0).expand(attention_mask.shape)
