"""Mistakes of a trainer of language models: in texts as tensors, sampling, log-probabilities, rewards, the update.

`ppo_edu.lm` needs transformers, which the exercise checkers do without: it is imported where a variant runs.
"""

import math
import time
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ppo_edu.core import gae, masked_var, whiten
from ppo_edu.teach.pitfalls.catalogue import pitfall

# Texts as tensors -------------------------------------------------------------------------------------------------------


@pitfall(
    "prompts-padded-on-the-right",
    target="ppo_edu.lm.sequences.encode_prompts",
    mistake="prompts padded on the right: between a short prompt and its response there is a gap",
    symptom="short prompts get worse responses than long ones, and the more so the more their lengths differ",
    exposed_by="the last column of every prompt must be a token of it",
    discussed="https://github.com/huggingface/transformers/issues/26569",
)
def _padded_right(tokenizer, prompts, device="cpu"):
    from ppo_edu.lm.sequences import encode_prompts

    tokens, mask = encode_prompts(tokenizer, prompts, device)
    order = mask.long().argsort(dim=1, descending=True, stable=True)
    return tokens.gather(1, order), mask.gather(1, order)


@pitfall(
    "end-token-not-learned",
    target="ppo_edu.lm.sequences.encode",
    mistake="responses that are encoded without an end token that counts",
    symptom="after supervised training no response ends: all are cut at the limit",
    exposed_by="the end token of a response must count",
    discussed="https://github.com/huggingface/trl/issues/1623",
)
def _end_not_learned(tokenizer, prompts, responses, device="cpu"):
    from ppo_edu.lm.sequences import encode

    sequences = encode(tokenizer, prompts, responses, device)
    last = sequences.mask & ~torch.cat([sequences.mask[:, 1:], torch.zeros_like(sequences.mask[:, :1])], dim=1)
    return replace(sequences, mask=sequences.mask & ~last)


@pitfall(
    "mask-from-the-pad-token",
    target="ppo_edu.lm.generation.generate",
    mistake="sampled responses whose mask is made by comparing tokens with the pad token: where that is the end token, the end is lost",
    symptom="stopping is never trained and responses grow to the limit; with a pad token of its own nothing is wrong",
    exposed_by="the mask of a finished response, padded with its end token",
    discussed="https://github.com/huggingface/transformers/issues/23530",
)
def _mask_from_pad(policy, tokenizer, prompts, *, max_new_tokens, temperature=1.0, top_k=None, top_p=None, generator=None):
    from ppo_edu.lm.generation import generate

    settings = {"max_new_tokens": max_new_tokens, "temperature": temperature, "top_k": top_k, "top_p": top_p, "generator": generator}
    responses = generate(policy, tokenizer, prompts, **settings)
    mask = responses.tokens != tokenizer.pad_token_id
    return replace(responses, mask=mask, log_probs=torch.where(mask, responses.log_probs, 0.0))


# Sampling and log-probabilities -----------------------------------------------------------------------------------------


@pitfall(
    "log-probs-before-the-filters",
    target="ppo_edu.lm.generation.generate",
    mistake="sampling with temperature, top-k or top-p, and the log-probabilities of the distribution before them",
    symptom="the ratio is 1 where both sides make the mistake, but it is that of a policy that did not act",
    exposed_by="the frequency of the sampled tokens against the stored probabilities",
    discussed="https://github.com/PrimeIntellect-ai/prime-rl/pull/679",
)
def _before_the_filters(policy, tokenizer, prompts, *, max_new_tokens, temperature=1.0, top_k=None, top_p=None, generator=None):
    from ppo_edu.lm.generation import generate
    from ppo_edu.lm.models import sequence_log_probs

    settings = {"max_new_tokens": max_new_tokens, "temperature": temperature, "top_k": top_k, "top_p": top_p, "generator": generator}
    responses = generate(policy, tokenizer, prompts, **settings)
    model = getattr(policy, "model", policy)  # of a decoder
    return replace(responses, log_probs=sequence_log_probs(model, responses).detach())


