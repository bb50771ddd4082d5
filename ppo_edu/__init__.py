"""PPO from the ground up: the verified functions that every chapter of the course imports.

`ppo_edu` itself holds the mathematics (`ppo_edu.core`); the trainers live in `ppo_edu.control` and are imported on demand.
"""

from ppo_edu.core import *  # noqa: F403
from ppo_edu.core import __all__ as __all__
from ppo_edu.version import __version__ as __version__
