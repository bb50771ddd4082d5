"""The debugging lab: ten training runs with one mistake of the catalogue planted in each, to be told by their curves.

What a mistake leaves in the log is written down as *signs*: bands for the median, or another quantile, of a logged quantity over
a stretch of the run. They are measured on CartPole with the default settings, and hold there from seed to seed.
"""

import math
import textwrap
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cache

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

from ppo_edu.control import train
from ppo_edu.runs import Row, check_seed, column
from ppo_edu.teach.pitfalls import PITFALLS, planted
from ppo_edu.teach.plots import BLUE, GREEN, ORANGE, plot_band

# Signs -----------------------------------------------------------------------------------------------------------------

STRETCHES = {"early": (0.0, 0.2), "middle": (0.4, 0.6), "late": (0.8, 1.0), "second half": (0.5, 1.0), "whole": (0.0, 1.0)}
"""From which share of the updates to which."""
WHEN = {"early": "first fifth", "middle": "middle fifth", "late": "last fifth", "second half": "second half", "whole": "whole"}
QUANTILES = {0.5: "median", 0.75: "upper quartile", 0.9: "90th percentile"}

QUANTITIES = {
    "episode_return": "return",
    "approx_kl": "approximate KL",
    "clip_fraction": "clip fraction",
    "explained_variance": "explained variance",
    "entropy": "entropy",
    "grad_norm": "gradient norm",
    "value_loss": "value loss",
    "policy_loss": "policy loss",
}


def stretch(log: Sequence[Row], quantity: str, name: str) -> np.ndarray:
    """One logged quantity over a stretch of the run (a key of `STRETCHES`), without the updates where it is NaN.

    Raises: ValueError for an unknown stretch or quantity, or where nothing was logged.
    """
    if name not in STRETCHES:
        raise ValueError(f"name must be one of {[*STRETCHES]}, got {name!r}")
    start, end = (round(share * len(log)) for share in STRETCHES[name])
    values = column(log[start:end], quantity)
    values = values[~np.isnan(values)]
    if not len(values):
        raise ValueError(f"quantity must be a column of the log with numbers in the {name} stretch, got {quantity!r}")
    return values


@dataclass(frozen=True)
class Sign:
    """A quantile of one logged quantity over one stretch of the run lies between `low` and `high`."""

    quantity: str  # a key of QUANTITIES
    stretch: str  # a key of STRETCHES
    low: float = -math.inf
    high: float = math.inf
    quantile: float = 0.5  # a key of QUANTILES

    def found(self, log: Sequence[Row]) -> float:
        """The quantile in this log."""
        return float(np.quantile(stretch(log, self.quantity, self.stretch), self.quantile))

    def shown_by(self, log: Sequence[Row]) -> bool:
        """Whether this log shows the sign."""
        return self.low <= self.found(log) <= self.high

    def __str__(self) -> str:
        if self.low == -math.inf:
            band = f"at most {self.high:g}"
        elif self.high == math.inf:
            band = f"at least {self.low:g}"
        else:
            band = f"from {self.low:g} to {self.high:g}"
        return f"{QUANTITIES[self.quantity]}, {QUANTILES[self.quantile]} over the {WHEN[self.stretch]} of the run: {band}"


@dataclass(frozen=True)
class Suspect:
    """A mistake of the catalogue, and how the lab tells it."""

    name: str  # in PITFALLS
    signs: tuple[Sign, ...]  # the log shows all of them
    why: str  # what the mistake does to the curves
    hint: str  # where to look in a run with this mistake, without naming it
    probed: tuple[str, ...]  # the part that `control.probe` suspects, or one of them, by seed; none where it finds nothing

    def shown_by(self, log: Sequence[Row]) -> bool:
        """Whether this log shows all signs."""
        return all(sign.shown_by(log) for sign in self.signs)


def _known(*suspects: Suspect) -> dict[str, Suspect]:
    return {suspect.name: suspect for suspect in sorted(suspects, key=lambda suspect: suspect.name)}


