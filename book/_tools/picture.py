"""Draw the README's picture from three live experiments: PPO, one honest step per batch, many steps without the clip.

Usage: python book/_tools/picture.py     (writes book/_static/learning-curves.png)
"""

from pathlib import Path

import matplotlib.pyplot as plt

from ppo_edu import policy_gradient_loss, surrogate_loss
from ppo_edu.control import PPOConfig, train
from ppo_edu.teach import plots

TARGET = Path(__file__).resolve().parents[1] / "_static" / "learning-curves.png"
SEEDS = range(5)


def main() -> None:
    default = PPOConfig()
    once = PPOConfig(epochs=1, minibatch_size=default.num_envs * default.num_steps)
    losses = {
        "one gradient step per batch": (once, lambda new, old, advantages, clip_range: policy_gradient_loss(new, advantages)),
        "many steps, no clip": (default, lambda new, old, advantages, clip_range: surrogate_loss(new, old, advantages)),
    }
    curves = {"PPO": [train(seed=seed, progress=False).log for seed in SEEDS]}
    for name, (config, loss) in losses.items():
        curves[name] = [train(config, seed=seed, policy_loss_fn=loss, progress=False).log for seed in SEEDS]
    plots.use_style()
    figure, axes = plt.subplots(figsize=(7.2, 3.3))
    for (name, logs), colour in zip(curves.items(), plots.COLOURS, strict=False):
        plots.plot_band(axes, logs, "episode_return", label=name, colour=colour)
    axes.set_ylabel("episode return")
    axes.set_title("CartPole-v1, five seeds each: median, lowest and highest run")
    axes.legend(loc="upper left", bbox_to_anchor=(0.0, 0.95))
    figure.savefig(TARGET, dpi=130)
    print(f"wrote {TARGET}")


if __name__ == "__main__":
    main()
