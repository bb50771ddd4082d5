"""Writing as a task for an agent: each action is the next character, and the finished text earns one reward."""

import string
from collections.abc import Callable, Sequence
from itertools import pairwise

import gymnasium as gym
import numpy as np
import torch

from ppo_edu.control.networks import Policy, greedy_or_sampled
from ppo_edu.core.validation import check_count, describe, is_number
from ppo_edu.runs import seeded

STOP = "."
VOCABULARY = string.ascii_lowercase + STOP
MAX_LENGTH = 12
VOWELS = frozenset("aeiou")


def alternating_letters(text: str) -> float:
    """One tenth for each vowel beside a consonant (in either order), if the text ends with a full stop; else nothing.

    Of 12 characters the best are 11 letters in turns and the stop: reward 1. There are about 3 * 10^11 such texts.
    """
    if not text.endswith(STOP):
        return 0.0
    return sum((a in VOWELS) != (b in VOWELS) for a, b in pairwise(text[:-1])) / 10


class TextEnv(gym.Env):
    """Write a text, one character per step, and be paid once it is finished.

    Action: the index of the next character in `vocabulary`. A full stop ends the text, and so does its `max_length`-th
    character: the limit is part of the task, so the episode is `terminated` there, never `truncated`.

    Reward: 0 at every step but the last, which pays `reward_fn(text)` of the finished text, full stop included.

    Observation: the last `window` characters, each a one-hot row, the newest in the last row (rows without a character
    are 0), and the share of `max_length` that is used: [window * len(vocabulary) + 1]. `window=None` shows the whole text,
    so that nothing a reward could ask for is hidden, and the task is Markov whatever `reward_fn` is. A window of k
    characters is enough for the *choice* of actions where the reward is a sum over neighbouring characters, and it hides
    from the critic what earlier ones have earned.

    Raises: ValueError naming the argument; also where `reward_fn` returns anything but a finite number.
    """

    def __init__(
        self,
        reward_fn: Callable[[str], float] = alternating_letters,
        *,
        vocabulary: str = VOCABULARY,
        max_length: int = MAX_LENGTH,
        window: int | None = None,
    ) -> None:
        if not callable(reward_fn):
            raise ValueError(f"reward_fn must be a function from text to number, got {describe(reward_fn)}")
        if not isinstance(vocabulary, str) or len(set(vocabulary)) != len(vocabulary) or STOP not in vocabulary or len(vocabulary) < 2:
            raise ValueError(f"vocabulary must be a string of distinct characters, {STOP!r} and at least one more, got {vocabulary!r}")
        window = max_length if window is None else window
        check_count(max_length=max_length, window=window)
        if window > max_length:
            raise ValueError(f"window must be at most max_length = {max_length}, got {window}")
        self.reward_fn, self.vocabulary, self.max_length = reward_fn, vocabulary, max_length
        self.action_space = gym.spaces.Discrete(len(vocabulary))
        self.observation_space = gym.spaces.Box(0.0, 1.0, (window * len(vocabulary) + 1,), np.float32)
        self.seen = np.zeros((window, len(vocabulary)), dtype=np.float32)
        self.text = ""

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[np.ndarray, dict]:
        """Begin with an empty text."""
        super().reset(seed=seed)
        self.text = ""
        self.seen[:] = 0.0
        return self._observation(), {}

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict]:
        """Write one character."""
        self.text += self.vocabulary[action]
        self.seen[:-1] = self.seen[1:]
        self.seen[-1] = 0.0
        self.seen[-1, action] = 1.0
        finished = self.text[-1] == STOP or len(self.text) == self.max_length
        return self._observation(), self._reward() if finished else 0.0, finished, False, {}

    def _observation(self) -> np.ndarray:
        return np.append(self.seen, np.float32(len(self.text) / self.max_length))

    def _reward(self) -> float:
        reward = self.reward_fn(self.text)
        reward = reward.item() if isinstance(reward, np.number) else reward
        if not is_number(reward) or not np.isfinite(reward):
            raise ValueError(f"reward_fn must return a finite number, got {describe(reward)} for {self.text!r}")
        return float(reward)


