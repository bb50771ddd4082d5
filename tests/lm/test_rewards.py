"""Rewards, advantages and KL of responses: against float64 sums written otherwise, and against exact values by enumeration.

The enumerable language has three tokens, and a response ends with token 0 or is cut after three: 7 + 8 = 15 responses.
A policy of it is a table of logits, one row for each text that can go on.
"""

import itertools

import numpy as np
import pytest
import torch
from lm_helpers import all_responses, seeded_generator
from torch.testing import assert_close

from ppo_edu.core import gae, kl_categorical
from ppo_edu.lm import kl_loss, response_advantages, sequence_kl, token_rewards
from ppo_edu.lm.rewards import last_token

LENGTHS = [3, 5, 1, 2, 5]  # two responses fill the batch: they were cut, or ended with their last token
SEEDS = range(5)


def mask_of(lengths, T=5):
    return torch.arange(T) < torch.tensor(lengths)[:, None]


def random_batch(seed, lengths=LENGTHS, T=5):
    """Scores [B]; log-probs, values and rewards [B, T] in float64, with garbage (also NaN) under the padding."""
    g = seeded_generator(seed)
    mask = mask_of(lengths, T)
    names = ("log_probs", "old_log_probs", "ref_log_probs", "values", "rewards")
    tensors = {name: torch.randn(*mask.shape, generator=g, dtype=torch.float64) for name in names}
    for name in names[:3]:
        tensors[name] = -tensors[name].abs()
    for i, x in enumerate(tensors.values()):
        x[~mask] = float("nan") if i % 2 else 1e6
    return {"mask": mask, "scores": torch.randn(len(mask), generator=g, dtype=torch.float64), **tensors}


def pick(batch, *names):
    return {name: batch[name] for name in names}


# The last token ---------------------------------------------------------------------------------------------------------


def test_the_last_real_token_by_hand():
    mask = torch.tensor([[1, 1, 0], [1, 1, 1], [1, 0, 0], [0, 1, 0], [0, 0, 1]]).bool()
    assert last_token(mask).int().tolist() == [[0, 1, 0], [0, 0, 1], [1, 0, 0], [0, 1, 0], [0, 0, 1]]


# Rewards ----------------------------------------------------------------------------------------------------------------


def rewards_of(batch, **options):
    return token_rewards(**pick(batch, "scores", "log_probs", "ref_log_probs", "mask"), **({"kl_coef": 0.3} | options))


def test_token_rewards_by_hand():
    rewards = token_rewards(
        torch.tensor([10.0, -4.0]),
        torch.tensor([[-1.0, -2.0, 0.0], [-0.5, -1.0, -3.0]]),
        torch.tensor([[-1.5, -1.0, 0.0], [-0.5, -3.0, -1.0]]),
        torch.tensor([[True, True, False], [True, True, True]]),
        kl_coef=0.5,
    )
    expected = [[-0.5 * 0.5, 10.0 + 0.5 * 1.0, 0.0], [0.0, -0.5 * 2.0, -4.0 + 0.5 * 2.0]]
    assert_close(rewards, torch.tensor(expected))


def test_the_score_lands_on_the_last_real_token_also_where_the_response_is_cut():
    batch = random_batch(0)
    rewards = rewards_of(batch, kl_coef=0.0)
    expected = np.zeros((5, 5))
    for i, length in enumerate(LENGTHS):
        expected[i, length - 1] = batch["scores"][i]
    assert np.array_equal(rewards.numpy(), expected)


@pytest.mark.parametrize("seed", SEEDS)
def test_rewards_sum_to_the_score_less_the_kl_of_the_sequence(seed):
    batch = random_batch(seed)
    rewards = rewards_of(batch)
    log_probs, ref_log_probs = batch["log_probs"].numpy(), batch["ref_log_probs"].numpy()
    for i, length in enumerate(LENGTHS):
        kl = sum(log_probs[i, t] - ref_log_probs[i, t] for t in range(length))
        assert_close(rewards[i].sum().item(), float(batch["scores"][i] - 0.3 * kl))
        assert_close(sequence_kl(**pick(batch, "log_probs", "ref_log_probs", "mask"))[i].item(), float(kl))
        assert (rewards[i, length:] == 0).all()


def test_a_token_likelier_than_under_the_reference_costs_reward():
    batch = random_batch(0)
    rewards = rewards_of({**batch, "scores": torch.zeros_like(batch["scores"])})
    more_likely = batch["log_probs"] > batch["ref_log_probs"]
    assert torch.equal((rewards < 0)[batch["mask"]], more_likely[batch["mask"]])


