"""The line-up: a function of your own among the known mistakes of the one that it stands in for.

Exercise checkers know the functions that exercises ask for; the line-up knows every function of the package in which the
catalogue has a mistake. One that computes is called on hand-written numbers; one that acts (on environments, weights, texts) is
planted in the package while a scene of `ppo_edu.teach.scenes` is played.
"""

import inspect
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from ppo_edu.runs import seeded
from ppo_edu.teach.checks.engine import Call, Case, CheckResult, keyword_only, run_check, with_gradients
from ppo_edu.teach.pitfalls import PITFALLS, Pitfall, planted
from ppo_edu.teach.pitfalls.planting import right_function
from ppo_edu.teach.scenes import DETACHED, LEARNED, LOSSES, MORE, NUMBERS, SCENES, Scene

KNOWN = {
    of: [entry for entry in PITFALLS.values() if entry.replaces == of] for of in sorted({e.replaces for e in PITFALLS.values()} - {None})
}
"""The functions that can be asked about, by their dotted paths, with their known mistakes."""


def name_mistake(fn: Callable, of: str) -> CheckResult:
    """Compare `fn` with the package's function `of` (its dotted path), and, where they differ, with every known mistake of it.

    `fn` is called as the package calls its own function; optional arguments that it does not take are left out. The result is
    true where no difference was seen; else its `pitfall` is the known mistake that acts like `fn` everywhere, or None. What
    `fn` raises is reported. The caller's random state stays.

    Raises: ValueError for a function in which no mistake is known.
    """
    if not isinstance(of, str) or of not in KNOWN:
        raise ValueError(f"of must be one of {[*KNOWN]}, got {of!r}")
    right = right_function(KNOWN[of][0])
    scene = next((scene for beginning, scene in SCENES.items() if of.startswith(beginning)), None)
    cases, calls = _calls(fn, right) if scene is None else ([Case(scene.__doc__, {"seed": 0})], [_played(scene, of)])
    for call in calls:
        with seeded(0):
            result = run_check(of, fn, reference=right, cases=cases, pitfalls=KNOWN[of], call=call)
        if not result:
            break
    if result or not callable(fn):
        return result
    verdict = "It differs from the right one in a way that the catalogue does not know."
    if result.pitfall is not None:
        verdict = f"The check that exposes it: {result.pitfall.exposed_by}."
    return replace(result, report=f"{result.report}\n{verdict}")


def _calls(fn: Callable, right: Callable) -> tuple[list[Case], list[Call]]:
    """The right function's parameters, filled from `NUMBERS`, without the optional ones, with them, and with `MORE`; and how to call it.

    Losses are compared with their gradients.
    """
    parameters = inspect.signature(right).parameters
    given = {name: NUMBERS[name] for name in parameters if name in NUMBERS}
    required = {name: x for name, x in given.items() if parameters[name].default is inspect.Parameter.empty}
    optional = [("with all arguments", given)] if len(given) > len(required) else []
    cases = [Case(title, given | changes) for title, changes in [*optional, *MORE.get(right.__name__, [])]]
    call = keyword_only(*(name for name, parameter in parameters.items() if parameter.kind is parameter.KEYWORD_ONLY))
    cases = [Case("hand-written numbers", required), *(case for case in cases if _takes(fn, call, case))]
    differentiated = with_gradients(call, of=LEARNED)
    if right.__name__ in LOSSES:
        return cases, [differentiated]
    return cases, [call, differentiated] if right.__name__ in DETACHED else [call]


def _takes(fn: Callable, call: Call, case: Case) -> bool:
    """Whether `fn` has parameters for these arguments."""
    try:
        call(inspect.signature(fn).bind, case.arguments)
    except (TypeError, ValueError):  # it has not, or nobody can say
        return False
    return True


def _played(scene: Scene, of: str) -> Call:
    """A call that plays the scene with a function in the place of `of`."""

    def call(fn: Callable, arguments: dict[str, Any]) -> dict[str, Any]:
        with seeded(arguments["seed"]), planted(Pitfall("yours", of, "", "", "", fn)):
            return scene()

    return call
