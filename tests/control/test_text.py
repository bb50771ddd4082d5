"""Writing as a task: when a text ends, what it is paid, what the writer sees, and that the same trainer teaches it."""

import itertools
import math
import threading

import gymnasium as gym
import numpy as np
import pytest
import torch
from control_helpers import tiny
from gymnasium.utils.env_checker import check_env
from gymnasium.vector import AutoresetMode

from ppo_edu.control import (
    PPOConfig,
    TextEnv,
    distinct_bigrams,
    distinct_texts,
    evaluate,
    make_policy,
    register_text_env,
    sample_texts,
    train,
)
from ppo_edu.control import envs as envs_module
from ppo_edu.control.envs import make_envs
from ppo_edu.control.text import MAX_LENGTH, VOCABULARY, alternating_letters

NAN, INF = float("nan"), float("inf")
SMALL = {"vocabulary": "ab.", "max_length": 4}


def write(env: TextEnv, text: str) -> list[tuple]:
    """What each step of writing this text returns, as (observation, reward, terminated, truncated, info)."""
    env.reset(seed=0)
    return [env.step(env.vocabulary.index(character)) for character in text]


# One text ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", [".", "a.", "ab.", "abb.", "abba", "aaaa"])
def test_a_text_ends_at_its_full_stop_or_at_the_maximum_length_and_is_paid_there_alone(text):
    asked = []
    env = TextEnv(lambda finished: asked.append(finished) or 7.0, **SMALL)
    steps = write(env, text)
    assert [terminated for _, _, terminated, _, _ in steps] == [False] * (len(text) - 1) + [True]
    assert [reward for _, reward, *_ in steps] == [0.0] * (len(text) - 1) + [7.0]
    assert not any(truncated for _, _, _, truncated, _ in steps)
    assert asked == [text], "the reward function sees finished texts alone, each once"
    assert env.text == text


def test_the_observation_holds_the_text_so_far_newest_last_and_the_share_of_the_length():
    env = TextEnv(**SMALL)
    first, _ = env.reset()
    assert first.tolist() == [0.0] * 13
    one = {"a": [1, 0, 0], "b": [0, 1, 0], ".": [0, 0, 1], " ": [0, 0, 0]}
    for text in ("a", "ab", "abb", "abb."):
        observation = write(env, text)[-1][0]
        want = [x for character in text.rjust(4) for x in one[character]] + [len(text) / 4]
        assert observation.tolist() == want
        assert env.observation_space.contains(observation)


def test_the_whole_window_tells_every_unfinished_text_from_every_other():
    env = TextEnv(**SMALL)
    texts = [a + b + c for a in ("", "a", "b") for b in ("", "a", "b") for c in ("", "a", "b")]
    seen = {text: tuple(write(env, text)[-1][0]) for text in set(texts) - {""}}
    assert len(set(seen.values())) == len(seen)


def test_a_short_window_shows_the_last_characters_alone():
    env = TextEnv(**SMALL, window=2)
    assert env.observation_space.shape == (7,)
    assert write(env, "aab")[-1][0].tolist() == write(env, "bab")[-1][0].tolist() == [1, 0, 0, 0, 1, 0, 0.75]


def test_observations_are_copies_and_a_reset_begins_anew():
    env = TextEnv(**SMALL)
    steps = write(env, "ab.")
    before = [observation.copy() for observation, *_ in steps]
    assert not env.reset()[0].any()
    assert env.text == ""
    assert all(np.array_equal(x, y) for x, (y, *_) in zip(before, steps, strict=True))


@pytest.mark.parametrize("env_id", ["ppo_edu/Text-v0", "Short-v0"])
def test_gymnasiums_own_checker_finds_nothing(env_id):
    register_text_env("Short-v0", len, vocabulary="ab.", max_length=3, window=1)
    check_env(gym.make(env_id).unwrapped, skip_render_check=True)


