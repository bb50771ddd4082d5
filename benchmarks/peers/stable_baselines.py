"""The stable-baselines3 and the sbx side of `cartpole_vs_peers`: one interface, PyTorch behind the one, JAX behind the other.

    python -m benchmarks.peers.stable_baselines stable_baselines3 --seed 0 --max-steps 100000

sbx lives in an environment of its own, which needs nothing of this package's:

    python3 -m venv /tmp/sbx-env
    /tmp/sbx-env/bin/pip install torch==2.13.0 sbx-rl gymnasium
    /tmp/sbx-env/bin/python -m benchmarks.peers.stable_baselines sbx --seed 0 --max-steps 100000

What is timed: `learn`, without the evaluations. What is not: building the model, and compiling. Every sbx model is compiled
anew, so the one that races runs one update first and is then put back to its start.
"""

import importlib
import sys
from contextlib import suppress

import numpy as np
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env

from benchmarks import cartpole_race as zoo
from benchmarks.cartpole_race import Outcome, Race, main

PACKAGES = {"stable_baselines3": ("stable-baselines3", "torch"), "sbx": ("sbx-rl", "jax")}


class Check(BaseCallback):
    """Asks the race after each update whether it is over."""

    def __init__(self, race: Race) -> None:
        super().__init__()
        self.race = race

    def over(self) -> bool:
        return self.race.over(self.num_timesteps, lambda observations: self.model.predict(observations, deterministic=True)[0])

    def _on_step(self) -> bool:
        return True

    def _on_rollout_start(self) -> None:  # after the update of the previous rollout
        if self.over():
            raise StopIteration


def make_model(library: str, seed: int) -> BaseAlgorithm:
    """The library's PPO with the shared settings; its defaults are the zoo's in all that is not named here."""
    return importlib.import_module(library).PPO(
        "MlpPolicy",
        make_vec_env("CartPole-v1", n_envs=zoo.NUM_ENVS, seed=seed),
        n_steps=zoo.NUM_STEPS,
        batch_size=zoo.NUM_ENVS * zoo.NUM_STEPS,
        n_epochs=zoo.EPOCHS,
        gamma=zoo.GAMMA,
        gae_lambda=zoo.LAM,
        ent_coef=zoo.ENTROPY_COEF,
        vf_coef=zoo.VALUE_COEF,
        max_grad_norm=zoo.MAX_GRAD_NORM,
        learning_rate=lambda remaining: zoo.LEARNING_RATE * remaining,
        clip_range=lambda remaining: zoo.CLIP_RANGE * remaining,
        seed=seed,
        device="cpu",
    )


def compile_update(model: BaseAlgorithm, seed: int) -> None:
    """Run one rollout and update of an sbx model, so that its functions are compiled, and put the model back to its start."""
    policy = model.policy
    start = {name: getattr(policy, name) for name in ("actor_state", "vf_state", "key", "noise_key")}  # JAX's arrays are immutable
    model.learn(zoo.NUM_ENVS * zoo.NUM_STEPS)
    model.vf.apply(policy.vf_state.params, np.zeros((1, 4), dtype=np.float32))  # what a time limit is bootstrapped with
    for name, state in start.items():
        setattr(policy, name, state)
    model.set_random_seed(seed)  # of the environments too, which the next `learn` resets


def run(library: str, seed: int, max_steps: int) -> Outcome:
    """One training with the library's PPO."""
    model = make_model(library, seed)
    if library == "sbx":
        compile_update(model, seed)
    check = Check(Race(seed, max_steps))
    with suppress(StopIteration):
        model.learn(max_steps, callback=check)
        check.over()  # after the last update
    return check.race.outcome()


if __name__ == "__main__":
    library, *arguments = sys.argv[1:]
    main(lambda seed, max_steps: run(library, seed, max_steps), *PACKAGES[library], argv=arguments)
