"""PPO on language models, on Hugging Face transformers: from a corpus to a policy trained on preferences."""

from ppo_edu.lm.corpus import (
    Example,
    addition_reward,
    distinct_n,
    gold_score,
    gold_sentiment,
    grammatical_share,
    make_reviews,
    make_sums,
    positive_share,
    review_prompts,
    review_responses,
    sum_prompts,
)
from ppo_edu.lm.evaluation import Evaluation, evaluate_policy
from ppo_edu.lm.generation import Decoder, generate
from ppo_edu.lm.memory import MemoryEstimate, memory_estimate
from ppo_edu.lm.models import PolicyWithValue, load_causal_lm, make_gpt2, sequence_log_probs
from ppo_edu.lm.pipeline import PipelineResult, make_review_comparisons, run_pipeline
from ppo_edu.lm.ppo import GPU_SETTINGS, LMPPOConfig, Sample, TrainResult, TrainState, train_ppo
from ppo_edu.lm.preferences import (
    Comparison,
    append_comparison,
    best_accuracy,
    load_comparisons,
    preference_probabilities,
    save_comparisons,
    simulate_annotator,
)
from ppo_edu.lm.reward_model import RewardModel, RewardModelReport, evaluate_reward_model, preference_loss, train_reward_model
from ppo_edu.lm.rewards import kl_loss, response_advantages, sequence_kl, token_rewards
from ppo_edu.lm.sequences import Responses, Sequences, decode, encode
from ppo_edu.lm.sft import perplexity, train_sft
from ppo_edu.lm.supervised import SupervisedConfig, SupervisedState
from ppo_edu.lm.tokenizer import train_tokenizer

__all__ = [
    "GPU_SETTINGS",
    "Comparison",
    "Decoder",
    "Evaluation",
    "Example",
    "LMPPOConfig",
    "MemoryEstimate",
    "PipelineResult",
    "PolicyWithValue",
    "Responses",
    "RewardModel",
    "RewardModelReport",
    "Sample",
    "Sequences",
    "SupervisedConfig",
    "SupervisedState",
    "TrainResult",
    "TrainState",
    "addition_reward",
    "append_comparison",
    "best_accuracy",
    "decode",
    "distinct_n",
    "encode",
    "evaluate_policy",
    "evaluate_reward_model",
    "generate",
    "gold_score",
    "gold_sentiment",
    "grammatical_share",
    "kl_loss",
    "load_causal_lm",
    "load_comparisons",
    "make_gpt2",
    "make_review_comparisons",
    "make_reviews",
    "make_sums",
    "memory_estimate",
    "perplexity",
    "positive_share",
    "preference_loss",
    "preference_probabilities",
    "response_advantages",
    "review_prompts",
    "review_responses",
    "run_pipeline",
    "save_comparisons",
    "sequence_kl",
    "sequence_log_probs",
    "simulate_annotator",
    "sum_prompts",
    "token_rewards",
    "train_ppo",
    "train_reward_model",
    "train_sft",
    "train_tokenizer",
]
