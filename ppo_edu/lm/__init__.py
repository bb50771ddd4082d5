"""PPO on language models, on Hugging Face transformers: from a corpus to a policy trained on preferences."""

from ppo_edu.lm.generation import generate
from ppo_edu.lm.models import PolicyWithValue, load_causal_lm, make_gpt2, sequence_log_probs
from ppo_edu.lm.ppo import LMPPOConfig, Sample, TrainResult, TrainState, train_ppo
from ppo_edu.lm.rewards import kl_loss, response_advantages, sequence_kl, token_rewards
from ppo_edu.lm.sequences import Responses, Sequences, decode, encode

__all__ = [
    "LMPPOConfig",
    "PolicyWithValue",
    "Responses",
    "Sample",
    "Sequences",
    "TrainResult",
    "TrainState",
    "decode",
    "encode",
    "generate",
    "kl_loss",
    "load_causal_lm",
    "make_gpt2",
    "response_advantages",
    "sequence_kl",
    "sequence_log_probs",
    "token_rewards",
    "train_ppo",
]