@pytest.mark.parametrize(
    ("text", "reward"),
    [
        ("banana.", 0.5),
        ("abababababa.", 1.0),
        ("bababababab.", 1.0),
        ("abababababab", 0.0),
        ("street.", 0.2),
        ("a.", 0.0),
        (".", 0.0),
        ("aa.", 0.0),
    ],
)
def test_the_default_reward_counts_changes_between_vowel_and_consonant(text, reward):
    assert alternating_letters(text) == pytest.approx(reward)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"reward_fn": 3}, "reward_fn must be a function"),
        ({"vocabulary": "abc"}, "vocabulary must be a string of distinct characters, '.' and at least one more"),
        ({"vocabulary": "."}, "vocabulary must"),
        ({"vocabulary": "aa."}, "vocabulary must"),
        ({"vocabulary": ["a", "."]}, "vocabulary must"),
        ({"vocabulary": None}, "vocabulary must"),
        ({"max_length": 0}, "max_length must be an int of at least 1"),
        ({"max_length": 3.0}, "max_length must be an int of at least 1"),
        ({"window": 0}, "window must be an int of at least 1"),
        ({"window": 13}, "window must be at most max_length = 12"),
    ],
)
def test_bad_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        TextEnv(**arguments)
    with pytest.raises(ValueError, match=message):
        register_text_env("Bad-v0", **({"reward_fn": len} | arguments))
    assert "Bad-v0" not in gym.registry


@pytest.mark.parametrize("reward", [2, 2.0, np.float32(2), np.int64(2)])
def test_numpys_numbers_are_numbers(reward):
    paid = write(TextEnv(lambda text: reward, **SMALL), "a.")[-1][1]
    assert paid == 2.0
    assert type(paid) is float


@pytest.mark.parametrize("wrong", [NAN, INF, None, "1", True, torch.ones(()), np.float32("nan"), np.ones(1)])
def test_a_reward_that_is_no_finite_number_is_refused_with_its_text(wrong):
    with pytest.raises(ValueError, match=r"reward_fn must return a finite number, got .* for 'a\.'"):
        write(TextEnv(lambda text: wrong, **SMALL), "a.")


# Registered -------------------------------------------------------------------------------------------------------------


def test_environments_of_texts_reset_on_the_next_step_and_lie_where_the_others_do():
    assert envs_module.TextEnv is TextEnv
    envs = make_envs("ppo_edu/Text-v0", 2)
    assert envs.metadata["autoreset_mode"] == AutoresetMode.NEXT_STEP
    assert envs.single_observation_space.shape == (MAX_LENGTH * len(VOCABULARY) + 1,)


def test_a_registered_reward_is_the_one_that_pays_and_can_be_replaced():
    register_text_env("Mine-v0", lambda text: 2.0, **SMALL)
    policy = make_policy(TextEnv(**SMALL).observation_space, TextEnv(**SMALL).action_space, (4,))
    assert set(evaluate(policy, "Mine-v0", episodes=5)) == {2.0}
    register_text_env("Mine-v0", lambda text: 3.0, **SMALL)
    assert set(evaluate(policy, "Mine-v0", episodes=5)) == {3.0}


def test_a_reward_that_keeps_a_state_is_not_copied():
    """Gymnasium copies the arguments of an environment: a reward model would be copied for every text, and some cannot be."""

    class Judge:
        def __init__(self):
            self.lock, self.texts = threading.Lock(), []

        def __call__(self, text):
            self.texts.append(text)
            return 1.0

    judge = Judge()
    register_text_env("Judged-v0", judge)
    texts, rewards = sample_texts(writer(), "Judged-v0", 5)
    assert sorted(judge.texts) == sorted(texts)
    assert rewards == [1.0] * 5


@pytest.mark.parametrize("env_id", ["CartPole-v1", "not an id", "", None, ["Mine-v0"]])
def test_an_id_that_is_taken_or_none_is_refused(env_id):
    before = gym.registry.get("CartPole-v1")
    with pytest.raises(ValueError, match="env_id must be"):
        register_text_env(env_id, len)
    assert gym.registry["CartPole-v1"] is before


# Samples ----------------------------------------------------------------------------------------------------------------


def writer(seed: int = 0):
    torch.manual_seed(seed)
    return make_policy(TextEnv().observation_space, TextEnv().action_space, (8,), output_gain=1.0)


