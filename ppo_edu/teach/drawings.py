"""Pictures of the small decision problems of `ppo_edu.teach.exact`: the chain, the tree of responses, a batch of them, the maze."""

from collections.abc import Sequence

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


def draw_response_tree(mdp: MDP, pi: Tensor | None = None) -> Figure:
    """`exact.language`: every text of the language with the reward for ending there, from left (nothing written) to right.

    With a policy `pi` [S, A], its probability of each letter stands on the branch, and that of stopping before the reward.
    """
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
            branch = text[-1] if pi is None else f"{text[-1]} {pi[inner[text[:-1]], 'ab'.index(text[-1])]:.2f}"
            axes.text(*middle, branch, ha="center", va="center", size=10, bbox={"fc": "white", "ec": "none", "pad": 1.5})
        colour = BLUE if text in inner else "#777777"
        box = {"boxstyle": "round,pad=0.3", "fc": "white", "ec": colour, "lw": 1.8}
        axes.text(x, y, text or "empty", ha="center", va="center", size=11, color=colour, weight="bold", bbox=box, zorder=3)
        good = abs(reward - best) < 1e-9
        dx, dy = (0.0, -0.47) if text in inner else (0.4, 0.0)
        shown = f"{reward:+.1f}" if abs(reward) > 1e-9 else "0.0"
        if pi is not None and text in inner:
            shown = f"stop {pi[inner[text], 2]:.2f}: {shown}"
        style = {"color": GREEN, "weight": "bold"} if good else {}
        if pi is not None:
            style["bbox"] = {"fc": "white", "ec": "none", "pad": 1.0}
        axes.text(x + dx, y + dy, shown, ha="center", va="center", size=10.5, zorder=2, **style)
    return figure


def draw_token_shift(prompt: Sequence[str], response: Sequence[str]) -> Figure:
    """One text as a causal language model reads it: the logits at each position, with an arrow to the token that they predict."""
    tokens = [*prompt, *response]
    P, L = len(prompt), len(tokens)
    figure, axes = _canvas(8.0, 2.4)
    axes.set_xlim(-1.95, L - 0.3)
    axes.set_ylim(-0.8, 1.9)
    for j, token in enumerate(tokens):
        _cell(axes, j, 0.0, token, BLUE if j < P else ORANGE)
        axes.text(j, -0.58, f"{j}", ha="center", va="center", size=10, color="#444444")
        used = P - 1 <= j < L - 1
        box = {"boxstyle": "round,pad=0.35", "fc": "white", "ec": GREEN if used else "#aaaaaa", "lw": 2.0 if used else 1.2}
        axes.text(j, 1.5, "logits", ha="center", va="center", size=10, color="black" if used else "#767676", bbox=box)
        if used:
            ends = ((j + 0.2, 1.22), (j + 0.9, 0.44))
            axes.add_patch(FancyArrowPatch(*ends, arrowstyle="-|>", mutation_scale=15, shrinkA=0, shrinkB=0, color=GREEN, linewidth=2.0))
    for y, name in ((1.5, "model's output"), (0.0, "tokens"), (-0.58, "position")):
        axes.text(-0.65, y, name, ha="right", va="center", size=10.5, color="#444444")
    return figure


def draw_batch(prompts: Sequence[Sequence[str]], responses: Sequence[Sequence[str]]) -> Figure:
    """The layout of `lm.Responses` beside that of `core`: prompts [B, P] padded left, responses [B, T] padded right, transposed [T, N].

    The last token of each response, where its score goes, has a heavy frame.
    """
    B, P, T = len(prompts), max(map(len, prompts)), max(map(len, responses))
    figure, axes = _canvas(8.6, 0.42 * max(B, T) + 1.5)
    left, right = 0.0, P + T + 2.4  # where the two pictures begin
    axes.set_xlim(left - 0.7, right + B - 0.3)
    axes.set_ylim(-1.05 - max(B, T), 1.35)
    for b, (prompt, response) in enumerate(zip(prompts, responses, strict=True)):
        padded = [*[""] * (P - len(prompt)), *prompt]
        for j, token in enumerate(padded):
            _cell(axes, left + j, -b, token, BLUE if token else None)
        for t in range(T):
            token = response[t] if t < len(response) else ""
            for x, y in ((left + P + t, -b), (right + b, -t)):
                _cell(axes, x, y, token, ORANGE if token else None, heavy=t == len(response) - 1)
    arrow = FancyArrowPatch((P + T - 0.2, 0.5 - B / 2), (right - 0.8, 0.5 - B / 2), arrowstyle="-|>", mutation_scale=18, **LINE)
    axes.add_patch(arrow)
    axes.text((P + T + right - 1) / 2, 0.75 - B / 2, ".T", ha="center", va="bottom", size=12)
    centres = ((P - 1) / 2, P + (T - 1) / 2, right + (B - 1) / 2)
    heads = ("[B, P]", "[B, T]", "[T, N],  N = B")
    feet = (
        "prompt_tokens\nprompt_mask",
        "tokens, mask, log_probs,\nvalues, rewards;\nlogits [B, T, V]",
        "what gae takes: rewards,\nvalues, next_values,\nterminated, truncated",
    )
    for x, head, foot, rows in zip(centres, heads, feet, (B, B, T), strict=True):
        axes.text(x, 0.95, head, ha="center", va="center", size=12, weight="bold")
        axes.text(x, -rows + 0.3, foot, ha="center", va="top", size=10, linespacing=1.35)
    return figure