SUSPECTS = _known(
    Suspect(
        "ratio-detached",
        (Sign("approx_kl", "whole", high=1e-9), Sign("entropy", "whole", low=0.69)),
        "No gradient reaches the actor. It stays the coin that it was, while the critic goes on learning what a coin earns.",
        "Two of the curves do not move at all, from the first update to the last. Whose are they, the actor's or the critic's?",
        ("policy loss",),
    ),
    Suspect(
        "critic-trained-on-the-reward",
        (Sign("value_loss", "early", high=0.01), Sign("episode_return", "whole", low=60)),
        "CartPole pays 1 at every step, so the critic only has to learn the number 1: its loss vanishes within a few updates, and there "
        "is no variance to explain. The advantages still see the rewards of the rollout, so the return rises, and is never steady.",
        "The return rises. But look at the scale of the value loss: what would a critic have to be asked, to be this right this soon?",
        ("critic",),
    ),
    Suspect(
        "clipped-sign",
        (Sign("entropy", "early", high=0.003), Sign("episode_return", "early", high=15)),
        "Good actions become rarer. Within a few updates the policy is certain of the worst, episodes are as short as they can be, and "
        "a policy without randomness finds nothing else. The critic is excellent: it knows exactly how soon the pole will fall.",
        "The return falls below that of a coin, and the critic understands why perfectly. Who makes it fall, and how certain is it?",
        ("policy loss",),
    ),
    Suspect(
        "truncation-as-termination",
        (
            Sign("value_loss", "second half", low=15, quantile=0.75),
            Sign("episode_return", "second half", low=480, quantile=0.9),
        ),
        "Nothing differs until episodes reach the limit of 500 steps. From then on the critic is told that an upright pole is worth 100 "
        "at one moment and 1 at another, and cannot know which: the clock is not in its observation. The return hides most of it.",
        "The run is healthy for a long while. What happens in the environment at the moment when the value loss turns up again?",
        ("time limits",),
    ),
    Suspect(
        "unclipped-surrogate",
        (Sign("approx_kl", "early", low=0.3), Sign("policy_loss", "early", high=-0.004)),
        "Nothing takes away the reason to go on: 16 steps on one batch carry the policy a hundred times as far, in KL, as in a healthy "
        "run. The surrogate loss falls nicely meanwhile, on data that no longer says anything about the policy.",
        "How far does one update carry the policy, in nats? And does the surrogate, on its own data, approve of it?",
        (),
    ),
    Suspect(
        "value-sign-reversed",
        (Sign("value_loss", "late", low=1e5),),
        "With V + gamma V' - r in the place of a residual, a step's surprise is about twice the critic's own value, and the target adds "
        "them up: the more it says, the more it is asked for. The rewards, a few units in thousands, no longer matter.",
        "Discounted returns on CartPole lie between 1 and 100. Take the root of twice the value loss: how far off is the critic?",
        ("advantage",),
    ),
    Suspect(
        "probabilities-for-logits",
        (Sign("entropy", "late", low=0.58, high=0.63), Sign("episode_return", "late", low=60)),
        "A probability lies between 0 and 1, so two of them taken as logits differ by 1 at most: no action gets beyond 1/(1 + 1/e) = 0.73, "
        "and the entropy never falls below 0.582 nats. More than a quarter of all pushes go the wrong way, and the return stalls.",
        "One curve runs into a floor. Which is the most certain policy with that entropy?",
        ("policy loss",),
    ),
    Suspect(
        "targets-from-whitened-advantages",
        tuple(Sign("value_loss", name, low=0.4, high=0.6) for name in ("early", "middle", "late")),
        "Advantages plus values make a target only as long as the advantages have their own scale. Whitened, their variance is 1 whatever "
        "happens: the critic is asked for its own value plus unit noise, and half of the squared noise is 0.5, the loss that never moves.",
        "One curve stays at the same number from beginning to end, while the episodes become ten times as long. What has variance 1?",
        ("episode ends", "critic"),
    ),
    Suspect(
        "old-log-probs-from-the-new-policy",
        (Sign("approx_kl", "early", low=0.3), Sign("policy_loss", "early", low=-1e-3, high=1e-3)),
        "Every ratio is 1 in every minibatch, so the clip never acts and the loss is minus the mean of whitened advantages: 0 to rounding. "
        "Its gradient is that of a first step, at each of 16 steps on one batch, and the policy runs away.",
        "The policy moves far in each update. What does its own loss say to that? Look at the scale of the panel.",
        (),
    ),
    Suspect(
        "observation-after-the-action",
        (Sign("clip_fraction", "middle", low=0.18), Sign("clip_fraction", "late", low=0.12), Sign("entropy", "middle", low=0.3)),
        "The log-probabilities belong to other observations than those they are compared with. So the first ratio of an update is not 1, "
        "and the sharper the policy, the further it is from 1: clip fraction and KL grow where in a healthy run they fall.",
        "In a healthy run the clip fraction falls as the learning rate does. What would keep it up, in an update that hardly moves?",
        ("discount", "critic"),
    ),
)

