"""The plain side of `lm_vs_peers`: PPO on a language model as a textbook has it, from transformers' `generate` and autograd.

    python -m benchmarks.peers.plain_loop --workload FOLDER --updates 6

Two models (policy and value), a frozen reference, full-sequence forward passes, one Adam; on a GPU under bfloat16 autocast, with
float32 weights, log-softmax and losses. No tricks and no handicaps; what it leaves out (statistics, gradient clipping,
checkpoints, checks of its input) makes it cheaper. Independent of `ppo_edu`.
The last line printed is JSON; `benchmarks/lm_vs_peers.py` documents it.
"""

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import GPT2LMHeadModel, GPT2Model, PreTrainedTokenizerBase

from benchmarks.lm_workload import WordShare, Workload, load_workload, main
from benchmarks.metadata import now, peak_memory_mib, versions


class ValueModel(nn.Module):
    """A trunk of its own with one linear output per position."""

    def __init__(self, trunk: GPT2Model) -> None:
        super().__init__()
        self.trunk = trunk
        self.head = nn.Linear(trunk.config.n_embd, 1)

    def forward(self, **inputs: Tensor) -> Tensor:  # -> [B, T] float32
        return self.head(self.trunk(**inputs).last_hidden_state).squeeze(-1).float()


def response_log_probs(model: GPT2LMHeadModel, inputs: dict[str, Tensor], prompt_length: int, temperature: float) -> Tensor:
    """[B, N] float32: log-probability of each new token; the logits at position t speak about token t + 1."""
    logits = model(**inputs).logits[:, prompt_length - 1 : -1].float() / temperature
    targets = inputs["input_ids"][:, prompt_length:]
    return logits.log_softmax(-1).gather(-1, targets.unsqueeze(-1)).squeeze(-1)


def advantages_and_returns(rewards: Tensor, values: Tensor, gamma: float, lam: float) -> tuple[Tensor, Tensor]:
    """Generalised advantage estimates along the last axis; the response's end is the episode's end."""
    advantages, following = torch.zeros_like(rewards), torch.zeros_like(rewards[:, 0])
    for t in reversed(range(rewards.shape[1])):
        next_value = values[:, t + 1] if t + 1 < rewards.shape[1] else 0.0
        following = rewards[:, t] + gamma * next_value - values[:, t] + gamma * lam * following
        advantages[:, t] = following
    return advantages, advantages + values


def train(
    policy: GPT2LMHeadModel,
    reference: GPT2LMHeadModel,
    value_model: ValueModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: list[str],
    reward_fn: Callable[[list[str], list[str]], Tensor],
    work: Workload,
    updates: int,
) -> list[dict[str, float]]:
    """Train the policy in place; one row per update: seconds by phase and the mean reward."""
    torch.manual_seed(work.seed)
    device = work.device
    optimizer = torch.optim.Adam([*policy.parameters(), *value_model.parameters()], lr=work.learning_rate)
    rows = []
    for _ in range(updates):
        begun = now(device)

        chosen = [prompts[i] for i in torch.randperm(len(prompts))[: work.sequences]]
        encoded = tokenizer(chosen, padding=True, return_tensors="pt").to(device)
        prompt_length = encoded["input_ids"].shape[1]
        with torch.no_grad(), half_precision(device):
            sequences = policy.generate(
                **encoded, do_sample=True, temperature=work.temperature, top_k=0, top_p=1.0, max_new_tokens=work.new_tokens
            )
        generated = now(device)

        responses = sequences[:, prompt_length:]
        ended = (responses == tokenizer.eos_token_id).cumsum(1)
        mask = (ended - (responses == tokenizer.eos_token_id).long()) == 0  # up to the end token, itself included
        attention_mask = torch.cat([encoded["attention_mask"], mask.long()], dim=1)
        inputs = {
            "input_ids": sequences,
            "attention_mask": attention_mask,
            "position_ids": (attention_mask.cumsum(1) - 1).clamp(min=0),
        }
        with torch.no_grad():
            with half_precision(device):
                old_log_probs = response_log_probs(policy, inputs, prompt_length, work.temperature)
                ref_log_probs = response_log_probs(reference, inputs, prompt_length, work.temperature)
                old_values = value_model(**inputs)[:, prompt_length - 1 : -1] * mask
            scores = reward_fn(chosen, tokenizer.batch_decode(responses, skip_special_tokens=True)).to(device)
            rewards = -work.kl_coef * (old_log_probs - ref_log_probs) * mask
            rewards[torch.arange(len(rewards), device=device), mask.sum(1) - 1] += scores
            advantages, returns = advantages_and_returns(rewards, old_values, work.gamma, work.lam)
            kept = advantages[mask]
            advantages = (advantages - kept.mean()) / (kept.std() + 1e-8)
        scored = now(device)

        for _ in range(work.epochs):
            for rows_of_batch in torch.randperm(work.sequences, device=device).chunk(work.minibatches):
                part = {name: tensor[rows_of_batch] for name, tensor in inputs.items()}
                m = mask[rows_of_batch]
                with half_precision(device):
                    log_probs = response_log_probs(policy, part, prompt_length, work.temperature)
                    values = value_model(**part)[:, prompt_length - 1 : -1]
                ratio = (log_probs - old_log_probs[rows_of_batch]).exp()
                a = advantages[rows_of_batch]
                clipped = ratio.clamp(1 - work.clip_range, 1 + work.clip_range)
                policy_loss = -torch.min(ratio * a, clipped * a)[m].mean()

                old, target = old_values[rows_of_batch], returns[rows_of_batch]
                near = old + (values - old).clamp(-work.value_clip_range, work.value_clip_range)
                value_loss = 0.5 * torch.max((values - target) ** 2, (near - target) ** 2)[m].mean()

                loss = policy_loss + work.value_coef * value_loss
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
        ended_at = now(device)
        rows.append(
            {
                "total": ended_at - begun,
                "generation": generated - begun,
                "scoring": scored - generated,
                "update": ended_at - scored,
                "reward": float(scores.mean()),
            }
        )
    return rows


def half_precision(device: str) -> torch.autocast:
    """bfloat16 on a GPU, float32 on a CPU. Casts each weight once per block."""
    return torch.autocast(device, dtype=torch.bfloat16, enabled=device == "cuda")


def run(folder: Path, updates: int) -> dict:
    """Train `updates` updates on the workload in `folder`; seconds per update and memory."""
    work, tokenizer, prompts = load_workload(folder)
    before = peak_memory_mib(work.device)
    policy, reference = (GPT2LMHeadModel.from_pretrained(folder).to(work.device) for _ in range(2))
    value_model = ValueModel(GPT2LMHeadModel.from_pretrained(folder).transformer).to(work.device)
    reward_fn = WordShare()
    rows = train(policy, reference, value_model, tokenizer, prompts, reward_fn, work, updates)
    reward_fn.check(work, updates)
    return {
        "updates": rows,
        "memory_before_mib": before,
        "memory_peak_mib": peak_memory_mib(work.device),
        "versions": versions("torch", "transformers"),
    }


if __name__ == "__main__":
    main(run, __doc__)