def test_samples_are_finished_texts_with_the_rewards_that_they_earn():
    texts, rewards = sample_texts(writer(), "ppo_edu/Text-v0", 200)
    assert len(texts) == len(rewards) == 200
    for text, reward in zip(texts, rewards, strict=True):
        assert text.endswith(".") or len(text) == MAX_LENGTH
        assert "." not in text[:-1]
        assert reward == alternating_letters(text)
    assert any(rewards)
    assert {text.endswith(".") for text in texts} == {True, False}


def test_samples_follow_the_policys_probabilities():
    policy = writer()
    probs = policy.distribution(torch.zeros(1, MAX_LENGTH * len(VOCABULARY) + 1)).probs[0].tolist()
    texts, _ = sample_texts(policy, "ppo_edu/Text-v0", 4000)
    for character, p in zip(VOCABULARY, probs, strict=True):
        share = sum(text[0] == character for text in texts) / len(texts)
        assert share == pytest.approx(p, abs=4.5 * math.sqrt(p * (1 - p) / len(texts)))


def test_the_same_seed_gives_the_same_texts_and_the_callers_random_state_stays():
    policy, state = writer(), torch.get_rng_state()
    first, again, other = (sample_texts(policy, "ppo_edu/Text-v0", 20, seed=seed)[0] for seed in (1, 1, 2))
    assert first == again != other
    assert torch.equal(torch.get_rng_state(), state)
    assert len(set(sample_texts(policy, "ppo_edu/Text-v0", 5, greedy=True)[0])) == 1


@pytest.mark.parametrize("n", [0, -1, 2.0, None, True])
def test_a_bad_number_of_texts_is_refused(n):
    with pytest.raises(ValueError, match="n must be an int of at least 1"):
        sample_texts(writer(), "ppo_edu/Text-v0", n)


@pytest.mark.parametrize("env_id", ["CartPole-v1", "NoSuchText-v0", None, ["ppo_edu/Text-v0"]])
def test_samples_of_another_environment_are_refused(env_id):
    with pytest.raises(ValueError, match="env_id must name a TextEnv"):
        sample_texts(writer(), env_id, 3)


def test_samples_of_a_policy_for_another_environment_are_refused():
    register_text_env("Short-v0", len, **SMALL)
    with pytest.raises(ValueError, match=r"^policy must take the environment's observations, of size 13, got one for size 325"):
        sample_texts(writer(), "Short-v0", 3)


def test_diversity_by_hand():
    texts = ["aba.", "aba.", "b.", "."]
    assert distinct_texts(texts) == 3 / 4
    assert distinct_bigrams(texts) == 4 / 7  # ab, ba, a., b. of seven pairs
    assert distinct_bigrams(["."]) == 0.0


@pytest.mark.parametrize("fn", [distinct_texts, distinct_bigrams])
@pytest.mark.parametrize("texts", [[], "abc", [1], None])
def test_diversity_of_no_list_of_texts_is_refused(fn, texts):
    with pytest.raises(ValueError, match="texts must be a list of at least one string"):
        fn(texts)


# Training ---------------------------------------------------------------------------------------------------------------


def test_training_is_reproducible_and_warns_only_when_resumed(tmp_path):
    config = tiny(env_id="ppo_edu/Text-v0")
    first, second = (train(config, seed=1, progress=False) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first.policy.parameters(), second.policy.parameters(), strict=True))
    train(config, log_dir=tmp_path, progress=False, callback=lambda state: state.update == 2)
    with pytest.warns(UserWarning, match="fresh episodes"):
        train(config, resume=tmp_path, progress=False)


def test_the_same_trainer_learns_to_write():
    """Three letters and a stop, five characters: all 4^5 texts can be tried to know the best."""
    register_text_env("Tiny-v0", lambda text: alternating_letters(text) * 10 / 3, vocabulary="abc.", max_length=5)
    everything = ["".join(letters) for letters in itertools.product("abc.", repeat=5)]
    best = max(alternating_letters(text) * 10 / 3 for text in everything)
    config = PPOConfig(env_id="Tiny-v0", total_steps=12_000, gamma=1.0)
    policy = train(config, progress=False).policy
    _, rewards = sample_texts(policy, "Tiny-v0", 200)
    assert np.mean(rewards) >= 0.95
    assert max(rewards) == pytest.approx(best) == pytest.approx(1.0)