def register_text_env(
    env_id: str,
    reward_fn: Callable[[str], float],
    *,
    vocabulary: str = VOCABULARY,
    max_length: int = MAX_LENGTH,
    window: int | None = None,
) -> None:
    """Let `train` and `evaluate` find a `TextEnv` with these arguments under `env_id` ("name-v0").

    An id of an earlier `TextEnv` is replaced, so that a notebook's cell can run twice.

    Raises: ValueError for a bad argument, or an `env_id` that belongs to another environment.
    """
    TextEnv(reward_fn, vocabulary=vocabulary, max_length=max_length, window=window)  # bad arguments are refused here and now
    if not isinstance(env_id, str):
        raise ValueError(f"env_id must be a name such as 'Poem-v0', got {env_id!r}")
    if env_id in gym.registry and gym.registry[env_id].entry_point is not TextEnv:
        raise ValueError(f"env_id must be free, got {env_id!r}, which is another environment")
    gym.registry.pop(env_id, None)
    arguments = {"vocabulary": vocabulary, "max_length": max_length, "window": window}
    arguments["reward_fn"] = lambda text: reward_fn(text)  # Gymnasium copies arguments deeply, but never a function
    try:
        gym.register(env_id, entry_point=TextEnv, kwargs=arguments, disable_env_checker=True)
    except gym.error.Error as error:
        raise ValueError(f"env_id must be a name such as 'Poem-v0', got {env_id!r}: {error}") from error


register_text_env("ppo_edu/Text-v0", alternating_letters)


def sample_texts(policy: Policy, env_id: str, n: int, *, seed: int = 0, greedy: bool = False) -> tuple[list[str], list[float]]:
    """`n` finished texts that the policy writes in a `TextEnv`, and the reward of each. The same seed gives the same texts.

    `greedy`: the most probable character at each step; all n texts are then one and the same.

    Raises: ValueError naming the argument.
    """
    check_count(n=n)
    if not isinstance(env_id, str) or env_id not in gym.registry or gym.registry[env_id].entry_point is not TextEnv:
        raise ValueError(f"env_id must name a TextEnv, got {env_id!r}")
    envs = [gym.make(env_id).unwrapped for _ in range(n)]
    observations = np.stack([env.reset()[0] for env in envs])
    rewards = [0.0] * n
    writing = list(range(n))
    with seeded(seed):
        while writing:
            actions = greedy_or_sampled(policy, torch.from_numpy(observations[writing]), greedy)
            still_writing = []
            for i, action in zip(writing, actions.tolist(), strict=True):
                observations[i], rewards[i], finished, _, _ = envs[i].step(action)
                if not finished:
                    still_writing.append(i)
            writing = still_writing
    return [env.text for env in envs], rewards


def distinct_texts(texts: Sequence[str]) -> float:
    """Share of the texts that are left when repetitions are struck out, in (0, 1]."""
    _check_texts(texts)
    return len(set(texts)) / len(texts)


def distinct_bigrams(texts: Sequence[str]) -> float:
    """Different pairs of neighbouring characters over all such pairs, in [0, 1]; 0 where there is none.

    No pair spans two texts. The value falls as the set grows: compare sets of equal size and length.

    Source: distinct-2 of Li et al. 2016 (arXiv:1510.03055), for characters.
    """
    _check_texts(texts)
    pairs = [pair for text in texts for pair in pairwise(text)]
    return len(set(pairs)) / len(pairs) if pairs else 0.0


def _check_texts(texts: Sequence[str]) -> None:
    if isinstance(texts, str) or not texts or not all(isinstance(text, str) for text in texts):
        raise ValueError(f"texts must be a list of at least one string, got {describe(texts)}")
