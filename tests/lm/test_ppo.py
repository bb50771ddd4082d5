"""The update: what enters it, its numbers against an independent computation, the same gradient whatever the split, the log."""

import copy
import math
import time
from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from lm_helpers import PROMPTS, make_lm, make_tokenizer, seeded_generator, texts_as_tokens
from ppo_helpers import MEASURED, count_a, distance, make_policy, run, same, small, unmeasured, weights

from ppo_edu.lm import PolicyWithValue, ppo
from ppo_edu.lm.ppo import draw_prompts
from ppo_edu.lm.rewards import last_token
from ppo_edu.runs import Run, column

DROPOUT = {
    "gpt2": {"resid_pdrop": 0.3, "embd_pdrop": 0.3, "attn_pdrop": 0.3},
    "llama": {"attention_dropout": 0.5},
    "qwen2": {"attention_dropout": 0.5},
    "qwen3": {"attention_dropout": 0.5},
    "gpt_neox": {"attention_dropout": 0.3, "hidden_dropout": 0.3},
}


def record(monkeypatch, name: str) -> list[SimpleNamespace]:
    """From now on, every call of `ppo.<name>`: its args, kwargs and result."""
    calls, original = [], getattr(ppo, name)

    def recording(*args, **kwargs):
        result = original(*args, **kwargs)
        calls.append(SimpleNamespace(args=args, kwargs=kwargs, result=result))
        return result

    monkeypatch.setattr(ppo, name, recording)
    return calls


def collect(config, *, policy=None, reference=None, reward_fn=count_a, seed=0):
    """The first batch of a training, and what is logged of it."""
    with Run("lm-ppo", {}) as new_run:
        state = ppo.start(policy or make_policy(), make_tokenizer(), config, reference, seed, new_run)
        return ppo.collect(state, list(PROMPTS), reward_fn, config)


# Learning rate 0 ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", ["shared", "separate"])
def test_with_learning_rate_0_every_ratio_is_1_against_the_log_probs_of_sampling(architecture, value, monkeypatch):
    """Both sides agree on positions under left padding, on the temperature, on which logit predicts which token; dropout is off."""
    sampled, improved, critic = (record(monkeypatch, name) for name in ("generate", "improve", "value_loss"))
    policy = make_policy(architecture, value=value, head=0.5, **DROPOUT[architecture]).train()
    before = weights(policy)
    config = small(learning_rate=0.0, temperature=0.7, batch_size=12, max_new_tokens=8, updates=3, minibatches=3, value_clip_range=0.2)
    log = run(policy, config).log
    assert same(weights(policy), before)
    assert column(log, "largest_ratio_deviation").max() < 1e-5
    assert column(log, "clip_fraction").max() == 0.0
    for generation, update in zip(sampled, improved, strict=True):
        responses = generation.result
        assert update.args[1].responses is responses, "the old log-probabilities are those that sampling returned"
        assert not responses.prompt_mask.all()
        assert not responses.mask.all()
    assert len(critic) == 3 * 2 * 3
    for call in critic:
        change = torch.where(call.kwargs["mask"], call.args[0] - call.kwargs["old_values"], 0.0)
        assert change.abs().max() < 1e-5, "no dropout in the critic either"
        assert call.kwargs["old_values"].abs().max() > 0.1


def test_padding_with_the_end_token_changes_nothing():
    """The same model, once with a pad token of its own and once with <eos> in its place."""
    results = [run(config=small(temperature=0.7), tokenizer=make_tokenizer(pad_token=pad)) for pad in ("<pad>", "<eos>")]
    assert same(*(weights(result.policy) for result in results))
    assert column(results[0].log, "eos_fraction").min() < 1.0
    assert column(results[0].log, "eos_fraction").max() > 0.0


def test_while_learning_the_first_minibatch_still_has_ratio_1_and_later_ones_do_not():
    log = run(config=small(temperature=0.7)).log
    assert column(log, "first_minibatch_ratio_deviation").max() < 1e-5
    assert column(log, "largest_ratio_deviation").min() > 1e-2


