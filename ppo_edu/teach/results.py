"""Results of runs too long for a chapter, stored with the package."""

import json
from importlib.resources import files
from typing import Any


def load_result(name: str) -> dict[str, Any]:
    """The stored result `name`, as `benchmarks/` wrote it, with the metadata of its run. Raises ValueError for an unknown name."""
    folder = files("ppo_edu.teach") / "data"
    path = folder / f"{name}.json"
    if not path.is_file():
        known = sorted(entry.name.removesuffix(".json") for entry in folder.iterdir() if entry.name.endswith(".json"))
        raise ValueError(f"name must be one of {known}, got {name!r}")
    return json.loads(path.read_text(encoding="utf-8"))
