"""PPO on Gymnasium environments."""

from ppo_edu.control.evaluation import evaluate
from ppo_edu.control.networks import CategoricalPolicy, GaussianPolicy, Policy, SquashedGaussianPolicy, SquashedNormal, make_policy
from ppo_edu.control.normalization import ObservationNormalizer, RewardNormalizer, RunningMoments
from ppo_edu.control.ppo import PPOConfig, TrainResult, TrainState, load_policy, train
from ppo_edu.control.probes import Measurement, ProbeReport, probe
from ppo_edu.control.rollout import Collector, Rollout
from ppo_edu.control.text import TextEnv, distinct_bigrams, distinct_texts, register_text_env, sample_texts

__all__ = [
    "CategoricalPolicy",
    "Collector",
    "GaussianPolicy",
    "Measurement",
    "ObservationNormalizer",
    "PPOConfig",
    "Policy",
    "ProbeReport",
    "RewardNormalizer",
    "Rollout",
    "RunningMoments",
    "SquashedGaussianPolicy",
    "SquashedNormal",
    "TextEnv",
    "TrainResult",
    "TrainState",
    "distinct_bigrams",
    "distinct_texts",
    "evaluate",
    "load_policy",
    "make_policy",
    "probe",
    "register_text_env",
    "sample_texts",
    "train",
]