_PLANTED = (
    "ratio-detached",
    "critic-trained-on-the-reward",
    "clipped-sign",
    "truncation-as-termination",
    "unclipped-surrogate",
    "value-sign-reversed",
    "probabilities-for-logits",
    "targets-from-whitened-advantages",
    "old-log-probs-from-the-new-policy",
    "observation-after-the-action",
)  # in run 1, 2, ...


# The runs, and the answers to a guess -------------------------------------------------------------------------------------


def sick_run(number: int, *, seed: int = 0) -> list[Row]:
    """The log of run 1 to 10, one mistake in each, or of run 0, which is healthy: PPO on CartPole-v1 with the default settings.

    Trains for a few seconds the first time. Raises: ValueError for another number or a bad seed.
    """
    _check_run(number, 0)
    check_seed(seed)  # here: the cache takes 0.0 and False for 0
    return [dict(row) for row in _trained(number, seed)]


@cache
def _trained(number: int, seed: int) -> list[Row]:
    with planted(PITFALLS[_PLANTED[number - 1]]) if number else nullcontext():
        return train(seed=seed, progress=False).log


def _check_run(number: int, first: int) -> None:
    if not isinstance(number, int) or isinstance(number, bool) or not first <= number <= len(_PLANTED):
        raise ValueError(f"the number of a run must be an int from {first} to {len(_PLANTED)}, got {number!r}")


@dataclass(frozen=True)
class Diagnosis:
    """The answer to a guess. True when it was right; prints as text."""

    right: bool
    text: str

    def __bool__(self) -> bool:
        return self.right

    def __repr__(self) -> str:
        return "\n".join(textwrap.fill(line, 75, subsequent_indent="  " * line.startswith("- ")) for line in self.text.splitlines())


def diagnose(run: int, guess: str | None = None, *, seed: int = 0) -> Diagnosis:
    """Say whether `guess`, a name of `SUSPECTS`, is the mistake that is planted in run 1 to 10; without a guess, give a hint.

    A right guess is answered with the mistake, its signs and the check that exposes it; a wrong one with what the guessed
    mistake would look like. `seed`: which run is measured.

    Raises: ValueError for another run, an unknown guess or a bad seed.
    """
    _check_run(run, 1)
    check_seed(seed)
    actual = SUSPECTS[_PLANTED[run - 1]]
    if guess is None:
        return Diagnosis(False, f"A hint for run {run}. {actual.hint}")
    if not isinstance(guess, str) or guess not in SUSPECTS:
        raise ValueError(f"guess must be one of {[*SUSPECTS]}, got {guess!r}")
    log, suspect = _trained(run, seed), SUSPECTS[guess]
    if suspect is actual:
        entry = PITFALLS[guess]
        shown = "".join(f"- {sign}. Here it is {sign.found(log):.2g}.\n" for sign in suspect.signs)
        probed = f"The probes fail and suspect: {' or '.join(suspect.probed)}." if suspect.probed else "The probes find nothing."
        text = f"Run {run} is {guess}. Right!\nThe mistake: {entry.mistake}.\nIts signs:\n{shown}{suspect.why}\n"
        return Diagnosis(True, text + f"The check that exposes it: {entry.exposed_by}. {probed}")
    missing = "".join(f"- {sign}. Here it is {sign.found(log):.2g}.\n" for sign in suspect.signs if not sign.shown_by(log))
    return Diagnosis(False, f"Run {run} is not {guess}, which would look otherwise:\n{missing}{suspect.why}")