def test_rewards_are_detached_and_leave_their_inputs_alone():
    batch = random_batch(0)
    batch["log_probs"].requires_grad_()
    before = {name: x.detach().clone() for name, x in batch.items()}
    rewards = rewards_of(batch)
    assert not rewards.requires_grad
    assert rewards.dtype == torch.float64
    for name, x in before.items():
        assert torch.equal(torch.nan_to_num(batch[name].detach().double()), torch.nan_to_num(x.double())), name


def test_scores_may_be_of_another_precision():
    batch = random_batch(0)
    low, high = (rewards_of({**batch, "scores": batch["scores"].to(dtype)}) for dtype in (torch.float32, torch.float64))
    assert low.dtype == torch.float64
    assert_close(low, high, atol=1e-6, rtol=0)


# Advantages -------------------------------------------------------------------------------------------------------------


def advantages_of(batch, gamma=0.9, lam=0.8):
    return response_advantages(**pick(batch, "rewards", "values", "mask"), gamma=gamma, lam=lam)


CONSTANTS = [(0.9, 0.8), (1.0, 1.0), (1.0, 0.95), (0.7, 0.0), (0.0, 0.5)]


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(("gamma", "lam"), CONSTANTS)
def test_advantages_equal_the_double_sum(seed, gamma, lam):
    """A_t = sum_{l >= t} (gamma * lam)^(l-t) * (r_l + gamma * V_{l+1} - V_l), where nothing comes after the last real token."""
    batch = random_batch(seed)
    advantages = advantages_of(batch, gamma, lam).numpy()
    for i, length in enumerate(LENGTHS):
        r, v = batch["rewards"][i, :length].numpy(), np.append(batch["values"][i, :length].numpy(), 0.0)
        expected = [sum((gamma * lam) ** (l - t) * (r[l] + gamma * v[l + 1] - v[l]) for l in range(t, length)) for t in range(length)]
        assert np.allclose(advantages[i, :length], expected, rtol=0, atol=1e-12)
        assert (advantages[i, length:] == 0).all()


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(("gamma", "lam"), CONSTANTS)
def test_advantages_equal_gae_sequence_by_sequence(seed, gamma, lam):
    batch = random_batch(seed)
    advantages = advantages_of(batch, gamma, lam)
    for i, length in enumerate(LENGTHS):
        rewards, values = (batch[name][i, :length, None] for name in ("rewards", "values"))
        next_values = torch.cat([values[1:], torch.full((1, 1), 1e9, dtype=torch.float64)])  # no bootstrap at the end
        terminated = (torch.arange(length) == length - 1)[:, None]
        alone = gae(rewards, values, next_values, terminated, torch.zeros_like(terminated), gamma=gamma, lam=lam)
        assert_close(advantages[i, :length], alone[:, 0])


def test_with_gamma_and_lambda_1_the_critics_target_is_the_reward_to_come():
    batch = random_batch(1)
    targets = advantages_of(batch, 1.0, 1.0) + batch["values"]
    for i, length in enumerate(LENGTHS):
        assert_close(targets[i, :length], batch["rewards"][i, :length].flip(0).cumsum(0).flip(0))


def test_responses_do_not_touch_each_other():
    batch = random_batch(2)
    changed = {name: x.clone() for name, x in batch.items()}
    for name in ("rewards", "values"):
        changed[name][1] += 100.0
    a, b = advantages_of(batch), advantages_of(changed)
    others = [0, 2, 3, 4]
    assert torch.equal(a[others], b[others])
    assert not torch.equal(a[1], b[1])


def test_what_gae_is_told_of_a_response(monkeypatch):
    """The last real token terminates, cut or not; nothing is truncated; padding is reward 0 and value 0. (design, section 3)

    Any of these alone could be dropped and no number would change, since the others make up for it.
    """
    told = {}

    def spy(rewards, values, next_values, terminated, truncated, **constants):
        told.update(rewards=rewards, values=values, terminated=terminated, truncated=truncated)
        return gae(rewards, values, next_values, terminated, truncated, **constants)

    monkeypatch.setattr("ppo_edu.lm.rewards.gae", spy)
    batch = random_batch(0)
    advantages_of(batch)
    assert not told["truncated"].any()
    for i, length in enumerate(LENGTHS):
        assert told["terminated"][:, i].tolist() == [t >= length - 1 for t in range(5)]
        assert (told["rewards"][length:, i] == 0).all()
        assert (told["values"][length:, i] == 0).all()