# What enters an update ----------------------------------------------------------------------------------------------------


def test_the_score_lands_on_the_last_real_token_also_of_a_cut_response():
    """With gamma 1, lambda 0, a critic that says 0 and no KL, the critic's target is the reward of each token."""
    scores = 1.0 + torch.arange(24.0)
    batch, row = collect(small(kl_coef=0.0, lam=0.0, batch_size=24), reward_fn=lambda prompts, responses: scores)
    responses = batch.responses
    expected = torch.zeros_like(batch.returns)
    for i, length in enumerate(responses.lengths.tolist()):
        expected[i, length - 1] = scores[i]
    assert torch.equal(batch.returns, expected)
    assert responses.ended.any()
    assert not responses.ended.all()
    assert row["reward"] == 12.5 == 1.0 + 23 / 2
    assert row["eos_fraction"] == pytest.approx(float(responses.ended.float().mean()))


def test_the_missing_eos_penalty_is_taken_from_unended_responses_only():
    settings = {"kl_coef": 0.0, "lam": 0.0, "batch_size": 24}
    batch, row = collect(small(**settings, missing_eos_penalty=0.75))
    free, free_row = collect(small(**settings))
    assert torch.equal(batch.responses.tokens, free.responses.tokens)
    cut = ~batch.responses.ended
    assert 0 < cut.sum() < 24
    torch.testing.assert_close(free.returns - batch.returns, 0.75 * (last_token(batch.responses.mask) & cut[:, None]))
    assert row["reward"] == free_row["reward"], "the log shows the score itself"


def test_whitening_rewards_scales_them_and_moves_none():
    """A common shift would be a bonus, or a fine, per token: it would teach length, and end at another policy."""
    settings = {"lam": 0.0, "batch_size": 24, "kl_coef": 0.3}
    other = make_lm("gpt2", seed=1)
    free, scaled = (collect(small(**settings, whiten_rewards=on), reference=other)[0].returns for on in (False, True))
    mask = collect(small(**settings), reference=other)[0].responses.mask
    factor = scaled[mask] / free[mask]
    torch.testing.assert_close(factor, factor[:1].expand_as(factor))
    assert factor[0] > 0
    assert not torch.allclose(factor[0], torch.tensor(1.0), rtol=0.05)
    assert float(scaled[mask].square().mean()) == pytest.approx(1.0, rel=1e-4)


def test_whitened_rewards_that_do_not_vary_stay_finite_and_moderate():
    config = small(whiten_rewards=True, max_new_tokens=1, kl_coef=0.0)
    batch, _ = collect(config, reward_fn=lambda prompts, responses: torch.full((8,), 3.0))
    torch.testing.assert_close(batch.returns, torch.ones(8, 1))


# Against float64 NumPy ----------------------------------------------------------------------------------------------------


def plain_forward(policy: PolicyWithValue, prompt: list[int], response: list[int], temperature: float) -> tuple[np.ndarray, np.ndarray]:
    """All log-probabilities [L, V] and values [L] of one text by itself: no padding, no mask, no positions."""
    ids = torch.tensor([prompt + response])
    positions = slice(len(prompt) - 1, len(prompt) + len(response) - 1)
    with torch.no_grad():
        logits = policy.lm(input_ids=ids).logits[0, positions].numpy() / temperature
        trunk = policy.lm.base_model if policy.value_trunk is None else policy.value_trunk
        values = policy.value_head(trunk(input_ids=ids).last_hidden_state)[0, positions, 0].numpy()
    return logits - np.log(np.exp(logits).sum(-1, keepdims=True)), values


def double(module):
    return copy.deepcopy(module).double()


