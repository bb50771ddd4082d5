"""The built site, which the tests of test_site.py and test_browser.py read."""

import pytest
from book_sources import SITE, toc


@pytest.fixture(scope="session")
def site():
    if not (SITE / f"{toc()[0]}.html").is_file():
        pytest.fail("there is no built site: run `make book` first (`make test` does)", pytrace=False)
    return SITE
