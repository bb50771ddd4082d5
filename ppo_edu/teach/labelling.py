"""A labelling panel: a reader compares two responses at a time, and each answer is a line in a file at once."""

import html
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import matplotlib.pyplot as plt
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch

from ppo_edu.lm.preferences import Comparison, append_comparison, load_comparisons
from ppo_edu.teach.plots import BLUE, GREEN, ORANGE

if TYPE_CHECKING:
    from ipywidgets import VBox

Pair = tuple[str, str, str]  # prompt, first response, second response

BUTTONS = {"first": "The first", "tie": "About the same", "second": "The second"}
COLOURS = {"first": BLUE, "tie": GREEN, "second": ORANGE}
QUESTION = "Which response is better?"


def labelling_panel(pairs: Sequence[Pair], path: str | Path) -> "VBox":
    """Widgets that show pair after pair with three buttons; each answer is appended to `path` as a `Comparison`.

    Pairs that the file already answers are left out, so a session can be interrupted. Needs ipywidgets and a running notebook.
    Raises: ValueError for no pairs, or a file that holds something else; ImportError without ipywidgets.
    """
    try:
        import ipywidgets as widgets
    except ImportError as error:
        raise ImportError("labelling_panel needs ipywidgets: pip install ipywidgets") from error
    if not pairs:
        raise ValueError("pairs must hold at least one (prompt, first, second), got none")
    path = Path(path)
    answered = {(x.prompt, x.first, x.second) for x in load_comparisons(path)} if path.exists() else set()
    waiting = [pair for pair in pairs if tuple(pair) not in answered]

    progress, texts = widgets.HTML(), widgets.HTML()
    buttons = {name: widgets.Button(description=words) for name, words in BUTTONS.items()}

    def show() -> None:
        progress.value = f"{len(pairs) - len(waiting)} of {len(pairs)} answered"
        if waiting:
            prompt, first, second = map(html.escape, waiting[0])
            texts.value = f"<p><i>{prompt}</i></p><p><b>{QUESTION}</b></p><p>1: {first}</p><p>2: {second}</p>"
            return
        texts.value = f"<p>All done. The answers are in {html.escape(str(path))}; run the cells below.</p>"
        for button in buttons.values():
            button.disabled = True

    def answer(preferred: str) -> None:
        if waiting:  # a second click may arrive before the button goes grey
            append_comparison(path, Comparison(*waiting.pop(0), preferred))
            show()

    for name, button in buttons.items():
        button.on_click(lambda _, name=name: answer(name))
    show()
    return widgets.VBox([progress, texts, widgets.HBox(list(buttons.values()))])


def draw_panel(prompt: str, first: str, second: str) -> Figure:
    """What the panel looks like, as a picture: a site shows no widgets."""
    figure, axes = plt.subplots(figsize=(7.0, 2.5), layout="none")
    figure.subplots_adjust(0, 0, 1, 1)
    axes.set_axis_off()
    axes.set_xlim(0, 7)
    axes.set_ylim(0, 2.5)
    axes.add_patch(FancyBboxPatch((0.08, 0.08), 6.84, 2.34, boxstyle="round,pad=0,rounding_size=0.08", fc="white", ec="#888888"))
    axes.text(0.3, 2.15, prompt, style="italic", va="center")
    axes.text(0.3, 1.75, QUESTION, weight="bold", va="center")
    for y, number, response in ((1.37, 1, first), (1.02, 2, second)):
        axes.text(0.3, y, f"{number}: {response.strip()}", va="center", size=9, parse_math=False)
    for i, (name, words) in enumerate(BUTTONS.items()):
        x = 0.3 + 2.2 * i
        axes.add_patch(FancyBboxPatch((x, 0.28), 1.95, 0.4, boxstyle="round,pad=0,rounding_size=0.06", fc="white", ec=COLOURS[name], lw=2))
        axes.text(x + 0.975, 0.48, words, ha="center", va="center", color=COLOURS[name], weight="bold")
    return figure
