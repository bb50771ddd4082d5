"""The catalogue of known mistakes: each entry is a minimal wrong variant of one function, with the symptom that betrays it.

The exercise checkers compare a reader's result with these variants, so that they can say *which* mistake it is.
Every variant has the signature of the function it gets wrong.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Pitfall:
    """One mistake that real code has made."""

    name: str  # kebab-case, unique
    target: str  # the function that it is a wrong variant of
    mistake: str  # completes "Your result equals ..."
    symptom: str  # what a training run shows
    exposed_by: str  # the check that tells it from the right function
    wrong: Callable[..., Any]  # the wrong variant, with the target's signature


PITFALLS: dict[str, Pitfall] = {}


def pitfall(name: str, *, target: str, mistake: str, symptom: str, exposed_by: str) -> Callable[[Callable], Callable]:
    """Decorator that enters a wrong variant into the catalogue."""

    def enter(wrong: Callable) -> Callable:
        if name in PITFALLS:
            raise ValueError(f"name must be unique in the catalogue, got {name!r} twice")
        PITFALLS[name] = Pitfall(name, target, mistake, symptom, exposed_by, wrong)
        return wrong

    return enter


def pitfalls_of(target: str) -> list[Pitfall]:
    """The known mistakes in one function, in the order in which they were entered."""
    return [entry for entry in PITFALLS.values() if entry.target == target]
