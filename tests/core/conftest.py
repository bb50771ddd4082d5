"""Makes `core_helpers` importable beside the tests, and fixes Hypothesis to the same examples in every run."""

import sys
from pathlib import Path

from hypothesis import settings

sys.path.insert(0, str(Path(__file__).parent))  # pytest's importlib mode adds no folder of its own

settings.register_profile("ppo_edu", derandomize=True, deadline=None)
settings.load_profile("ppo_edu")
