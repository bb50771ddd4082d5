"""The errata appendix: every entry has a claim, a correction with a link to its proof, and a cell that shows it."""

import re

import pytest
from book_sources import BOOK, load, markdown

from ppo_edu.teach.pitfalls import PITFALLS

PATH = BOOK / "errata-of-tutorials.ipynb"
CLAIMS, BUGS = 27, 38  # the corrections that the page promises
CHAPTER = re.compile(r"\]\(\d\d-[a-z0-9-]+\.ipynb#[a-z0-9-]+\)")


def entries() -> list[tuple[str, str, list]]:
    """(heading, its prose, its code cells) of every third-level heading, in order."""
    found = []
    for cell in load(PATH).cells:
        if cell.cell_type == "code":
            if found:
                found[-1][2].append(cell)
            continue
        for part in re.split(r"^(?=#{2,3} )", cell.source, flags=re.M):
            heading, _, text = part.partition("\n")
            if heading.startswith("### "):
                found.append((heading.removeprefix("### "), text, []))
            elif found and not heading.startswith("## "):
                found[-1] = (found[-1][0], found[-1][1] + part, found[-1][2])
    return found


CORRECTIONS = [entry for entry in entries() if "*Claim:*" in entry[1]]
GROUPS = [entry for entry in entries() if re.search(r"^\d+\. \*\*", entry[1], flags=re.M)]


def printed(cells) -> str:
    return "".join(output.get("text", "") for cell in cells for output in cell.outputs)


def test_all_entries_are_there():
    assert len(CORRECTIONS) == CLAIMS
    assert len(CORRECTIONS) + len(GROUPS) == len(entries())
    numbers = [int(n) for _, text, _ in GROUPS for n in re.findall(r"^(\d+)\. \*\*", text, flags=re.M)]
    assert numbers == list(range(1, BUGS + 1))


@pytest.mark.parametrize(("heading", "text", "cells"), CORRECTIONS, ids=[entry[0] for entry in CORRECTIONS])
def test_a_claim_is_corrected_linked_and_shown(heading, text, cells):
    assert re.match(r"\s*\*Claim:\* .+\n\n\*True:\* ", text)
    assert CHAPTER.search(text), "link the section that proves it"
    source = "\n".join(cell.source for cell in cells)
    assert re.search(r"^ *assert ", source, flags=re.M)
    assert printed(cells)


def test_every_bug_links_what_is_right():
    bugs = [bug for _, text, _ in GROUPS for bug in re.split(r"^(?=\d+\. \*\*)", text, flags=re.M) if bug.strip()[:1].isdigit()]
    assert len(bugs) == BUGS
    assert [bug for bug in bugs if not CHAPTER.search(bug)] == []


def test_a_group_of_bugs_runs_them_beside_the_right_function():
    shown = [line.split()[-1] for _, _, cells in GROUPS for line in printed(cells).splitlines() if " | " in line]
    assert set(shown) - {"entry"} <= set(PITFALLS)
    table = load(PATH).cells[-1].outputs[0]["data"]["text/markdown"]
    assert set(re.findall(r"\*([a-z0-9-]+)\* \|", table)) == set(shown)  # and "entry", the head of both


def test_the_list_of_entries_names_each_once():
    contents = markdown(PATH).split("| theme |")[1].split("## What PPO climbs")[0]
    headings = re.findall(r"^#{2,3} (.+)$", markdown(PATH), flags=re.M)[1:]
    slugs = [re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings]
    assert re.findall(r"\]\(#([\w-]+)\)", contents) == slugs


def test_nobody_is_quoted_or_named():
    assert not re.search(r"https?://(?!arxiv\.org|doi\.org|colab\.research)", markdown(PATH))
