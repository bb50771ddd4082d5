"""The notation appendix names what exists: functions of ppo_edu.core and their arguments."""

import inspect
import re

import pytest
from book_sources import BOOK

import ppo_edu.core

ROWS = re.findall(r"^\|(.*?)\|(.*?)\|.*\|$", (BOOK / "notation.md").read_text(encoding="utf-8"), flags=re.M)
NAMES = sorted({name.lstrip(".") for _, column in ROWS for name in re.findall(r"`([^`]+)`", column)} - {"T", "N", "B"})

FUNCTIONS = {name: getattr(ppo_edu.core, name) for name in ppo_edu.core.__all__}
ARGUMENTS = {argument for f in FUNCTIONS.values() if callable(f) for argument in inspect.signature(f).parameters}


def test_the_table_was_read():
    assert len(NAMES) >= 25


@pytest.mark.parametrize("name", NAMES)
def test_name_exists(name):
    assert name in FUNCTIONS or name in ARGUMENTS
