"""Where measurements go: JSON in the package, and tables between markers in the README."""

import json
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"


def data_path(name: str) -> Path:
    """The file that `ppo_edu.teach.load_result(name)` reads."""
    return ROOT / "ppo_edu" / "teach" / "data" / f"{name}.json"


def write_json(result: dict[str, Any], path: Path) -> None:
    """Write a result as the data folder keeps them."""
    path.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


def lost_sides(result: dict[str, Any], path: Path) -> list[str]:
    """The sides that the result stored at `path` compares and `result` does not; both list them under "summary"."""
    stored = json.loads(path.read_text(encoding="utf-8"))["summary"] if path.exists() else {}
    return [side for side in stored if side not in result["summary"]]


def store(name: str, result: dict[str, Any], table: str, output: Path | None = None, readme: Path = README) -> bool:
    """Write a comparison to `output`, or to the package's data and its table to the README. Says what it did.

    False, and nothing written: without `output`, where the stored result has a side that this one lacks.
    """
    if output is not None:
        write_json(result, output)
        print(f"Written to {output}.")
        return True
    path = data_path(name)
    if lost := lost_sides(result, path):
        print(f"Not stored: the stored result compares {', '.join(lost)} too. Use --output to keep this one elsewhere.")
        return False
    write_json(result, path)
    shown = write_block(name, table, readme)
    print(f"Written to {path}{' and the README' if shown else ''}.")
    return True


def read_block(name: str, path: Path = README) -> str | None:
    """What stands between `<!-- name -->` and `<!-- /name -->`, stripped; None where the markers are not there."""
    parts = _split(name, path)
    return None if parts is None else parts[1].strip()


def write_block(name: str, content: str, path: Path = README) -> bool:
    """Put `content` between the markers. False, and nothing changed, where they are not there."""
    parts = _split(name, path)
    if parts is None:
        return False
    before, _, after = parts
    path.write_text(f"{before}<!-- {name} -->\n{content.strip()}\n<!-- /{name} -->{after}", encoding="utf-8")
    return True


def _split(name: str, path: Path) -> tuple[str, str, str] | None:
    text, begin, end = path.read_text(encoding="utf-8"), f"<!-- {name} -->", f"<!-- /{name} -->"
    if begin not in text or end not in text:
        return None
    before, rest = text.split(begin)
    inside, after = rest.split(end)
    return before, inside, after
