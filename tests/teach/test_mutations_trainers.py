"""As test_mutations.py, for the trainers: what is wrong in a policy, a rollout, a batch, a response, an update."""

import os

import pytest

from tests.teach.mutants import check_noticed, entries_of, outcome

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="each mistake is planted in a forked process")
ENTRIES = entries_of("control", "lm")


@pytest.fixture(scope="module")
def told():
    return outcome(entry.name for entry in ENTRIES)


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry.name)
def test_our_tests_notice_the_mistake(entry, told):
    check_noticed(entry, told["noticed"])


@pytest.mark.parametrize("path", dict.fromkeys(entry.replaces for entry in ENTRIES))
def test_the_tests_that_noticed_are_content_with_the_right_function(path, told):
    assert told["content"][path] == {"test": None, "error": None}
