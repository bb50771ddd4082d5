"""PPO on Gymnasium environments."""

from ppo_edu.control.evaluation import evaluate
from ppo_edu.control.networks import CategoricalPolicy, Policy, make_policy
from ppo_edu.control.ppo import PPOConfig, TrainResult, TrainState, load_policy, train
from ppo_edu.control.probes import ProbeReport, probe
from ppo_edu.control.rollout import Collector, Rollout

__all__ = [
    "CategoricalPolicy",
    "Collector",
    "PPOConfig",
    "Policy",
    "ProbeReport",
    "Rollout",
    "TrainResult",
    "TrainState",
    "evaluate",
    "load_policy",
    "make_policy",
    "probe",
    "train",
]