def _cell(axes: Axes, x: float, y: float, text: str, colour: str | None, *, heavy: bool = False) -> None:
    """One token in its box, centred at (x, y); no colour: padding."""
    face, edge = ("#e6e6e6", "#aaaaaa") if colour is None else ("white", colour)
    axes.add_patch(Rectangle((x - 0.46, y - 0.4), 0.92, 0.8, fc=face, ec=edge, lw=4.0 if heavy else 1.6))
    axes.text(x, y, text, ha="center", va="center", size=10)


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


def draw_rlhf_loop() -> Figure:
    """One update of PPO on a language model: what is sampled, who reads it, what is learned from. Frozen models have dashed frames."""
    figure, axes = _canvas(9.2, 4.5)
    axes.set_xlim(0.0, 10.6)
    axes.set_ylim(0.0, 5.2)
    arrow = {"arrowstyle": "-|>", "mutation_scale": 15, "shrinkA": 0, "shrinkB": 0, **LINE}

    def box(x: float, y: float, width: float, title: str, text: str, colour: str, *, frozen: bool = False) -> None:
        axes.add_patch(Rectangle((x - width / 2, y - 0.48), width, 0.96, fc="white", ec=colour, lw=2.0, ls="--" if frozen else "-"))
        axes.text(x, y + 0.2, title, ha="center", va="center", size=11.5, weight="bold", color=colour)
        axes.text(x, y - 0.2, text, ha="center", va="center", size=9.5)

    def connect(*points: tuple[float, float]) -> None:
        """A line through the points, an arrow head at the last."""
        if len(points) > 2:
            xs, ys = zip(*points[:-1], strict=True)
            axes.plot(xs, ys, **LINE)
        axes.add_patch(FancyArrowPatch(points[-2], points[-1], **arrow))

    box(0.95, 3.2, 1.5, "prompts", "a batch of B", "#444444")
    box(3.05, 3.2, 1.7, "policy", r"samples $y_t$, log $\pi$", BLUE)
    box(6.1, 4.5, 2.6, "reward model", r"score $R$, one a response", GREEN, frozen=True)
    box(6.1, 3.2, 2.6, "reference", r"log $\pi_{ref}$, one a token", GREEN, frozen=True)
    box(6.1, 1.9, 2.6, "value head", r"$V$, one a token", BLUE)
    box(9.3, 3.2, 2.1, "credit", "token rewards, GAE", ORANGE)
    box(9.3, 0.7, 2.1, "batch", r"$\hat{A}$, returns, old log $\pi$", ORANGE)
    box(6.1, 0.7, 2.6, "improve", "epochs of minibatches", ORANGE)
    connect((1.7, 3.2), (2.2, 3.2))
    for y in (4.5, 3.2, 1.9):
        connect((3.9, 3.2), (4.35, 3.2), (4.35, y), (4.8, y)) if y != 3.2 else connect((3.9, 3.2), (4.8, 3.2))
        connect((7.4, y), (7.8, y), (7.8, 3.2), (8.25, 3.2)) if y != 3.2 else connect((7.4, 3.2), (8.25, 3.2))
    connect((9.3, 2.72), (9.3, 1.18))
    connect((8.25, 0.7), (7.4, 0.7))
    connect((4.8, 0.7), (3.05, 0.7), (3.05, 2.72))
    axes.text(3.2, 1.35, "new weights,\nalso of the\nvalue head", ha="left", va="center", size=9.5, color="#444444")
    axes.text(0.15, 4.85, "dashed: frozen", ha="left", va="center", size=9.5, color=GREEN)
    return figure
