"""Every coding exercise of every chapter: the folded solution passes its checker, and the attempt that the chapter starts from does not.

A solution runs on its own after the chapter's import cell, as it would for a reader who pastes it into the exercise's cell.
"""

import re
from dataclasses import dataclass
from pathlib import Path

import matplotlib as mpl
import pytest
import torch
from book_sources import CHAPTERS, code_cells, load

from ppo_edu.teach import checks

mpl.use("Agg")

CHECK = re.compile(r"^(check_\w+)\((\w+)\)$")


@dataclass(frozen=True)
class CodingExercise:
    chapter: Path
    heading: str
    attempt: str  # the source of the exercise's cell, without its last line
    checker: str
    function: str
    solution: str | None  # the code of the folded solution


def imports_of(path: Path) -> str:
    """The chapter's import cell: the first code cell after the one for Colab."""
    return code_cells(path)[1].source


def coding_exercises(path: Path) -> list[CodingExercise]:
    """One for each cell whose last line is check_NAME(FUNCTION), with the solution that follows under the same heading."""
    found, heading = [], ""
    for cell in load(path).cells:
        if cell.cell_type == "code":
            *attempt, last = cell.source.rstrip().splitlines() or [""]
            if match := CHECK.match(last):
                found.append([heading, "\n".join(attempt), *match.groups(), None])
            continue
        for part in re.split(r"^(?=#{1,3} )", cell.source, flags=re.M):
            if match := re.match(r"#{1,3} (.*)", part):
                heading = match.group(1)
            for fold in re.findall(r"^<details>\s*<summary>Solution.*?^</details>$", part, flags=re.M | re.S):
                blocks = list(re.findall(r"^```python\n(.*?)^```$", fold, flags=re.M | re.S))
                for exercise in found:
                    if exercise[0] == heading and exercise[4] is None:
                        defining = [block for block in blocks if re.search(rf"^(def {exercise[3]}\(|{exercise[3]} = )", block, flags=re.M)]
                        exercise[4] = "\n".join(blocks) if defining else None
    return [CodingExercise(path, *each) for each in found]


EXERCISES = [exercise for path in CHAPTERS for exercise in coding_exercises(path)]
each_exercise = pytest.mark.parametrize("exercise", EXERCISES, ids=lambda e: f"{e.chapter.stem[:2]}-{e.checker}")


def run(exercise: CodingExercise, source: str):
    """The function that a reader has after the import cell and `source`."""
    namespace = {"__name__": "__main__"}
    generator = torch.get_rng_state()
    try:
        exec(imports_of(exercise.chapter), namespace)
        exec(source, namespace)
        return namespace[exercise.function]
    finally:
        torch.set_rng_state(generator)
        mpl.rcdefaults()
        mpl.pyplot.close("all")


@pytest.mark.parametrize("path", CHAPTERS, ids=lambda path: path.stem)
def test_a_chapter_has_coding_exercises(path):
    assert len({exercise.checker for exercise in EXERCISES if exercise.chapter == path}) >= 2


@each_exercise
def test_the_checker_stands_in_the_import_cell(exercise):
    assert exercise.heading.startswith("Exercise "), exercise.heading
    assert exercise.checker in imports_of(exercise.chapter)


@each_exercise
def test_the_solution_passes(exercise):
    assert exercise.solution, f"the folded solution of {exercise.heading} has a python block that defines {exercise.function}"
    result = getattr(checks, exercise.checker)(run(exercise, exercise.solution))
    assert result.passed, repr(result)


@each_exercise
def test_the_attempt_does_not(exercise):
    result = getattr(checks, exercise.checker)(run(exercise, exercise.attempt))
    assert not result.passed


def test_every_checker_has_its_exercise():
    assert {f"check_{name}" for name in checks.CHECKERS} == {exercise.checker for exercise in EXERCISES}