def test_advantages_are_detached():
    batch = random_batch(0)
    for name in ("values", "rewards"):
        batch[name].requires_grad_()
    assert not advantages_of(batch).requires_grad


@pytest.mark.parametrize("garbage", [0.0, 1e30, float("nan"), float("-inf")])
def test_more_padding_and_what_stands_there_change_no_number(garbage):
    batch = random_batch(3)
    wider = {name: x if x.ndim == 1 else torch.nn.functional.pad(x, (0, 3)) for name, x in batch.items()}
    for name in ("log_probs", "old_log_probs", "ref_log_probs", "values", "rewards"):
        wider[name][~wider["mask"]] = garbage
    for function in (rewards_of, advantages_of):
        narrow, wide = function(batch), function(wider)
        assert torch.equal(wide[:, :5], narrow)
        assert (wide[:, 5:] == 0).all()
    for function in (sequence_kl, kl_loss):
        names = ("log_probs", "ref_log_probs", "mask") if function is sequence_kl else KL_LOSS_NAMES
        assert_close(function(**pick(wider, *names)), function(**pick(batch, *names)))


# The enumerable language ------------------------------------------------------------------------------------------------

END, V, LONGEST = 0, 3, 3
EVERYTHING = all_responses(V, END, LONGEST)
PREFIXES = [list(x) for n in range(LONGEST) for x in itertools.product(range(1, V), repeat=n)]  # texts that can go on
TOKENS = torch.tensor([y + [END] * (LONGEST - len(y)) for y in EVERYTHING])
MASK = mask_of([len(y) for y in EVERYTHING], LONGEST)
ROWS = torch.tensor([[PREFIXES.index(y[:t]) if t < len(y) else 0 for t in range(LONGEST)] for y in EVERYTHING])
KL_LOSS_NAMES = ("log_probs", "old_log_probs", "ref_log_probs", "mask")


def table(seed):
    """A policy: logits [7, 3] float64, a row for each text that can go on."""
    return torch.randn(len(PREFIXES), V, generator=seeded_generator(seed), dtype=torch.float64)


def log_probs_of(logits):
    """log pi of every token of every response, [15, 3]; 0 on padding."""
    log_probs = torch.log_softmax(logits, -1)[ROWS, TOKENS]
    return torch.where(MASK, log_probs, 0.0)


def exact_kl(logits_p, logits_q):
    """KL(p || q) of the distributions over whole responses, as a sum over all of them."""
    log_p, log_q = log_probs_of(logits_p).sum(1), log_probs_of(logits_q).sum(1)
    return (log_p.exp() * (log_p - log_q)).sum()


def test_the_language_has_15_responses_and_7_texts_that_go_on():
    assert (len(EVERYTHING), len(PREFIXES)) == (15, 7)
    assert_close(log_probs_of(table(0)).sum(1).exp().sum().item(), 1.0)


@pytest.mark.parametrize("seed", SEEDS)
def test_the_mean_of_sequence_kl_is_the_exact_kl(seed):
    """Also by the chain rule: the KL of each next-token distribution, weighted by how often its text is reached."""
    pi, ref = table(seed), table(seed + 100)
    log_probs = log_probs_of(pi)
    probabilities = log_probs.sum(1).exp()
    mean = (probabilities * sequence_kl(log_probs, log_probs_of(ref), MASK)).sum()
    reached = [sum(p for p, y in zip(probabilities, EVERYTHING, strict=True) if y[: len(x)] == x and len(y) > len(x)) for x in PREFIXES]
    assert_close(mean, (torch.stack(reached) * kl_categorical(pi, ref)).sum())
    assert_close(mean, exact_kl(pi, ref))
    assert mean > 0


def expected_gradient(logits, old_logits, ref_logits, kind):
    """The mean, over responses sampled from the old policy, of the gradient of kl_loss of each alone, per response."""
    logits = logits.clone().requires_grad_()
    log_probs, old, ref = log_probs_of(logits), log_probs_of(old_logits), log_probs_of(ref_logits)
    total = torch.zeros_like(logits)
    for i, p in enumerate(old.sum(1).exp()):
        one = slice(i, i + 1)
        loss = kl_loss(log_probs[one], old[one], ref[one], MASK[one], kind=kind) * MASK[i].sum()
        total += p * torch.autograd.grad(loss, logits, retain_graph=True)[0]
    return total


def gradient_of(function, logits):
    logits = logits.clone().requires_grad_()
    return torch.autograd.grad(function(logits), logits)[0]


