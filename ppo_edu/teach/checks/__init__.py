"""Exercise checkers: `check_NAME(your_function)` runs it on small cases, shows the smallest one that fails, and, where the
wrong answer is a known one, names the mistake.

A checker runs nothing but the function it is given, on copies of its cases; exceptions, wrong types and shapes, and changes to
the arguments are reported, not raised. It looks at the clock between cases and stops a slow function there.
"""

from collections.abc import Callable

from ppo_edu.teach.checks.chapter07 import check_annealed, check_explained_variance, check_valid_rows
from ppo_edu.teach.checks.engine import Case, CheckResult, run_check

__all__ = ["CHECKERS", "Case", "CheckResult", "check_annealed", "check_explained_variance", "check_valid_rows", "run_check"]

# By the name of the function that each one checks, which is also the `target` of its pitfalls.
CHECKERS: dict[str, Callable[[Callable], CheckResult]] = {
    name.removeprefix("check_"): globals()[name] for name in __all__ if name.startswith("check_")
}
