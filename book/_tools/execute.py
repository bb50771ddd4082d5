"""Re-execute the book's notebooks in place, leaving nothing in them that changes from run to run.

Usage: python book/_tools/execute.py [NOTEBOOK ...]     (none given: all of book/)
"""

import base64
import io
import sys
import time
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from PIL import Image

BOOK = Path(__file__).resolve().parents[1]


def execute(path: Path) -> float:
    """Run one notebook top to bottom in a fresh kernel and save it. Returns seconds."""
    notebook = nbformat.read(path, as_version=4)
    start = time.perf_counter()
    NotebookClient(
        notebook,
        timeout=600,
        kernel_name="python3",
        resources={"metadata": {"path": str(path.parent)}},
        record_timing=False,
        coalesce_streams=True,
    ).execute()
    strip(notebook)
    shrink_figures(notebook)
    nbformat.validate(notebook)
    nbformat.write(notebook, path)
    return time.perf_counter() - start


def strip(notebook) -> None:
    """Keep what a reader sees; drop versions, timings, widget state and editor's traces."""
    notebook.metadata = nbformat.from_dict(
        {
            "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
            "language_info": {"name": "python"},
        }
    )
    for cell in notebook.cells:
        kept = {name: cell.metadata[name] for name in ("tags", "mystnb") if name in cell.metadata}
        cell.metadata = nbformat.from_dict(kept)


def shrink_figures(notebook) -> None:
    """Write each figure with a palette of 256 colours: the same picture to the eye in a third of the bytes."""
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            data = output.get("data", {})
            if "image/png" in data:
                full = base64.b64decode(data["image/png"])
                figure = Image.open(io.BytesIO(full)).convert("RGBA")
                figure = Image.alpha_composite(Image.new("RGBA", figure.size, "white"), figure).convert("RGB")
                small = io.BytesIO()
                figure.quantize(256, dither=Image.Dither.NONE).save(small, "PNG", optimize=True)
                if len(small.getvalue()) < len(full):
                    data["image/png"] = base64.b64encode(small.getvalue()).decode("ascii")


def main(arguments: list[str]) -> None:
    paths = [Path(name) for name in arguments] or sorted(BOOK.glob("*.ipynb"))
    for path in paths:
        seconds = execute(path)
        print(f"{path.name:40s} {seconds:6.1f} s {path.stat().st_size / 1000:6.0f} kB", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
