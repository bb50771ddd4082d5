"""For all tests: one torch thread (equal bits in this process and in those that tests start), Hypothesis always the same examples."""

import signal
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import settings

sys.path.insert(0, str(Path(__file__).parent / "control"))  # control_helpers, which test_runs.py and test_cli.py use too

settings.register_profile("ppo_edu", derandomize=True, deadline=None)
settings.load_profile("ppo_edu")


@pytest.fixture(autouse=True, scope="session")
def _one_torch_thread_and_pythons_own_ctrl_c():
    torch.set_num_threads(1)
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:  # a shell that starts the tests in the background ignores it for them
        signal.signal(signal.SIGINT, signal.default_int_handler)