@pitfall(
    "temperature-on-one-side",
    target="ppo_edu.lm.models.response_logits",
    mistake="logits that are not divided by the temperature that the responses were sampled with",
    symptom="the ratio is not 1 at learning rate 0; at temperature 1 nothing is wrong",
    exposed_by="learning rate 0 with a temperature other than 1",
    discussed="https://github.com/huggingface/trl/pull/3029",
)
def _without_temperature(model, sequences, *, temperature=1.0, dtype=torch.float32):
    from ppo_edu.lm.models import response_logits

    return response_logits(model, sequences, dtype=dtype)


@pitfall(
    "every-logit-one-late",
    target="ppo_edu.lm.models.response_logits",
    mistake="the logits at each token's own position: those predict the token after it",
    symptom="learning fails; where both sides of the ratio make the mistake it is 1 and no error is raised",
    exposed_by="a plain forward pass and a token computed by hand",
    discussed="https://github.com/lucidrains/PaLM-rlhf-pytorch/issues/31",
)
def _logits_late(model, sequences, *, temperature=1.0, dtype=torch.float32):
    from ppo_edu.lm.models import response_logits

    s = sequences
    longer = replace(s, tokens=F.pad(s.tokens, (0, 1)), mask=F.pad(s.mask, (0, 1), value=False))
    logits, values = response_logits(model, longer, temperature=temperature, dtype=dtype)
    return logits[:, 1:], None if values is None else values[:, :-1]


@pitfall(
    "first-token-never-trained",
    target="ppo_edu.lm.models.token_log_probs",
    mistake="log-probabilities of 0 for the first token of each response: the slice of the response begins one late",
    symptom="the token on which all others depend keeps its distribution",
    exposed_by="a response of one token",
    discussed="https://github.com/nlp-with-transformers/notebooks/issues/67",
)
def _first_token_out(logits: Tensor, tokens: Tensor, mask: Tensor) -> Tensor:
    log_probs = torch.log_softmax(logits, dim=-1).gather(-1, tokens.unsqueeze(-1)).squeeze(-1)
    return torch.where(mask & (torch.arange(mask.shape[1], device=mask.device) > 0), log_probs, 0.0)


@pitfall(
    "sigmoid-over-the-vocabulary",
    target="ppo_edu.lm.models.token_log_probs",
    mistake="the log of a sigmoid of each token's own logit: over the vocabulary these probabilities do not sum to 1",
    symptom="a sampled token rises or falls by itself: no other gives way when it rises",
    exposed_by="the probabilities of all responses sum to 1",
)
def _sigmoids(logits: Tensor, tokens: Tensor, mask: Tensor) -> Tensor:
    return torch.where(mask, F.logsigmoid(logits).gather(-1, tokens.unsqueeze(-1)).squeeze(-1), 0.0)


# Rewards and advantages -------------------------------------------------------------------------------------------------


@pitfall(
    "last-column-for-last-token",
    target="ppo_edu.lm.rewards.last_token",
    mistake="the last column of the batch taken for the last token of every response",
    symptom="every response but the longest of its batch is scored, or paid, at a pad",
    exposed_by="two responses of different length",
    discussed="https://github.com/huggingface/trl/issues/2778",
)
def _last_column(mask: Tensor) -> Tensor:
    return (torch.arange(mask.shape[1], device=mask.device) == mask.shape[1] - 1).expand(mask.shape)


@pitfall(
    "episode-runs-into-its-padding",
    target="ppo_edu.lm.rewards.response_advantages",
    mistake="advantages of responses that do not end with their last token: what the critic says of padding flows back",
    symptom="advantages depend on how far a response was padded",
    exposed_by="more padding, and something in it, may change nothing",
    discussed="https://github.com/alibaba/ROLL/pull/447",
)
def _into_padding(rewards: Tensor, values: Tensor, mask: Tensor, *, gamma: float, lam: float) -> Tensor:
    next_values = torch.cat([values[:, 1:], torch.zeros_like(values[:, :1])], dim=1)
    never = torch.zeros_like(mask)
    advantages = gae(*(x.detach().T for x in (rewards, values, next_values, never, never)), gamma=gamma, lam=lam).T
    return torch.where(mask, advantages, 0.0)


