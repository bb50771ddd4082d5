"""The notation appendix names what exists: functions of core, of lm and of the exact problems, their arguments, labels of equations."""

import inspect
import re

import pytest
from book_sources import BOOK, CHAPTERS, markdown

import ppo_edu.core
import ppo_edu.lm
from ppo_edu.control import PPOConfig
from ppo_edu.teach import exact

TEXT = (BOOK / "notation.md").read_text(encoding="utf-8")
ROWS = re.findall(r"^\|(.*?)\|(.*?)\|.*\|$", TEXT, flags=re.M)
PREFIX = r"^(~ppo_edu\.core\.|\.)?(exact\.)?"  # how the API pages are linked
MENTIONED = [re.sub(PREFIX, "", name) for _, column in ROWS for name in re.findall(r"`([^`]+)`", column)]
NAMES = sorted({*MENTIONED} - {"T", "N", "B"})

FUNCTIONS = {name: getattr(ppo_edu.core, name) for name in ppo_edu.core.__all__}
FUNCTIONS |= {name: f for name, f in vars(exact).items() if inspect.isfunction(f) or name in ("MDP", "Episodes")}
FUNCTIONS |= {name: getattr(ppo_edu.lm, name) for name in ppo_edu.lm.__all__}
CALLED = [*FUNCTIONS.values(), PPOConfig, ppo_edu.lm.PolicyWithValue.forward]
ARGUMENTS = {argument for f in CALLED if callable(f) for argument in inspect.signature(f).parameters}


def test_the_table_was_read():
    assert len(NAMES) >= 25


@pytest.mark.parametrize("name", NAMES)
def test_name_exists(name):
    assert name in FUNCTIONS or name in ARGUMENTS


def test_every_symbol_is_defined_somewhere():
    rows = [line for line in TEXT.splitlines() if re.match(r"\| *(\$|\|)", line)]
    labels = {label for path in CHAPTERS for label in re.findall(r"\$\$ \(([\w-]+)\)", markdown(path))}
    assert len(rows) >= 50
    for row in rows:
        target = re.search(r"\| \[[^]]+\]\(#?([^)]+)\) \|[^|]+\|$", row)
        assert target, row
        assert target.group(1) in labels or (BOOK / target.group(1)).is_file(), row
