"""What an entry of the catalogue holds, and how it is entered."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

# Functions of exercises that the package has too: their wrong variants can stand in for the package's own.
TWINS = {
    "clipped_surrogate": "ppo_edu.core.objectives.clipped_surrogate_loss",
    "discounted_return": "ppo_edu.core.returns.discounted_return",
    "effective_sample_size": "ppo_edu.core.diagnostics.effective_sample_size",
    "entropy": "ppo_edu.core.objectives.entropy_bonus",
    "explained_variance": "ppo_edu.core.diagnostics.explained_variance",
    "gae": "ppo_edu.core.advantages.gae",
    "kl_estimate": "ppo_edu.core.kl.kl_estimate",
    "kl_loss": "ppo_edu.lm.rewards.kl_loss",
    "kl_penalty_update": "ppo_edu.teach.kl_penalty.kl_penalty_update",
    "masked_whitening": "ppo_edu.core.masking.whiten",
    "natural_step": "ppo_edu.teach.exact.natural_step",
    "policy_gradient": "ppo_edu.core.objectives.policy_gradient_loss",
    "position_ids": "ppo_edu.lm.sequences.position_ids",
    "preference_loss": "ppo_edu.lm.reward_model.preference_loss",
    "td_residual": "ppo_edu.core.returns.td_residual",
    "token_rewards": "ppo_edu.lm.rewards.token_rewards",
    "value_clip": "ppo_edu.core.objectives.value_loss",
}


@dataclass(frozen=True)
class Pitfall:
    """One mistake that real code has made."""

    name: str  # kebab-case, unique
    target: str  # the function that it is a wrong variant of: that of an exercise, or the dotted path of one of the package
    mistake: str  # completes "Your result equals ..."
    symptom: str  # what a training run shows
    exposed_by: str  # the check that tells it from the right function
    wrong: Callable[..., Any]  # the wrong variant, with the target's parameters
    discussed: str | None = None  # an issue thread or a paper where it was seen in public

    @property
    def replaces(self) -> str | None:
        """Dotted path of the package's function that `wrong` can stand in for; None where only an exercise has such a function."""
        return self.target if "." in self.target else TWINS.get(self.target)


PITFALLS: dict[str, Pitfall] = {}


def pitfall(
    name: str, *, target: str, mistake: str, symptom: str, exposed_by: str, discussed: str | None = None
) -> Callable[[Callable], Callable]:
    """Decorator that enters a wrong variant into the catalogue."""

    def enter(wrong: Callable) -> Callable:
        if name in PITFALLS:
            raise ValueError(f"name must be unique in the catalogue, got {name!r} twice")
        PITFALLS[name] = Pitfall(name, target, mistake, symptom, exposed_by, wrong, discussed)
        return wrong

    return enter


def pitfalls_of(target: str) -> list[Pitfall]:
    """The known mistakes in one function, in the order in which they were entered."""
    return [entry for entry in PITFALLS.values() if entry.target == target]