# From symptom to suspect ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Question:
    """One question of the chart: where all signs are there, the answer is yes."""

    text: str
    signs: tuple[Sign, ...]
    look: str  # where to look then
    suspects: tuple[str, ...]  # of the lab


CHART = (
    Question(
        "Does the KL stay at 0, and the entropy where it began?",
        SUSPECTS["ratio-detached"].signs,
        "No gradient reaches the actor: detach, no_grad, the optimiser's parameters",
        ("ratio-detached",),
    ),
    Question(
        "Does the entropy collapse at once, and the return fall below chance?",
        SUSPECTS["clipped-sign"].signs,
        "A sign in the policy loss: good actions become rarer",
        ("clipped-sign",),
    ),
    Question(
        "Do updates move 0.3 nats and more, while the policy loss is 0 to rounding?",
        SUSPECTS["old-log-probs-from-the-new-policy"].signs,
        "The ratio is always 1: where do the old log-probabilities come from?",
        ("old-log-probs-from-the-new-policy",),
    ),
    Question(
        "Do updates move 0.3 nats and more, whatever the policy loss?",
        (Sign("approx_kl", "early", low=0.3),),
        "The leash: no clip, too wide a clip, too large a learning rate",
        ("unclipped-surrogate",),
    ),
    Question(
        "Is the critic's error far larger than any return?",
        (Sign("value_loss", "late", low=1e4),),
        "The target contains the critic: a sign, or V not subtracted",
        ("value-sign-reversed",),
    ),
    Question(
        "Is the critic's error almost 0 from the start, far below one reward?",
        (Sign("value_loss", "early", high=0.01),),
        "The target is a single reward: returns, GAE",
        ("critic-trained-on-the-reward",),
    ),
    Question(
        "Does the value loss stay at one half, whatever the return does?",
        SUSPECTS["targets-from-whitened-advantages"].signs,
        "The target was whitened: compute returns before",
        ("targets-from-whitened-advantages",),
    ),
    Question(
        "Does the clip fraction stay high while the learning rate falls?",
        (Sign("clip_fraction", "middle", low=0.18), Sign("clip_fraction", "late", low=0.12)),
        "Ratios are not 1 at the first step: rows are misaligned",
        ("observation-after-the-action",),
    ),
    Question(
        "Does the entropy stop at a floor, and the return stall?",
        (Sign("entropy", "late", low=0.58, high=0.63), Sign("episode_return", "late", low=60, high=300)),
        "From network to distribution: softmax twice, a temperature",
        ("probabilities-for-logits",),
    ),
    Question(
        "Does the value loss jump up when episodes reach the time limit?",
        SUSPECTS["truncation-as-termination"].signs,
        "Truncation is taken for termination",
        ("truncation-as-termination",),
    ),
    Question(
        "Does the return stall, although nothing stands out?",
        (Sign("episode_return", "late", high=300),),
        "Ask what the curves cannot tell: run the probes",
        (),
    ),
)


def follow_chart(log: Sequence[Row]) -> Question | None:
    """The first question of the chart that this log answers with yes; None where it answers none: nothing is suspect."""
    return next((question for question in CHART if all(sign.shown_by(log) for sign in question.signs)), None)


# Figures ----------------------------------------------------------------------------------------------------------------

SCALES = {  # where the default will not do: zero must be seen, and so must a factor of a million
    "episode_return": {"ylim": (0, 520)},
    "approx_kl": {"yscale": ("symlog", 1e-3), "ylim": (0, 60)},
    "clip_fraction": {"ylim": (-0.02, 1)},
    "explained_variance": {"ylim": (-1, 1.05)},
    "entropy": {"ylim": (-0.02, 0.75)},
    "grad_norm": {"yscale": ("log",), "ylim": (1e-2, 2e4)},
    "value_loss": {"yscale": ("log",), "ylim": (1e-7, 1e7)},
    "policy_loss": {"yscale": ("symlog", 1e-4), "ylim": (-0.5, 0.5)},
}


