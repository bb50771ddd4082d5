"""Supervised fine-tuning: learn to continue prompts as the examples do. Where every policy of this part starts."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ppo_edu.core import masked_mean
from ppo_edu.lm.corpus import Example
from ppo_edu.lm.generation import check_context
from ppo_edu.lm.models import PolicyWithValue, check_vocabulary, language_model, sequence_log_probs
from ppo_edu.lm.sequences import encode
from ppo_edu.lm.supervised import Callback, SupervisedConfig, SupervisedState, fit
from ppo_edu.runs import fingerprint


def train_sft(
    lm: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    examples: Sequence[Example],
    config: SupervisedConfig | None = None,
    *,
    seed: int = 0,
    callback: Callback | None = None,
    log_dir: str | Path | None = None,
    resume: str | Path | None = None,
    progress: bool = True,
    tensorboard: bool = False,
    checkpoint_every: int = 100,
) -> SupervisedState:
    r"""Train a causal LM, in place, to write the examples' responses after their prompts.

        L = -mean over all response tokens of log pi(y_t | x, y_<t)

    The end token is learned too, or the model would never stop; the prompt's own tokens are not.
    Raises: ValueError for bad examples or a checkpoint of another run; FloatingPointError where the loss is not finite.

    Source: Ouyang et al. 2022 (arXiv:2203.02155), section 3.5, step 1.
    """
    config = SupervisedConfig() if config is None else config
    check_vocabulary(lm, tokenizer)
    prompts, responses = [x.prompt for x in examples], [x.response for x in examples]
    sequences = encode(tokenizer, prompts, responses, lm.device)
    check_context(lm, sequences.prompt_tokens.shape[1], sequences.tokens.shape[1])

    def loss_fn(index: torch.Tensor) -> torch.Tensor:
        batch = sequences.rows(index.to(lm.device)).trimmed()
        return -masked_mean(sequence_log_probs(lm, batch), batch.mask)

    identity = asdict(config) | {"examples": fingerprint(prompts + responses)}
    return fit(
        "lm-sft",
        lm,
        loss_fn,
        len(sequences),
        config,
        identity,
        seed=seed,
        callback=callback,
        log_dir=log_dir,
        resume=resume,
        progress=progress,
        tensorboard=tensorboard,
        checkpoint_every=checkpoint_every,
    )


@torch.no_grad()
def perplexity(
    lm: PreTrainedModel | PolicyWithValue,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    responses: Sequence[str],
    *,
    batch_size: int = 256,
) -> float:
    r"""exp(-mean log pi(y_t | x, y_<t)) over all tokens of the responses, end tokens included. 1 is certainty.

    Source: Jelinek et al. 1977.
    """
    sequences = encode(tokenizer, prompts, responses, lm.device)
    check_context(language_model(lm), sequences.prompt_tokens.shape[1], sequences.tokens.shape[1])
    total = count = 0.0
    for index in torch.arange(len(sequences), device=lm.device).split(batch_size):
        batch = sequences.rows(index).trimmed()
        total += float(sequence_log_probs(lm, batch).sum())
        count += float(batch.mask.sum())
    return float(torch.exp(torch.tensor(-total / count)))