@pitfall(
    "kl-per-token",
    target="ppo_edu.lm.rewards.sequence_kl",
    mistake="the mean log-ratio over the tokens of a response, where the sum is the KL per sequence",
    symptom="a KL target, or a coefficient from a paper, is off by the length of the responses",
    exposed_by="two responses of different length, with the same log-ratio on each token",
    discussed="https://github.com/CarperAI/trlx/issues/438",
)
def _kl_per_token(log_probs: Tensor, ref_log_probs: Tensor, mask: Tensor) -> Tensor:
    return torch.where(mask, log_probs - ref_log_probs, 0.0).sum(1) / mask.sum(1)


# The update -------------------------------------------------------------------------------------------------------------


@pitfall(
    "reference-is-the-policy",
    target="ppo_edu.lm.ppo.start",
    mistake="a reference that is the policy itself, not a copy: it moves along",
    symptom="the KL is 0 from the first update to the last, whatever the policy does",
    exposed_by="the reference's weights after training",
    discussed="https://github.com/huggingface/trl/issues/2046",
)
def _reference_moves(policy, tokenizer, config, reference, seed, run):
    from ppo_edu.lm.ppo import start

    state = start(policy, tokenizer, config, reference, seed, run)
    if reference is None:
        state.reference = policy.lm
    return state


@pitfall(
    "dropout-in-the-update",
    target="ppo_edu.lm.ppo.improve",
    mistake="an update with dropout on, on responses that were sampled with it off",
    symptom="the ratio is not 1 at learning rate 0; the clip acts from the first step on",
    exposed_by="learning rate 0 with a model that has dropout",
    discussed="https://github.com/huggingface/trl/pull/3234",
)
def _dropout_on(state, batch, config):
    from ppo_edu.lm.ppo import improve

    state.policy.train()
    try:
        return improve(state, batch, config)
    finally:
        state.policy.eval()


@pitfall(
    "mean-of-micro-batch-means",
    target="ppo_edu.lm.ppo.improve",
    mistake="an update whose gradient is the mean of its micro-batches' means: a token among few weighs more than one among many",
    symptom="the gradient changes with the number of micro-batches; nothing else shows it",
    exposed_by="the weights after an update in one, two and four parts",
    discussed="https://github.com/PrimeIntellect-ai/prime-rl/pull/583",
)
def _micro_batch_means(state, batch, config):
    from ppo_edu.lm.ppo import STEP_COLUMNS, ppo_loss, split

    started = time.perf_counter()
    policy, optimizer, mask = state.policy, state.optimizer, batch.responses.mask
    kl_weight = state.kl_coefficient.value if config.kl_in == "loss" else 0.0
    if config.whiten_advantages:
        kl_weight = kl_weight / (masked_var(batch.advantages, mask).sqrt() + 1e-8)
        batch = replace(batch, advantages=whiten(batch.advantages, mask))
    orders = [torch.randperm(config.batch_size, generator=state.generator) for _ in range(config.epochs)]
    minibatches = [index for order in orders for index in order.tensor_split(config.minibatches)]
    steps = []
    for parts in split(batch.responses, minibatches, config.accumulation, config.sort_by_length):
        optimizer.zero_grad()
        numbers, deviations = [], []
        for part in map(batch.part, parts):
            loss, losses, largest = ppo_loss(policy, part, config, kl_weight)
            (loss / config.accumulation).backward()  # here: the tokens of the part are not counted
            numbers.append(torch.stack(losses))
            deviations.append(largest)
        grad_norm = nn.utils.clip_grad_norm_(policy.parameters(), config.max_grad_norm or math.inf)
        optimizer.step()
        steps.append([*torch.stack(numbers).mean(0).tolist(), float(grad_norm), max(map(float, deviations))])
    *last_epoch, _ = np.mean(steps[-config.minibatches :], axis=0).tolist()
    return {
        **dict(zip([*STEP_COLUMNS, "grad_norm"], last_epoch, strict=True)),
        "first_minibatch_ratio_deviation": steps[0][-1],
        "largest_ratio_deviation": max(step[-1] for step in steps),
        "seconds_update": time.perf_counter() - started,
    }
