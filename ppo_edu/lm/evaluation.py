"""Looking at a policy: what it writes, how good that is, how varied, and how far it went from where it started."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ppo_edu.lm.corpus import distinct_n
from ppo_edu.lm.generation import generate
from ppo_edu.lm.models import PolicyWithValue, sequence_log_probs
from ppo_edu.lm.rewards import sequence_kl
from ppo_edu.lm.sequences import decode


@dataclass(frozen=True)
class Evaluation:
    """One sampled response to each prompt, and what can be said of them together."""

    prompts: list[str]
    responses: list[str]
    scores: Tensor  # [B]
    kl: float  # mean of log pi - log pi_ref, nats per response
    perplexity: float  # of the responses under the reference, per token
    distinct_2: float  # different word pairs over all word pairs
    response_length: float  # tokens, the end token included
    ended: float  # share that came to an end

    @property
    def score(self) -> float:
        """Mean score."""
        return float(self.scores.mean())

    @property
    def positive(self) -> float:
        """Share of the responses with a score above 0."""
        return float((self.scores > 0).float().mean())


@torch.no_grad()
def evaluate_policy(
    policy: PreTrainedModel | PolicyWithValue,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    score_fn: Callable[[list[str], list[str]], Tensor],  # (prompts, responses) -> [B]
    *,
    reference: PreTrainedModel,
    max_new_tokens: int,
    temperature: float = 1.0,
    seed: int = 0,
) -> Evaluation:
    """Sample one response to each prompt and measure. The same seed gives the same responses.

    KL and perplexity are taken at the given temperature, as the samples are.
    Raises: ValueError as `generate` does.
    """
    generator = torch.Generator(policy.device).manual_seed(seed)
    responses = generate(policy, tokenizer, prompts, max_new_tokens=max_new_tokens, temperature=temperature, generator=generator)
    texts = decode(tokenizer, responses)
    ref_log_probs = sequence_log_probs(reference, responses, temperature=temperature)
    return Evaluation(
        prompts=list(prompts),
        responses=texts,
        scores=score_fn(list(prompts), texts).detach().float().cpu(),
        kl=float(sequence_kl(responses.log_probs, ref_log_probs, responses.mask).mean()),
        perplexity=float(torch.exp(-ref_log_probs.sum() / responses.mask.sum())),
        distinct_2=distinct_n(texts, 2),
        response_length=float(responses.lengths.float().mean()),
        ended=float(responses.ended.float().mean()),
    )
