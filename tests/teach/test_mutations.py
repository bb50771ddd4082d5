"""Our own tests, tested: with a known mistake of the mathematics planted, the ordinary tests of that function must fail."""

import os

import pytest

from tests.teach.mutants import HARMLESS, check_noticed, entries_of, outcome

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="each mistake is planted in a forked process")
ENTRIES = entries_of("core", "teach")


@pytest.fixture(scope="module")
def told():
    return outcome(entry.name for entry in ENTRIES)


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry.name)
def test_our_tests_notice_the_mistake(entry, told):
    check_noticed(entry, told["noticed"])


@pytest.mark.parametrize("path", dict.fromkeys(entry.replaces for entry in ENTRIES))
def test_the_tests_that_noticed_are_content_with_the_right_function(path, told):
    assert told["content"][path] == {"test": None, "error": None}


def test_a_variant_that_is_no_mistake_is_not_noticed():
    """What is noticed is noticed for what it computes, not for being planted. A pitfall like this one would be a hole in the tests."""
    noticed = outcome([HARMLESS.name])["noticed"]
    assert noticed == {HARMLESS.name: {"test": None, "error": None}}
    with pytest.raises(AssertionError, match=r"a hole in the tests of ppo_edu\.core\.advantages\.gae: none fails with harmless"):
        check_noticed(HARMLESS, noticed)


def test_a_variant_that_cannot_be_called_does_not_count_as_noticed():
    with pytest.raises(AssertionError, match="the variant itself is broken"):
        check_noticed(HARMLESS, {HARMLESS.name: {"test": "tests/core/test_kl.py::test_it", "error": "TypeError"}})
