"""`python -m ppo_edu` is `ppo-edu`."""

import sys

from ppo_edu.cli import main

sys.exit(main())
