"""One figure style for the whole course, and the figures that several chapters draw."""

import base64
import html
import io
import os
from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
import torch
from IPython.display import HTML
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

from ppo_edu.control import Policy
from ppo_edu.runs import Row, column

# Okabe & Ito's palette: told apart by readers with any kind of colour vision.
BLUE, ORANGE, GREEN, RED, PURPLE, SKY, YELLOW, BLACK = (
    "#0072B2",
    "#E69F00",
    "#009E73",
    "#D55E00",
    "#CC79A7",
    "#56B4E9",
    "#F0E442",
    "#000000",
)
COLOURS = (BLUE, ORANGE, GREEN, RED, PURPLE, SKY)


def use_style() -> None:
    """The course's figure style: opaque white background, colour-blind-safe colours, no box around the data."""
    plt.rcParams.update(
        {
            "figure.figsize": (7.0, 3.4),
            "figure.dpi": 110,
            "figure.facecolor": "white",
            "figure.constrained_layout.use": True,
            "savefig.facecolor": "white",
            "axes.facecolor": "white",
            "axes.prop_cycle": plt.cycler(color=COLOURS),
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.grid": True,
            "axes.axisbelow": True,
            "axes.titlesize": 11,
            "axes.titlelocation": "left",
            "grid.color": "#e6e6e6",
            "grid.linewidth": 0.8,
            "lines.linewidth": 1.8,
            "legend.frameon": False,
            "font.size": 10,
        }
    )


def on_grid(log: Sequence[Row], name: str, grid: np.ndarray, x: str = "env_steps") -> np.ndarray:
    """One column of a log, interpolated linearly onto a grid of `x` values; rows where it is NaN are left out. NaN if all are."""
    xs, ys = column(log, x), column(log, name)
    known = ~np.isnan(ys)
    return np.interp(grid, xs[known], ys[known]) if known.any() else np.full(len(grid), np.nan)


def plot_band(axes: Axes, logs: Sequence[Sequence[Row]], name: str, *, label: str | None = None, colour: str = BLUE) -> None:
    """Median over runs of one logged quantity against environment steps, with the band from the lowest to the highest run."""
    end = min(log[-1]["env_steps"] for log in logs)
    grid = np.linspace(max(log[0]["env_steps"] for log in logs), end, 60)
    curves = np.stack([on_grid(log, name, grid) for log in logs])
    axes.fill_between(grid, curves.min(0), curves.max(0), color=colour, alpha=0.18, linewidth=0)
    axes.plot(grid, np.median(curves, 0), color=colour, label=label)
    axes.set_xlabel("environment steps")


