"""A reward model: a language model's trunk with one number at the end, fitted to comparisons."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoModel, PreTrainedModel, PreTrainedTokenizerBase

from ppo_edu.core.validation import check_count, check_like
from ppo_edu.lm.generation import check_context, context_length
from ppo_edu.lm.models import LOADING_ERRORS, check_vocabulary, first_line, load_whole, model_inputs
from ppo_edu.lm.preferences import PREFERENCE, Comparison
from ppo_edu.lm.rewards import last_token
from ppo_edu.lm.sequences import encode
from ppo_edu.lm.supervised import Callback, SupervisedConfig, SupervisedState, fit
from ppo_edu.runs import fingerprint, write_atomically

HEAD_NAME = "reward_head.safetensors"


class RewardModel(nn.Module):
    """A score for a prompt with its response: a linear head on the trunk's output at the last real token.

    `lm`: the causal LM whose trunk it becomes (the SFT model, copied beforehand if it is needed elsewhere). The head
    starts at zero. `offset` is subtracted: comparisons leave the zero of the scores open.
    """

    def __init__(self, lm: PreTrainedModel) -> None:
        super().__init__()
        self.trunk = lm.base_model
        self.head = nn.Linear(lm.config.hidden_size, 1, bias=False, device=lm.device, dtype=lm.dtype)
        nn.init.zeros_(self.head.weight)
        self.register_buffer("offset", torch.zeros((), device=lm.device))
        self.train(lm.training)

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        return self.head.weight.device

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Scores [B], float32, of sequences [B, L] with a bool mask [B, L]; padding may stand on either side."""
        hidden = self.trunk(**model_inputs(input_ids, attention_mask), use_cache=False).last_hidden_state
        return self.head(hidden[last_token(attention_mask)]).squeeze(-1).float() - self.offset

    @torch.no_grad()
    def scores(
        self, tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str], responses: Sequence[str], *, batch_size: int = 256
    ) -> Tensor:
        """Scores [B] of responses, each read to its end token, or to the end of the context where that comes first. Without dropout."""
        sequences = encode(tokenizer, prompts, responses, self.device)
        check_context(self.trunk, sequences.prompt_tokens.shape[1], 1)
        place = sequences.prompt_mask.sum(1, keepdim=True) + torch.arange(sequences.tokens.shape[1], device=self.device)
        sequences = replace(sequences, mask=sequences.mask & (place < context_length(self.trunk)))
        batches = [sequences.rows(index).trimmed() for index in torch.arange(len(sequences), device=self.device).split(batch_size)]
        was_training = self.training
        self.eval()
        try:
            return torch.cat([self(x.input_ids, x.attention_mask) for x in batches])
        finally:
            self.train(was_training)

    def reward_fn(self, tokenizer: PreTrainedTokenizerBase) -> Callable[[list[str], list[str]], Tensor]:
        """This model as the reward_fn(prompts, responses) -> [B] that `train_ppo` takes."""
        return lambda prompts, responses: self.scores(tokenizer, prompts, responses)

    def save_pretrained(self, path: str | Path) -> None:
        """Write a folder: the trunk as transformers has it, the head beside it."""
        path = Path(path)
        self.trunk.save_pretrained(path)
        state = {"head.weight": self.head.weight.detach().cpu(), "offset": self.offset.cpu()}
        write_atomically(path / HEAD_NAME, safetensors.torch.save(state))

    @classmethod
    def from_pretrained(cls, path: str | Path, *, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu") -> "RewardModel":
        """Read what `save_pretrained` wrote. Raises: ValueError where a file is missing or damaged."""
        path = Path(path)
        if not (path / HEAD_NAME).is_file():
            raise ValueError(f"path must be a folder written by RewardModel.save_pretrained, got {path}, which holds no {HEAD_NAME}")
        try:
            model = cls(load_whole(AutoModel, path, dtype))
            state = safetensors.torch.load_file(path / HEAD_NAME)
            model.head.load_state_dict({"weight": state["head.weight"]})
            model.offset.copy_(state["offset"])
        except LOADING_ERRORS as error:
            raise ValueError(f"path must be a folder written by RewardModel.save_pretrained, got {path}: {first_line(error)}") from error
        return model.to(device).eval()


def preference_loss(
    first: Tensor,  # [B] scores, keep autograd
    second: Tensor,  # [B]
    targets: Tensor,  # [B] 1 where the first was preferred, 0 where the second, 0.5 for a tie
) -> Tensor:
    r"""Negative log-likelihood of comparisons under Bradley-Terry.

        L = -mean(p * log sigmoid(d) + (1 - p) * log sigmoid(-d)),   d = first - second

    Source: Bradley & Terry 1952; Christiano et al. 2017 (arXiv:1706.03741), equation 1; ties count half for each there too.
    Returns: scalar. Raises: ValueError naming the argument.
    """
    check_like("first", first, second=second, targets=targets)
    return F.binary_cross_entropy_with_logits(first - second, targets)


def train_reward_model(
    model: RewardModel,
    tokenizer: PreTrainedTokenizerBase,
    comparisons: Sequence[Comparison],
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
    """Fit a reward model, in place, to comparisons. Its mean score over the responses it learned from becomes 0.

    Raises: ValueError for bad comparisons or a checkpoint of another run; FloatingPointError where the loss is not finite.

    Source: Ouyang et al. 2022 (arXiv:2203.02155), section 3.5, equation 1 (there for several responses at once).
    """
    config = SupervisedConfig(learning_rate=1e-3) if config is None else config
    check_vocabulary(model.trunk, tokenizer)
    prompts, firsts, seconds = ([getattr(x, name) for x in comparisons] for name in ("prompt", "first", "second"))
    sequences = encode(tokenizer, prompts * 2, firsts + seconds, model.device)  # the firsts, then the seconds
    check_context(model.trunk, sequences.prompt_tokens.shape[1], sequences.tokens.shape[1])
    targets = torch.tensor([PREFERENCE[x.preferred] for x in comparisons], device=model.device)

    def loss_fn(index: Tensor) -> Tensor:
        index = index.to(model.device)
        batch = sequences.rows(torch.cat([index, index + len(comparisons)])).trimmed()
        first, second = model(batch.input_ids, batch.attention_mask).chunk(2)
        return preference_loss(first, second, targets[index])

    preferred = [x.preferred for x in comparisons]
    identity = asdict(config) | {"comparisons": fingerprint(prompts + firsts + seconds + preferred)}
    state = fit(
        "lm-reward-model",
        model,
        loss_fn,
        len(comparisons),
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
    model.offset += model.scores(tokenizer, prompts * 2, firsts + seconds).mean()
    return state


@dataclass(frozen=True)
class RewardModelReport:
    """How well a reward model predicts comparisons that it has not seen."""

    accuracy: float  # share of the decided comparisons whose preferred response scores higher; equal scores count half
    loss: float  # negative log-likelihood per comparison, in nats; log 2 is guessing
    calibration_error: float  # mean |predicted - observed| over the bins, weighted by their size
    predicted: Tensor  # [bins] mean predicted probability that the first is preferred; NaN for an empty bin
    observed: Tensor  # [bins] share of the comparisons in which it was; a tie counts half
    counts: Tensor  # [bins]


@torch.no_grad()
def evaluate_reward_model(
    model: RewardModel, tokenizer: PreTrainedTokenizerBase, comparisons: Sequence[Comparison], *, bins: int = 10
) -> RewardModelReport:
    """Accuracy, loss and calibration on held-out comparisons. A predicted 70 % should come true in 70 % of the cases.

    Source: expected calibration error as in Guo et al. 2017 (arXiv:1706.04599), section 2.
    """
    check_count(bins=bins)
    prompts = [x.prompt for x in comparisons]
    difference = model.scores(tokenizer, prompts, [x.first for x in comparisons])
    difference = difference - model.scores(tokenizer, prompts, [x.second for x in comparisons])
    targets = torch.tensor([PREFERENCE[x.preferred] for x in comparisons], device=model.device)
    probability = torch.sigmoid(difference)
    decided = targets != 0.5
    if not decided.any():
        raise ValueError("comparisons must hold at least one that is not a tie")
    right = 0.5 + (targets - 0.5) * difference.sign()
    place = (probability * bins).long().clamp(max=bins - 1)
    counts = torch.bincount(place, minlength=bins)
    predicted = torch.bincount(place, weights=probability, minlength=bins) / counts
    observed = torch.bincount(place, weights=targets, minlength=bins) / counts
    gaps = torch.where(counts > 0, (predicted - observed).abs(), 0.0)
    return RewardModelReport(
        accuracy=float(right[decided].mean()),
        loss=float(F.binary_cross_entropy_with_logits(difference, targets)),
        calibration_error=float((gaps * counts).sum() / counts.sum()),
        predicted=predicted.cpu(),
        observed=observed.cpu(),
        counts=counts.cpu(),
    )