class UpdateInNumpy:
    """One update worked out response by response in float64, from sampled tokens and their log-probabilities, by the formulas alone."""

    def __init__(self, policy, reference, responses, texts, config):
        self.config, self.texts = config, texts
        self.old_log_probs = [x[m].double().numpy() for x, m in zip(responses.log_probs, responses.mask, strict=True)]
        self.ended = responses.ended.tolist()
        self.scores = [response.split().count("a") + 0.01 * len(prompt) for prompt, response, _, _ in texts]
        forward = [plain_forward(policy, p, r, config.temperature) for _, _, p, r in texts]
        picked = [lp[np.arange(len(r)), r] for (lp, _), (_, _, _, r) in zip(forward, texts, strict=True)]
        for mine, theirs in zip(picked, self.old_log_probs, strict=True):
            np.testing.assert_allclose(theirs, mine, atol=1e-5)
        self.entropy = np.concatenate([-(np.exp(lp) * lp).sum(-1) for lp, _ in forward]).mean()
        self.values = [v for _, v in forward]
        wrapped = PolicyWithValue(reference)
        self.ref_log_probs = [plain_forward(wrapped, p, r, config.temperature)[0][np.arange(len(r)), r] for _, _, p, r in texts]
        self.kl = np.array([sum(a - b) for a, b in zip(self.old_log_probs, self.ref_log_probs, strict=True)])
        self.rewards = self.token_rewards()
        self.advantages = [self.gae(r, v) for r, v in zip(self.rewards, self.values, strict=True)]
        self.returns = [a + v for a, v in zip(self.advantages, self.values, strict=True)]
        self.kl_weight = config.kl_coef if config.kl_in == "loss" else 0.0
        if config.whiten_advantages:
            flat = np.concatenate(self.advantages)
            self.kl_weight /= flat.std(ddof=1)
            self.advantages = [(a - flat.mean()) / flat.std(ddof=1) for a in self.advantages]

    def token_rewards(self):
        c, rewards = self.config, []
        for old, ref, score, ended in zip(self.old_log_probs, self.ref_log_probs, self.scores, self.ended, strict=True):
            r = -c.kl_coef * (old - ref) if c.kl_in == "reward" else np.zeros(len(old))
            r[-1] += score if ended else score - c.missing_eos_penalty
            rewards.append(r)
        if c.whiten_rewards:
            scale = math.sqrt((np.concatenate(rewards) ** 2).mean())
            rewards = [r / scale for r in rewards]
        return rewards

    def gae(self, rewards, values):
        c, T = self.config, len(rewards)
        following = np.append(values[1:], 0.0)
        deltas = rewards + c.gamma * following - values
        return np.array([sum((c.gamma * c.lam) ** (k - t) * deltas[k] for k in range(t, T)) for t in range(T)])

    def part(self, policy, rows):
        """Of these responses under a later policy: sums in the order of `STEP_COLUMNS`, number of tokens, largest |ratio - 1|."""
        c = self.config
        sums, tokens, largest = np.zeros(5), 0, 0.0
        for i in rows:
            _, _, prompt, response = self.texts[i]
            log_probs, values = plain_forward(policy, prompt, response, c.temperature)
            log_probs = log_probs[np.arange(len(response)), response]
            log_ratio = log_probs - self.old_log_probs[i]
            ratio, A, R = np.exp(log_ratio), self.advantages[i], self.returns[i]
            low, high = 1 - c.clip_range, 1 + c.clip_range
            surrogate = np.where(A > 0, np.minimum(ratio, high) * A, np.maximum(ratio, low) * A)
            squared = (values - R) ** 2
            if c.value_clip_range is not None:
                moved = np.minimum(np.maximum(values - self.values[i], -c.value_clip_range), c.value_clip_range)
                squared = np.maximum(squared, (self.values[i] + moved - R) ** 2)
            d = log_probs.sum() - self.ref_log_probs[i].sum()
            k = 0.5 * d**2 if c.kl_loss == "k2" else math.exp(-d) - 1 + d
            kl = math.exp(log_ratio.sum()) * k if c.kl_in == "loss" else 0.0
            outside = (ratio < low) | (ratio > high)
            sums += [-surrogate.sum(), 0.5 * squared.sum(), kl, (ratio - 1 - log_ratio).sum(), outside.sum()]
            tokens += len(response)
            largest = max(largest, np.abs(ratio - 1).max())
        return sums, tokens, largest