@pytest.mark.parametrize("on_policy", [True, False])
@pytest.mark.parametrize("seed", SEEDS)
def test_the_expected_gradient_of_k2_is_that_of_kl_to_the_reference_and_of_k3_that_of_the_reverse(seed, on_policy):
    pi, ref = table(seed), table(seed + 100)
    old = pi if on_policy else pi + 0.7 * table(seed + 200)
    forward, reverse = gradient_of(lambda x: exact_kl(x, ref), pi), gradient_of(lambda x: exact_kl(ref, x), pi)
    assert (forward - reverse).abs().max() > 0.01, "the two must differ for the test to tell them apart"
    assert_close(expected_gradient(pi, old, ref, "k2"), forward)
    assert_close(expected_gradient(pi, old, ref, "k3"), reverse)


def test_at_the_reference_there_is_no_gradient_and_no_loss():
    pi = table(0)
    log_probs, old = log_probs_of(pi), log_probs_of(table(1))
    for kind in ("k2", "k3"):
        assert_close(expected_gradient(pi, table(1), pi, kind), torch.zeros_like(pi), atol=1e-12, rtol=0)
        assert_close(kl_loss(log_probs, old, log_probs, MASK, kind=kind).item(), 0.0, atol=1e-12, rtol=0)


@pytest.mark.parametrize("kind", ["k2", "k3"])
@pytest.mark.parametrize("seed", SEEDS)
def test_kl_loss_against_float64_numpy(seed, kind):
    batch = random_batch(seed)
    total = 0.0
    for i, length in enumerate(LENGTHS):
        log_pi, log_old, log_ref = (batch[name][i, :length].numpy().sum() for name in KL_LOSS_NAMES[:3])
        x = log_ref - log_pi
        total += np.exp(log_pi - log_old) * (0.5 * x**2 if kind == "k2" else np.exp(x) - 1 - x)
    assert_close(kl_loss(**pick(batch, *KL_LOSS_NAMES), kind=kind).item(), total / sum(LENGTHS))


def test_k2_is_the_default():
    batch = pick(random_batch(0), *KL_LOSS_NAMES)
    assert torch.equal(kl_loss(**batch), kl_loss(**batch, kind="k2"))


def test_the_gradient_of_kl_loss_reaches_the_policy_only_and_not_through_the_weight():
    batch = random_batch(4)
    for name in KL_LOSS_NAMES[:3]:
        batch[name].requires_grad_()
    kl_loss(**pick(batch, *KL_LOSS_NAMES)).backward()
    assert batch["old_log_probs"].grad is None
    assert batch["ref_log_probs"].grad is None
    for i, length in enumerate(LENGTHS):
        log_pi, log_old, log_ref = (batch[name][i, :length].detach().numpy().sum() for name in KL_LOSS_NAMES[:3])
        expected = np.exp(log_pi - log_old) * (log_pi - log_ref) / sum(LENGTHS)  # the same for each token of the response
        assert_close(batch["log_probs"].grad[i, :length].numpy(), np.full(length, expected))
        assert (batch["log_probs"].grad[i, length:] == 0).all()


@pytest.mark.parametrize("kind", ["k2", "k3"])
@pytest.mark.parametrize("sizes", [[5], [2, 3], [1, 1, 1, 1, 1], [4, 1]], ids=str)
def test_parts_weighted_by_their_tokens_make_the_whole(kind, sizes):
    batch = pick(random_batch(6), *KL_LOSS_NAMES)
    log_probs = batch["log_probs"].requires_grad_()
    whole = kl_loss(**batch, kind=kind)
    (gradient,) = torch.autograd.grad(whole, log_probs)
    parts = [dict(zip(batch, rows, strict=True)) for rows in zip(*(x.split(sizes) for x in batch.values()), strict=True)]
    total = sum(kl_loss(**part, kind=kind) * part["mask"].sum() / batch["mask"].sum() for part in parts)
    assert_close(total, whole)
    assert_close(torch.autograd.grad(total, log_probs)[0], gradient)


# Bad input --------------------------------------------------------------------------------------------------------------

FUNCTIONS = {
    "token_rewards": (lambda b: rewards_of(b), ("log_probs", "ref_log_probs")),
    "response_advantages": (lambda b: advantages_of(b), ("rewards", "values")),
    "sequence_kl": (lambda b: sequence_kl(**pick(b, "log_probs", "ref_log_probs", "mask")), ("log_probs", "ref_log_probs")),
    "kl_loss": (lambda b: kl_loss(**pick(b, *KL_LOSS_NAMES)), KL_LOSS_NAMES[:3]),
}
ARGUMENTS = [(function, name) for function, (_, names) in FUNCTIONS.items() for name in names]