def plot_diagnostics(logs: Sequence[Sequence[Row]], panels: Mapping[str, str], healthy: Mapping[str, tuple[float, float]]) -> Figure:
    """One panel per logged quantity (name -> axis label), median and band over runs; healthy ranges shaded green."""
    rows = -(-len(panels) // 3)
    figure, grid = plt.subplots(rows, 3, figsize=(8.6, 2.5 * rows), sharex=True)
    for axes, (name, label) in zip(grid.flat, panels.items(), strict=False):
        if name in healthy:
            axes.axhspan(*healthy[name], color=GREEN, alpha=0.10, linewidth=0)
        plot_band(axes, logs, name)
        axes.set_title(label)
    for axes in grid.flat[len(panels) :]:
        axes.set_visible(False)
    for axes in grid[:-1].flat:
        axes.set_xlabel("")
    return figure


def draw_loop(steps: Sequence[tuple[str, str]], back: str) -> Figure:
    """Boxes (title, text) from left to right joined by arrows, and one arrow from the last back to the first, labelled `back`."""
    figure, axes = plt.subplots(figsize=(8.6, 2.9), layout="none")
    figure.subplots_adjust(0, 0, 1, 1)
    axes.set_axis_off()
    axes.set_xlim(0, len(steps))
    axes.set_ylim(-0.55, 1.05)
    arrow = {"arrowstyle": "-|>", "mutation_scale": 15, "linewidth": 1.6, "color": "#444444", "shrinkA": 0, "shrinkB": 0}
    for i, (title, text) in enumerate(steps):
        colour = COLOURS[i % len(COLOURS)]
        axes.add_patch(FancyBboxPatch((i + 0.06, 0.08), 0.88, 0.9, boxstyle="round,pad=0,rounding_size=0.06", fc="white", ec=colour, lw=2))
        axes.text(i + 0.5, 0.82, title, ha="center", va="center", weight="bold", color=colour, size=13)
        axes.text(i + 0.5, 0.42, text, ha="center", va="center", size=10.5, linespacing=1.35)
        if i:
            axes.add_patch(FancyArrowPatch((i - 0.06, 0.52), (i + 0.06, 0.52), **arrow))
    left, right, bottom = 0.5, len(steps) - 0.5, -0.2
    axes.plot([right, right, left], [0.08, bottom, bottom], color=arrow["color"], linewidth=arrow["linewidth"])
    axes.add_patch(FancyArrowPatch((left, bottom), (left, 0.08), **arrow))
    axes.text(len(steps) / 2, bottom - 0.08, back, ha="center", va="top", size=11, color="#444444")
    return figure


def animate_policy(
    policy: Policy, env_id: str, *, seed: int = 0, max_steps: int = 200, every: int = 2, width: int = 300, greedy: bool = True
) -> tuple[bytes, float]:
    """One episode played by a policy, as an animated GIF, and its undiscounted return up to `max_steps`.

    Frames are drawn by the environment itself (which must support `rgb_array`), every `every` steps, `width` pixels wide.
    """
    import gymnasium as gym
    from PIL import Image

    os.environ.setdefault("SDL_VIDEODRIVER", "dummy")  # drawing needs no window

    env = gym.make(env_id, render_mode="rgb_array")
    if isinstance(env.observation_space, gym.spaces.Discrete):
        env = gym.wrappers.FlattenObservation(env)  # one-hot, as in training
    observation, _ = env.reset(seed=seed)
    frames, total, done, step = [], 0.0, False, 0
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        while not done and step < max_steps:
            if step % every == 0:
                frames.append(Image.fromarray(env.render()))
            seen = torch.as_tensor(observation, dtype=torch.float32)
            with torch.no_grad():
                action = policy.mode(seen) if greedy else policy.distribution(seen).sample()
            observation, reward, terminated, truncated, _ = env.step(action.numpy()[()])
            total, done, step = total + float(reward), terminated or truncated, step + 1
    frames.append(Image.fromarray(env.render()))
    fps = env.metadata["render_fps"]
    env.close()
    box = _drawn_part(frames)
    height = round(width * (box[3] - box[1]) / (box[2] - box[0]))
    small = [frame.crop(box).resize((width, height), Image.Resampling.LANCZOS).quantize(32) for frame in frames]
    buffer = io.BytesIO()
    milliseconds = round(1000 * every / fps / 10) * 10  # GIF counts in hundredths of a second
    small[0].save(buffer, "GIF", save_all=True, append_images=small[1:], duration=milliseconds, loop=0, optimize=True)
    return buffer.getvalue(), total


def _drawn_part(frames: Sequence["Image"], margin: int = 12) -> tuple[int, int, int, int]:  # noqa: F821
    """Left, top, right, bottom of what differs from the background in any frame: full width, some margin above and below."""
    pixels = np.stack([np.asarray(frame) for frame in frames])
    rows = np.flatnonzero((pixels != pixels[0, 0, 0]).any(axis=(0, 2, 3)))
    return 0, max(rows[0] - margin, 0), pixels.shape[2], min(rows[-1] + margin, pixels.shape[1])


def show_gif(gif: bytes, alt: str) -> HTML:
    """A GIF embedded in the output, with its alternative text; it plays on the site and in Colab."""
    data = base64.b64encode(gif).decode()
    return HTML(f'<img src="data:image/gif;base64,{data}" alt="{html.escape(alt)}">')
