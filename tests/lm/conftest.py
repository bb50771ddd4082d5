"""Fixtures for the tests of `ppo_edu.lm`: a tokenizer, and tiny random models that speak its vocabulary."""

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))  # pytest's importlib mode adds no folder of its own

from lm_helpers import ARCHITECTURES, DEVICES, make_lm, make_tokenizer


@pytest.fixture(scope="session")
def tokenizer():
    """Ten words; <pad> is 0, <eos> 1. Shared by all tests: do not change it, ask `lm_helpers.make_tokenizer` for one of your own."""
    return make_tokenizer()


@pytest.fixture(params=list(ARCHITECTURES))
def architecture(request):
    """Each architecture by its name."""
    return request.param


@pytest.fixture
def lm(architecture):
    """A tiny random model of each architecture, fresh for every test, in eval mode."""
    return make_lm(architecture)


@pytest.fixture
def gpt2():
    """A tiny random GPT-2, fresh for every test, in eval mode."""
    return make_lm("gpt2")


@pytest.fixture(params=DEVICES)
def device(request):
    """The CPU and, where there is one, the GPU, which multiplies float32 in float32 here."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    yield torch.device(request.param)
    torch.set_float32_matmul_precision(before)


@pytest.fixture
def graphs(monkeypatch):
    """torch.compile without its code generator: the graphs that it traced so far, which run as they are. Seconds instead of minutes."""
    traced, compiler = [], torch.compile

    def backend(graph, inputs):
        traced.append(graph)
        return graph.forward

    monkeypatch.setattr(torch, "compile", lambda fn, *, dynamic, mode=None: compiler(fn, backend=backend, dynamic=dynamic))
    torch.compiler.reset()
    yield traced
    torch.compiler.reset()
