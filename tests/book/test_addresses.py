"""The project's address stands in _config.yml; everything else is derived from it."""

import re
import subprocess

import pytest
from book_sources import BOOK, NOTEBOOKS, ROOT, code_cells, colab_cell, colab_link, config, load, repository, website

OWNER = repository().removeprefix("https://github.com/").split("/")[0]


def tracked_texts():
    """Every text file of the repository that a person wrote."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.split("\0")
    for name in filter(None, listed):
        path = ROOT / name
        if path.suffix in {".png", ".gif", ".webp", ".woff", ".js", ".safetensors"} or not path.is_file():
            continue
        yield path


def addresses(text: str) -> list[str]:
    """What in a text points at our own repository or web site, under whatever spelling.

    An owner named like ours anywhere under a GitHub, raw-GitHub, Colab, Binder or Pages host, or any
    address that ends in our repository's name, is ours.
    """
    name = repository().rsplit("/", 1)[1]
    return re.findall(
        rf"(?:https?://|git@|ssh://)[^\s\"'<>)\]`]*(?:\b{OWNER}\b|/{name}\b)[^\s\"'<>)\]`]*",
        text,
    )


def is_derived(address: str) -> bool:
    path = repository().removeprefix("https://github.com/")
    branch = config()["repository"]["branch"]
    allowed = (
        repository(),
        website().rstrip("/"),
        f"https://colab.research.google.com/github/{path}/blob/{branch}/",
        f"https://raw.githubusercontent.com/{path}/{branch}/",
    )
    address = address.rstrip(".,;:")
    return any(
        address == start or address.removesuffix(".git") == start or address.startswith(start.rstrip("/") + "/") for start in allowed
    )


def test_every_own_address_is_derived_from_the_config():
    wrong, seen = [], 0
    for path in tracked_texts():
        for address in addresses(path.read_text(encoding="utf-8", errors="ignore")):
            if path == ROOT / "tests/book/test_addresses.py":
                continue
            seen += 1
            if not is_derived(address):
                wrong.append(f"{path.relative_to(ROOT)}: {address}")
    assert not wrong, "\n".join(wrong)
    assert seen >= 2 + 2 * len(NOTEBOOKS)  # the config, and two in each notebook


@pytest.mark.parametrize(
    "forged",
    [
        "https://github.com/ppo-edu/other",
        "git+https://github.com/somebody/ppo-edu",
        "https://colab.research.google.com/github/ppo-edu/ppo-edu/blob/master/book/x.ipynb",
        "git@github.com:ppo-edu/ppo-edu",
        "https://github.com/ppo-edu/ppo-education",
    ],
)
def test_a_forged_address_is_found(forged):
    """Guards the test above: its search must see each of these, and call each wrong."""
    assert [a for a in addresses(f"see {forged} there") if not is_derived(a)]


def test_the_web_site_in_the_config_follows_from_the_repository():
    assert config()["html"]["baseurl"] == website()
    assert config()["sphinx"]["config"]["ogp_site_url"] == website()
    assert config()["repository"]["path_to_book"] == BOOK.name


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_the_notebook_opens_and_installs_in_colab(path):
    first = load(path).cells[0]
    assert first.cell_type == "markdown"
    assert first.source.startswith("# ")
    assert colab_link(path.name) in first.source.splitlines()
    assert code_cells(path)[0].source == colab_cell()


def test_readme_names_the_repository():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert repository() in readme
    assert f"git+{repository()}" in readme
    for link in re.findall(r"https://colab\.research\.google\.com/github/\S+?\.ipynb", readme):
        assert (BOOK / link.rsplit("/", 1)[1]).is_file(), link
