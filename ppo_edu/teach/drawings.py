"""Pictures of the small decision problems of `ppo_edu.teach.exact`: the chain, the tree of responses, the maze."""

import matplotlib.pyplot as plt
import torch
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Circle, FancyArrowPatch, Rectangle
from torch import Tensor

from ppo_edu.teach.exact import MDP
from ppo_edu.teach.plots import BLUE, GREEN, ORANGE

LINE = {"linewidth": 1.6, "color": "#444444"}
MOVES = {"up": (0.0, -1.0), "right": (1.0, 0.0), "down": (0.0, 1.0), "left": (-1.0, 0.0)}  # x to the right, y down


def _canvas(width: float, height: float) -> tuple[Figure, Axes]:
    """Axes that fill the figure and show nothing of their own."""
    figure, axes = plt.subplots(figsize=(width, height), layout="none")
    figure.subplots_adjust(0, 0, 1, 1)
    axes.set_axis_off()
    return figure, axes


def draw_chain(mdp: MDP) -> Figure:
    """`exact.chain`: the states in a row, `go` to the right, `stop` downwards, rewards on the arrows."""
    S, _ = mdp.size
    figure, axes = _canvas(8.6, 2.5)
    axes.set_xlim(-0.6, S + 0.3)
    axes.set_ylim(-1.2, 0.62)
    arrow = {"arrowstyle": "-|>", "mutation_scale": 15, "shrinkA": 0, "shrinkB": 0, **LINE}
    for s, name in enumerate(mdp.states):
        last = s == S - 1
        axes.add_patch(Circle((s, 0), 0.27, fc="white", ec=BLUE, lw=2))
        axes.text(s, 0, name, ha="center", va="center", size=13, color=BLUE, weight="bold")
        axes.add_patch(FancyArrowPatch((s + 0.27, 0), (s + 0.73, 0), **arrow))
        go = f"go  +{mdp.reward[s, 0]:g}" if last else "go"
        axes.text(s + 0.5, 0.12, go, ha="center", va="bottom", size=11)
        axes.add_patch(FancyArrowPatch((s, -0.27), (s, -0.78), **arrow))
        axes.text(s + 0.06, -0.5, f"stop  +{mdp.reward[s, 1]:g}", ha="left", va="center", size=11)
        axes.text(s, -0.95, "end", ha="center", va="center", size=11, color=ORANGE, weight="bold")
    axes.text(S - 0.05, 0, "end", ha="center", va="center", size=11, color=ORANGE, weight="bold")
    axes.set_aspect("equal")
    return figure


def draw_response_tree(mdp: MDP) -> Figure:
    """`exact.language`: every text of the language with the reward for ending there, from left (nothing written) to right."""
    inner = {name[1:-1]: s for s, name in enumerate(mdp.states)}
    deepest = max(map(len, inner)) + 1
    rewards = {text: float(mdp.reward[s, 2]) for text, s in inner.items()}
    for text, s in inner.items():
        if len(text) == deepest - 1:
            rewards |= {text + letter: float(mdp.reward[s, a]) for a, letter in enumerate("ab")}
    best = max(rewards.values())
    figure, axes = _canvas(8.0, 0.5 * 2**deepest + 0.4)
    axes.set_xlim(-0.55, deepest + 0.75)
    axes.set_ylim(-0.6, 2**deepest - 0.4)

    def height(text: str) -> float:
        """Leaves stand at whole numbers, a first at the top; a node stands in the middle of its leaves."""
        below = 2 ** (deepest - len(text))
        leaves_before = sum((letter == "b") << (deepest - 1 - i) for i, letter in enumerate(text))
        return 2**deepest - 1 - leaves_before - (below - 1) / 2

    for text, reward in rewards.items():
        x, y = len(text), height(text)
        if text:
            start = (x - 1, height(text[:-1]))
            axes.plot([start[0], x], [start[1], y], zorder=1, **LINE)
            middle = ((start[0] + x) / 2, (start[1] + y) / 2)
            axes.text(*middle, text[-1], ha="center", va="center", size=10, bbox={"fc": "white", "ec": "none", "pad": 1.5})
        colour = BLUE if text in inner else "#777777"
        box = {"boxstyle": "round,pad=0.3", "fc": "white", "ec": colour, "lw": 1.8}
        axes.text(x, y, text or "empty", ha="center", va="center", size=11, color=colour, weight="bold", bbox=box, zorder=3)
        good = abs(reward - best) < 1e-9
        dx, dy = (0.0, -0.47) if text in inner else (0.4, 0.0)
        shown = f"{reward:+.1f}" if abs(reward) > 1e-9 else "0.0"
        style = {"color": GREEN, "weight": "bold"} if good else {}
        axes.text(x + dx, y + dy, shown, ha="center", va="center", size=10.5, zorder=2, **style)
    return figure


def draw_maze(axes: Axes, mdp: MDP, values: Tensor, action_values: Tensor | None = None) -> None:
    """`exact.maze`: each field with its value [S], and arrows for the best actions by `action_values` [S, A] (all that tie)."""
    size = round((mdp.size[0] + 1) ** 0.5)
    prize = float(mdp.reward.max())
    shade = LinearSegmentedColormap.from_list("values", ["white", BLUE])
    for field in range(size * size):
        row, col = divmod(field, size)
        is_exit = field == mdp.size[0]
        colour = GREEN if is_exit else shade(0.6 * float(values[field]) / prize)
        axes.add_patch(Rectangle((col - 0.5, row - 0.5), 1, 1, fc=colour, ec="#444444", lw=1.2, alpha=0.35 if is_exit else 1.0))
        if is_exit:
            axes.text(col, row, f"exit\n+{prize:g}", ha="center", va="center", size=11, weight="bold")
            continue
        axes.text(col, row - (0.0 if action_values is None else 0.3), f"{values[field]:.2f}", ha="center", va="center", size=11)
        if action_values is not None:
            q = action_values[field]
            ties = torch.isclose(q, q.max())
            for action in ties.nonzero().flatten().tolist():
                dx, dy = MOVES[mdp.actions[action]]
                axes.annotate(
                    "",
                    (col + 0.36 * dx, row + 0.08 + 0.33 * dy),
                    (col, row + 0.08),
                    arrowprops={"arrowstyle": "-|>", "lw": 1.8, "color": "black", "shrinkA": 0, "shrinkB": 0},
                )
    axes.set_xlim(-0.52, size - 0.48)
    axes.set_ylim(size - 0.48, -0.52)  # row 0 on top
    axes.set_aspect("equal")
    axes.grid(False)
    for side in axes.spines.values():
        side.set_visible(False)
    axes.set_xticks(range(size))
    axes.set_yticks(range(size))
    axes.tick_params(length=0)
    axes.set_xlabel("column")
    axes.set_ylabel("row")