COMMON = {"updates": 1, "batch_size": 16, "epochs": 3, "minibatches": 2, "accumulation": 2, "learning_rate": 0.02, "max_new_tokens": 7}
COMMON |= {"temperature": 0.7, "kl_coef": 0.3, "clip_range": 0.1, "gamma": 0.9, "lam": 0.8, "missing_eos_penalty": 0.5, "value_coef": 0.7}
VARIANTS = {
    "plain": {"whiten_advantages": False},
    "default": {},
    "everything": {"whiten_rewards": True, "value_clip_range": 0.05},
    "k2": {"kl_in": "loss"},
    "k3": {"kl_in": "loss", "kl_loss": "k3", "whiten_advantages": False, "value_clip_range": 0.05},
}


@pytest.mark.parametrize("value", ["shared", "separate"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_a_whole_update_equals_one_computed_from_the_formulas_in_float64(variant, value, monkeypatch):
    config = small(**(COMMON | VARIANTS[variant]))
    policy, reference = make_policy(value=value, head=0.3), make_lm("gpt2", seed=1)
    steps, original = [], ppo.ppo_loss

    def recording(policy, batch, config, kl_weight, **kwargs):
        now = double(policy)
        result = original(policy, batch, config, kl_weight, **kwargs)
        steps.append((now, batch, float(kl_weight), result))
        return result

    monkeypatch.setattr(ppo, "ppo_loss", recording)
    collected, improved = record(monkeypatch, "collect"), record(monkeypatch, "improve")
    start, samples = double(policy), []
    seed = list(VARIANTS).index(variant)
    row = run(policy, config, reference=reference, seed=seed, callback=lambda state: samples.extend(state.samples)).log[0]
    batch, _ = collected[0].result
    assert improved[0].args[1] is batch

    tokens = texts_as_tokens(batch.responses)
    texts = [(s.prompt, s.response, p, r) for s, (p, r) in zip(samples, tokens, strict=True)]
    mine = UpdateInNumpy(start, double(reference), batch.responses, texts, config)
    lengths = [len(r) for _, _, _, r in texts]
    assert len(set(lengths)) > 2
    assert set(mine.ended) == {True, False}

    def number_of(part):
        """Which responses of the batch these are: equal texts have equal numbers throughout."""
        return [tokens.index(text) for text in texts_as_tokens(part.responses)]

    parts = []
    for now, part, kl_weight, (loss, _, largest) in steps:
        rows = number_of(part)
        for name, theirs in (("advantages", part.advantages), ("returns", part.returns), ("values", part.values)):
            for i, x, mask in zip(rows, theirs, part.responses.mask, strict=True):
                np.testing.assert_allclose(x[mask], getattr(mine, name)[i], rtol=1e-3, atol=1e-5, err_msg=name)
        sums, count, far = mine.part(now, rows)
        assert kl_weight == pytest.approx(mine.kl_weight, rel=1e-4)
        want = (sums[0] + config.value_coef * sums[1] + mine.kl_weight * sums[2]) / count
        assert loss.item() == pytest.approx(want, rel=1e-4, abs=1e-6)
        assert float(largest) == pytest.approx(far, rel=1e-3, abs=1e-5)
        parts.append((sums, count, far))
    assert len(parts) == 3 * 2 * 2
    minibatches = [((a[0] + b[0]) / (a[1] + b[1]), a[1] + b[1], max(a[2], b[2])) for a, b in zip(parts[::2], parts[1::2], strict=True)]
    assert sum(count for _, count, _ in minibatches[:2]) == sum(lengths), "an epoch sees every token once"
    for name, want in zip(ppo.STEP_COLUMNS, np.mean([numbers for numbers, _, _ in minibatches[-2:]], axis=0), strict=True):
        assert row[name] == pytest.approx(want, rel=1e-3, abs=1e-6), name
    assert row["clip_fraction"] > 0.05
    assert row["largest_ratio_deviation"] == pytest.approx(max(far for _, _, far in minibatches), rel=1e-3)
    returns, values = np.concatenate(mine.returns), np.concatenate(mine.values)
    expected = {
        "reward": np.mean(mine.scores),
        "reward_std": np.std(mine.scores, ddof=1),
        "kl": mine.kl.mean(),
        "kl_coef": config.kl_coef,
        "entropy": mine.entropy,
        "explained_variance": 1 - np.var(returns - values) / np.var(returns),
        "response_length": np.mean(lengths),
        "eos_fraction": np.mean(mine.ended),
    }
    for name, want in expected.items():
        assert row[name] == pytest.approx(want, rel=1e-3, abs=1e-5), name


# The same gradient whatever the split -------------------------------------------------------------------------------------


@pytest.mark.parametrize("changes", [{}, {"kl_in": "loss"}, {"kl_in": "loss", "kl_loss": "k3", "value_clip_range": 0.1}])
def test_accumulation_changes_no_update(changes, monkeypatch):
    """Ragged parts: a mean of means would weigh the tokens of short responses more. In float64, with an epsilon that keeps Adam smooth."""
    improved = record(monkeypatch, "improve")
    after = []
    for accumulation in (1, 2, 4):
        settings = {"updates": 1, "accumulation": accumulation, "kl_coef": 0.3, "adam_eps": 1e-3, "batch_size": 16, "max_grad_norm": 0.5}
        policy = make_policy(head=0.3).double()
        before = weights(policy)
        run(policy, small(**(settings | changes)), reference=make_lm("gpt2", seed=1).double())
        after.append(weights(policy))
    moved = distance(before, after[0])
    assert moved > 0.1
    assert distance(after[1], after[0]) < 1e-5 * moved
    assert distance(after[2], after[0]) < 1e-5 * moved
    assert len(set(improved[0].args[1].responses.lengths.tolist())) > 2


def test_a_batch_that_the_split_does_not_divide_is_used_whole(monkeypatch):
    losses = record(monkeypatch, "ppo_loss")
    run(config=small(updates=1, epochs=1, batch_size=11, minibatches=3, accumulation=2))
    sizes = [len(call.args[1].responses) for call in losses]
    assert sizes == [2, 2, 2, 2, 2, 1]


def test_each_step_starts_from_a_gradient_of_zero():
    """At learning rate 0 every epoch has the gradient of the first; piled up, the last would be many times as long."""
    norms = []
    for epochs in (1, 4):
        config = small(updates=1, learning_rate=0.0, epochs=epochs, minibatches=1, max_grad_norm=None)
        norms.append(run(make_policy(head=0.3), config).log[0]["grad_norm"])
    assert norms[1] == pytest.approx(norms[0], rel=1e-4)


@pytest.mark.parametrize("max_grad_norm", [0.01, None])
def test_max_grad_norm_bounds_the_gradient_of_all_parameters_together(max_grad_norm):
    policy = make_policy()
    row = run(policy, small(updates=1, epochs=1, minibatches=1, max_grad_norm=max_grad_norm)).log[0]
    norm = math.sqrt(sum(float(p.grad.double().square().sum()) for p in policy.parameters()))
    assert norm == pytest.approx(max_grad_norm or row["grad_norm"], rel=1e-3)
    assert row["grad_norm"] > 0.1, "the log shows the norm before"


def test_the_policys_loss_leaves_a_separate_critic_alone_and_the_critics_the_policy():
    """With no weight on the critic's loss its trunk rests; with equal scores and no critic's error, so does the policy."""
    critic = make_policy(value="separate")
    before = weights(critic)
    after = weights(run(critic, small(value_coef=0.0)).policy)
    moved = {name.split(".")[0] for name in before if not torch.equal(before[name], after[name])}
    assert moved == {"lm"}
    policy = make_policy(value="separate")
    before = weights(policy)
    nothing = {"kl_coef": 0.0, "updates": 1, "lam": 1.0, "max_new_tokens": 1, "epochs": 1, "minibatches": 1}
    after = weights(run(policy, small(**nothing), reward_fn=lambda prompts, responses: torch.ones(8)).policy)
    moved = {name.split(".")[0] for name in before if not torch.equal(before[name], after[name])}
    assert moved == {"value_head"}, "advantages without spread, whitened, are 0; a head of zeros passes no gradient on"


def test_the_annealed_learning_rate_falls_linearly_and_is_the_one_used():
    rates = column(run(config=small(anneal_learning_rate=True, learning_rate=0.03)).log, "learning_rate")
    np.testing.assert_allclose(rates, 0.03 * np.array([6, 5, 4, 3, 2, 1]) / 6)
    assert set(column(run(config=small(learning_rate=0.03)).log, "learning_rate")) == {0.03}
    used = []
    run(config=small(anneal_learning_rate=True, learning_rate=0.03), callback=lambda s: used.append(s.optimizer.param_groups[0]["lr"]))
    np.testing.assert_allclose(used, rates)


# Prompts ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("n", "batch_size"), [(1, 5), (3, 3), (6, 8), (6, 18), (10, 4), (100, 64)])
def test_no_prompt_is_drawn_twice_before_all_were_drawn(n, batch_size):
    for seed in range(20):
        drawn = draw_prompts(n, batch_size, seeded_generator(seed))
        assert len(drawn) == batch_size
        for start in range(0, batch_size, n):
            assert len(set(drawn[start : start + n])) == len(drawn[start : start + n])
        counts = Counter(drawn)
        assert set(counts) <= set(range(n))
        assert max(counts.values()) - min(counts[i] for i in range(n)) <= 1


def test_prompts_are_drawn_at_random_and_anew():
    generator = seeded_generator()
    batches = [tuple(draw_prompts(10, 4, generator)) for _ in range(50)]
    assert len(set(batches)) > 40
    assert {i for batch in batches for i in batch} == set(range(10))


# The log, samples, callbacks ----------------------------------------------------------------------------------------------


COLUMNS = {"update", "seconds", "reward", "reward_std", "kl", "kl_coef", "entropy", "explained_variance", "response_length", "eos_fraction"}
COLUMNS |= {"policy_loss", "value_loss", "kl_loss", "approx_kl", "clip_fraction", "grad_norm", "learning_rate", "tokens_per_second"}
COLUMNS |= {"first_minibatch_ratio_deviation", "largest_ratio_deviation", "sampling_mismatch", "peak_memory_mb"}
COLUMNS |= {"seconds_generation", "seconds_scoring", "seconds_update"}


def test_one_row_of_finite_floats_per_update():
    result = run()
    assert column(result.log, "update").tolist() == [1, 2, 3, 4, 5, 6]
    for row in result.log:
        assert row.keys() == COLUMNS
        assert all(type(x) in (int, float) and math.isfinite(x) for x in row.values())
        parts = row["seconds_generation"] + row["seconds_scoring"] + row["seconds_update"]
        assert 0 < row["response_length"] <= 5
        assert row["peak_memory_mb"] > 50
        assert row["tokens_per_second"] <= row["response_length"] * 8 / parts
    seconds = column(result.log, "seconds")
    assert (np.diff(seconds) > 0).all()
    assert result.seconds == seconds[-1]
    assert set(MEASURED) < COLUMNS


def test_a_callback_sees_samples_that_agree_with_the_log():
    asked, seen = [], []

    def scorer(prompts, responses):
        asked.append((prompts, responses))
        return count_a(prompts, responses)

    def look(state):
        row = state.log[-1]
        assert row["update"] == state.update == len(state.log) == len(asked)
        assert [(s.prompt, s.response) for s in state.samples] == list(zip(*asked[-1], strict=True))
        assert {s.prompt for s in state.samples} == set(PROMPTS)
        assert [s.score for s in state.samples] == count_a(*asked[-1]).tolist()
        assert row["reward"] == pytest.approx(np.mean([s.score for s in state.samples]))
        assert row["reward_std"] == pytest.approx(np.std([s.score for s in state.samples], ddof=1), rel=1e-5)
        assert row["kl"] == pytest.approx(np.mean([s.kl for s in state.samples]), abs=1e-6)
        assert isinstance(state.policy, PolicyWithValue)
        seen.append(state.update)

    result = run(config=small(missing_eos_penalty=0.5), callback=look, reward_fn=scorer)
    assert seen == [1, 2, 3, 4, 5, 6]
    assert all("<eos>" not in response for _, responses in asked for response in responses)
    assert column(result.log, "kl").max() > 0.1


def test_every_update_draws_prompts_and_responses_anew():
    batches = []
    run(config=small(learning_rate=0.0), callback=lambda state: batches.append([(s.prompt, s.response) for s in state.samples]))
    assert len({tuple(batch) for batch in batches}) == 6
    assert len({tuple(prompt for prompt, _ in batch) for batch in batches}) == 6


def test_a_callback_that_returns_true_stops_the_training_and_any_other_value_does_not():
    assert len(run(callback=lambda state: state.update == 3).log) == 3
    assert len(run(callback=lambda state: None).log) == 6


def test_the_time_of_callbacks_is_not_counted():
    started = time.perf_counter()
    result = run(config=small(updates=2), callback=lambda state: time.sleep(0.3))
    assert result.seconds < time.perf_counter() - started - 0.55


def test_the_policy_is_trained_in_place_and_the_reference_stays():
    policy, reference = make_policy(), make_lm("gpt2", seed=1)
    before, ref_before = weights(policy), weights(reference)
    result = run(policy, reference=reference)
    assert result.policy is policy
    assert not same(weights(policy), before)
    assert same(weights(reference), ref_before)
    assert abs(result.log[0]["kl"]) > 0.01, "the KL is measured to the reference that was given"


def test_without_a_reference_it_is_a_frozen_copy_of_the_starting_policy():
    policy = make_policy()
    before, seen = weights(policy.lm), []
    result = run(policy, callback=lambda state: seen.append(state.reference))
    assert same(weights(seen[-1]), before)
    assert not same(weights(policy.lm), before)
    assert abs(result.log[0]["kl"]) < 1e-4 < 0.01 < result.log[-1]["kl"]


def test_a_model_that_served_as_reference_can_be_trained_afterwards():
    """To freeze the caller's model would make its own training, later in a notebook, fail in silence."""
    model = make_lm("gpt2", seed=1)
    run(reference=model)
    assert all(p.requires_grad for p in model.parameters())
    before = weights(model)
    run(PolicyWithValue(model))
    assert not same(weights(model), before)


# Determinism --------------------------------------------------------------------------------------------------------------


def test_the_same_seed_gives_the_same_weights_bit_for_bit_and_another_seed_others():
    torch.manual_seed(1)
    first = run(seed=3)
    torch.manual_seed(2)  # what the caller does with the global state plays no part
    second = run(seed=3)
    assert same(weights(first.policy), weights(second.policy))
    assert unmeasured(first.log) == unmeasured(second.log)
    assert not same(weights(first.policy), weights(run(seed=4).policy))


def test_a_reward_function_that_draws_random_numbers_is_reproducible_too():
    def noisy(prompts, responses):
        return count_a(prompts, responses) + torch.randn(len(responses))

    assert same(weights(run(reward_fn=noisy).policy), weights(run(reward_fn=noisy).policy))


def test_the_callers_random_state_stays_also_when_training_fails():
    policy, state = make_policy(), torch.get_rng_state()
    run(policy, reward_fn=lambda prompts, responses: torch.randn(len(responses)))
    assert torch.equal(torch.get_rng_state(), state)
    with pytest.raises(ZeroDivisionError):
        run(policy, callback=lambda state: 1 / 0)
    assert torch.equal(torch.get_rng_state(), state)


def test_sampling_in_a_callback_changes_nothing():
    def look(state):
        ppo.generate(state.policy, state.tokenizer, ["a b"], max_new_tokens=4)

    assert same(weights(run().policy), weights(run(callback=look).policy))


def test_the_progress_bar_is_shown_and_closed_also_after_a_failure(capsys):
    with pytest.raises(ZeroDivisionError):
        run(callback=lambda state: 1 / 0, progress=True)
    text = capsys.readouterr().err
    assert "updates" in text
    assert text.endswith("\n")
    run()
    assert capsys.readouterr() == ("", "")