def draw_run(log: Sequence[Row], healthy: Sequence[Sequence[Row]], title: str = "") -> Figure:
    """A run's curves, one panel per quantity, each over the band of healthy runs."""
    figure, grid = plt.subplots(2, 4, figsize=(7.4, 3.2), sharex=True, dpi=96)
    with plt.rc_context({"axes.titlesize": 9}):
        for axes, (quantity, words) in zip(grid.flat, QUANTITIES.items(), strict=True):
            plot_band(axes, healthy, quantity, colour=GREEN)
            axes.lines[-1].remove()  # the band alone: what is to be compared is one run
            axes.collections[-1].set_alpha(0.3)
            known = [row for row in log if not math.isnan(row[quantity])]
            axes.plot(column(known, "env_steps"), column(known, quantity), color=BLUE, linewidth=1.4)
            axes.set_title(words)
            axes.tick_params(labelsize=7.5)
            axes.set_xticks([0, 20_000, 40_000], ["0", "20k", "40k"])
            axes.set_xlabel("")  # the band's own
            _scale(axes, **SCALES[quantity])
    figure.supxlabel("environment steps", size=8.5)
    if title:
        figure.suptitle(title, x=0.01, ha="left", size=10, weight="bold")
    return figure


def _scale(axes: Axes, *, ylim: tuple[float, float], yscale: tuple = ("linear",)) -> None:
    kind, *threshold = yscale
    axes.set_yscale(kind, **({"linthresh": threshold[0]} if threshold else {}))
    axes.set_ylim(*ylim)
    if kind == "log":
        low, high = (round(math.log10(x)) for x in ylim)
        axes.set_yticks([10.0**k for k in range(low + 1, high + 1, max(1, (high - low) // 3))])
    if kind == "symlog":
        axes.set_yticks([y for y in (-0.1, -1e-3, 0, 1e-3, 0.1, 10) if ylim[0] <= y <= ylim[1]])
    axes.minorticks_off()


def draw_chart() -> Figure:
    """The questions of `CHART` from top to bottom: yes leads to the right, no to the next one. Narrow, for a phone."""
    figure, axes = plt.subplots(figsize=(4.4, 0.86 * len(CHART) + 0.3), dpi=100, layout="none")
    figure.subplots_adjust(0, 0, 1, 1)
    axes.set_axis_off()
    axes.set_xlim(0, 10)
    axes.set_ylim(-len(CHART) + 0.25, 0.45)
    arrow = {"arrowstyle": "-|>", "mutation_scale": 11, "linewidth": 1.3, "color": "#444444", "shrinkA": 0, "shrinkB": 0}
    for i, question in enumerate(CHART):
        _box(axes, 0.1, -i, 4.95, textwrap.fill(question.text, 26), BLUE)
        _box(axes, 5.85, -i, 4.05, textwrap.fill(question.look, 22), ORANGE)
        axes.add_patch(FancyArrowPatch((5.05, -i), (5.85, -i), **arrow))
        axes.text(5.42, 0.06 - i, "yes", ha="center", va="bottom", size=8.5)
        axes.add_patch(FancyArrowPatch((2.5, -i - 0.41), (2.5, -i - 0.59), **arrow))
        axes.text(2.7, -i - 0.5, "no", ha="left", va="center", size=8.5)
    axes.text(2.5, -len(CHART) + 0.33, "nothing is suspect", ha="center", va="center", size=9)
    return figure


def _box(axes: Axes, x: float, y: float, width: float, text: str, colour: str) -> None:
    """A box centred at height `y`, with its text."""
    axes.add_patch(FancyBboxPatch((x, y - 0.4), width, 0.8, boxstyle="round,pad=0,rounding_size=0.1", fc="white", ec=colour, lw=1.6))
    axes.text(x + width / 2, y, text, ha="center", va="center", size=9, linespacing=1.1)