@pytest.mark.parametrize(("function", "name"), ARGUMENTS)
@pytest.mark.parametrize("x", [float("nan"), float("inf")])
def test_nan_and_infinity_that_count_are_named(function, name, x):
    batch = random_batch(0)
    batch[name][3, 1] = x
    with pytest.raises(ValueError, match=rf"^{name} must be finite, got {x} at index \[3, 1\]"):
        FUNCTIONS[function][0](batch)


@pytest.mark.parametrize(("function", "name"), ARGUMENTS)
@pytest.mark.parametrize(
    "change",
    [lambda x: x[:, :4], lambda x: x[:4], lambda x: x.float(), lambda x: x.nan_to_num().long(), lambda x: x[:, 0], lambda x: x.tolist()],
    ids=["shorter", "fewer", "float32", "int64", "1d", "list"],
)
def test_what_is_not_like_the_others_is_named(function, name, change):
    batch = random_batch(0)
    batch[name] = change(batch[name])
    call, names = FUNCTIONS[function]
    with pytest.raises(ValueError, match=rf"^({name}|{names[0]}|{names[1]}|mask) must "):
        call(batch)


@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (mask_of(LENGTHS).float(), "mask must be a bool tensor"),
        (mask_of(LENGTHS, 4), r"mask must be a bool tensor of shape \[5, 5\]"),
        (torch.zeros(5, 5, dtype=torch.bool), "mask must have at least 1 True entries"),
        (mask_of([3, 5, 0, 2, 5]), "mask must be True on one unbroken run of tokens in each row, got .* in row 2"),
        (mask_of(LENGTHS) & (torch.arange(5) != 1), r"mask must be .* unbroken .*, got \[1, 0, 1, 0, 0\] in row 0"),
    ],
)
def test_a_bad_mask_is_named(function, mask, message):
    batch = {name: x.nan_to_num() for name, x in random_batch(0).items()}
    with pytest.raises(ValueError, match=message):
        FUNCTIONS[function][0]({**batch, "mask": mask})


@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize("pick_rows", [lambda x: x[0], lambda x: x[None]], ids=["one response alone", "3d"])
def test_arrays_that_are_not_batches_of_responses_are_named(function, pick_rows):
    batch = {name: pick_rows(x) if x.ndim == 2 else x for name, x in random_batch(0).items()}
    call, names = FUNCTIONS[function]
    with pytest.raises(ValueError, match=rf"^{names[0]} must have shape \[B, T\], one row per response"):
        call(batch)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"scores": torch.zeros(4)}, r"scores must have shape \[5\], one per response, got shape \[4\]"),
        ({"scores": torch.zeros(5, 1)}, r"scores must have shape \[5\]"),
        ({"scores": torch.zeros(5, dtype=torch.int64)}, "scores must be a floating-point tensor"),
        ({"scores": [0.0] * 5}, "scores must be a floating-point tensor, got list"),
        ({"scores": torch.tensor([0, 0, float("nan"), 0, 0])}, r"scores must be finite, got nan at index \[2\]"),
    ],
)
def test_bad_scores_are_named(changes, message):
    with pytest.raises(ValueError, match=message):
        rewards_of({**random_batch(0), **changes})


@pytest.mark.parametrize("kl_coef", [-0.1, float("nan"), float("inf"), "0.1", None, torch.tensor(0.1)])
def test_a_bad_kl_coef_is_named(kl_coef):
    with pytest.raises(ValueError, match="kl_coef must be a finite number of at least 0"):
        rewards_of(random_batch(0), kl_coef=kl_coef)


@pytest.mark.parametrize(("name", "x"), [("gamma", 1.1), ("gamma", -0.1), ("lam", float("nan")), ("lam", 2)])
def test_a_bad_gamma_or_lambda_is_named(name, x):
    with pytest.raises(ValueError, match=rf"{name} must be a number in \[0, 1\]"):
        advantages_of(random_batch(0), **{name: x})


@pytest.mark.parametrize("kind", ["k1", "k4", None, ""])
def test_a_bad_kind_is_named(kind):
    with pytest.raises(ValueError, match=f"kind must be 'k2' or 'k3', got {kind!r}"):
        kl_loss(**pick(random_batch(0), *KL_LOSS_NAMES), kind=kind)
