"""Reward models: where the score is read, the loss by its formula, learning a rule, calibration, files, resuming, bad input."""

import copy
import json
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from lm_helpers import PROMPTS, make_lm, make_tokenizer, more_padding
from ppo_helpers import contents, same, weights

from ppo_edu.lm import (
    Comparison,
    PolicyWithValue,
    RewardModel,
    SupervisedConfig,
    encode,
    evaluate_reward_model,
    preference_loss,
    train_reward_model,
)
from ppo_edu.lm.reward_model import HEAD_NAME
from ppo_edu.runs import seeded

EOS = 1
RESPONSES = ("b c", "", "a", "g f e d c", "c c", "d")
COMPARISONS = [Comparison(p, r, "a b", x) for p, r, x in zip(PROMPTS, RESPONSES, ["first", "second", "tie"] * 2, strict=True)]


def make_model(architecture="gpt2", *, seed=0, **changes):
    """A tiny reward model whose head is not zero."""
    model = RewardModel(make_lm(architecture, seed=seed, **changes))
    with seeded(seed), torch.no_grad():
        model.head.weight.normal_()
        model.offset.fill_(0.25)
    return model


def plain_scores(model, prompts, responses):
    """Each text by itself, without padding, mask or positions: head of the trunk's last output, less the offset."""
    tokenizer, scores = make_tokenizer(), []
    for prompt, response in zip(prompts, responses, strict=True):
        ids = torch.tensor([[*tokenizer(prompt)["input_ids"], *tokenizer(response)["input_ids"], EOS]])
        with torch.no_grad():
            scores.append(float(model.trunk(input_ids=ids).last_hidden_state[0, -1] @ model.head.weight[0] - model.offset))
    return torch.tensor(scores)


# Where the score is read --------------------------------------------------------------------------------------------------


def test_the_score_equals_a_plain_forward_pass_of_each_text_alone(architecture):
    model = make_model(architecture)
    expected = plain_scores(model, PROMPTS, RESPONSES)
    assert expected.std() > 0.1
    for batch_size in (256, 2, 1):
        torch.testing.assert_close(
            model.scores(make_tokenizer(), PROMPTS, RESPONSES, batch_size=batch_size), expected, atol=1e-5, rtol=1e-4
        )
    torch.testing.assert_close(model.reward_fn(make_tokenizer())(list(PROMPTS), list(RESPONSES)), expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(("left", "right"), [(3, 0), (0, 4), (2, 3)])
@pytest.mark.parametrize("token", [0, EOS, 5])
def test_more_padding_on_either_side_and_of_whatever_token_changes_nothing(architecture, left, right, token):
    model, texts = make_model(architecture), encode(make_tokenizer(), PROMPTS, RESPONSES)
    wider = more_padding(texts, left=left, right=right, token=token)
    with torch.no_grad():
        a, b = (model(x.input_ids, x.attention_mask) for x in (texts, wider))
    torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)


def test_the_last_token_matters_and_so_does_the_first():
    model = make_model()
    for changed in ([*RESPONSES[:5], "d a"], [*RESPONSES[:5], "e"]):
        a, b = (model.scores(make_tokenizer(), PROMPTS, x) for x in (RESPONSES, changed))
        torch.testing.assert_close(a[:5], b[:5], atol=1e-5, rtol=1e-4)
        assert abs(a[5] - b[5]) > 1e-3
    a, b = (model.scores(make_tokenizer(), [prompt], ["a"]) for prompt in ("b c", "d c"))
    assert abs(a - b) > 1e-3


def test_a_response_longer_than_the_context_is_read_to_the_contexts_end():
    """Each to its own end: a short prompt beside a long one leaves as much room as it would alone."""
    model, tokenizer = make_model(), make_tokenizer()
    prompts, words = ["a", "b c d a e"], ["b", "a", "d", "c", "e", "f", "g", "a", "c", "b", "d", "a"] * 4
    found = model.scores(tokenizer, prompts, [" ".join(words)] * 2)
    for prompt, score in zip(prompts, found, strict=True):
        ids = torch.tensor([(tokenizer(prompt)["input_ids"] + tokenizer(" ".join(words))["input_ids"])[:32]])
        with torch.no_grad():
            expected = model.trunk(input_ids=ids).last_hidden_state[0, -1] @ model.head.weight[0] - model.offset
        torch.testing.assert_close(score, expected, atol=1e-5, rtol=1e-4)
    with pytest.raises(ValueError, match="context of 32 tokens"):
        model.scores(tokenizer, ["a " * 32], ["b"])


def test_a_fresh_model_scores_0_and_scoring_uses_no_dropout():
    model = RewardModel(make_lm("gpt2", attn_pdrop=0.5))
    assert not model.training, "the mode of the model it is made from"
    assert (model.scores(make_tokenizer(), PROMPTS, RESPONSES) == 0).all()
    model = make_model(attn_pdrop=0.5, resid_pdrop=0.5).train()
    torch.testing.assert_close(
        model.scores(make_tokenizer(), PROMPTS, RESPONSES), plain_scores(copy.deepcopy(model).eval(), PROMPTS, RESPONSES)
    )
    assert model.training
    assert not model.scores(make_tokenizer(), PROMPTS, RESPONSES).requires_grad


# The loss -----------------------------------------------------------------------------------------------------------------


def scores_and_targets(n=12):
    generator = torch.Generator().manual_seed(0)
    first, second = (3 * torch.randn(n, generator=generator, dtype=torch.float64) for _ in range(2))
    return first, second, torch.tensor([1.0, 0.0, 0.5] * (n // 3), dtype=torch.float64)


def test_the_loss_and_its_gradient_equal_the_formulas():
    first, second, p = scores_and_targets()
    first.requires_grad_()
    second.requires_grad_()
    loss = preference_loss(first, second, p)
    sigma = 1 / (1 + np.exp(-(first - second).detach().numpy()))
    expected = -np.mean(p.numpy() * np.log(sigma) + (1 - p.numpy()) * np.log(1 - sigma))
    assert float(loss.detach()) == pytest.approx(expected, rel=1e-12)
    loss.backward()
    np.testing.assert_allclose(first.grad, (sigma - p.numpy()) / len(p), atol=1e-15)
    np.testing.assert_allclose(second.grad, -(sigma - p.numpy()) / len(p), atol=1e-15)


def test_the_loss_knows_differences_only_and_stays_finite():
    first, second, p = scores_and_targets()
    torch.testing.assert_close(preference_loss(first + 7, second + 7, p), preference_loss(first, second, p))
    torch.testing.assert_close(preference_loss(second, first, 1 - p), preference_loss(first, second, p))
    far = torch.tensor([1e4, -1e4])
    torch.testing.assert_close(preference_loss(far, -far, torch.tensor([0.0, 1.0])), torch.tensor(2e4))
    assert preference_loss(torch.zeros(3), torch.zeros(3), torch.tensor([0, 0.5, 1])) == pytest.approx(math.log(2))


def test_tensors_that_differ_in_shape_are_refused():
    with pytest.raises(ValueError, match="targets must match first"):
        preference_loss(torch.zeros(2), torch.zeros(2), torch.zeros(3))
    with pytest.raises(ValueError, match="second must match first"):
        preference_loss(torch.zeros(2, 1), torch.zeros(2), torch.zeros(2, 1))


# Training -----------------------------------------------------------------------------------------------------------------


def train(model, comparisons=COMPARISONS, config=None, **options):
    config = config or SupervisedConfig(epochs=2, batch_size=3, learning_rate=1e-2)
    return train_reward_model(model, make_tokenizer(), comparisons, config, progress=False, **options)


def test_the_first_loss_is_that_of_plain_scores_with_ties_counted_half():
    model = make_model()
    first, second = (plain_scores(model, PROMPTS, x).double() for x in (RESPONSES, ["a b"] * 6))
    p = np.array([1.0, 0.0, 0.5] * 2)
    sigma = 1 / (1 + np.exp(-(first - second).numpy()))
    log = train(model, config=SupervisedConfig(batch_size=6)).log
    assert log[0]["loss"] == pytest.approx(-np.mean(p * np.log(sigma) + (1 - p) * np.log(1 - sigma)), rel=1e-4)


def test_the_mean_score_of_what_it_learned_from_becomes_0_and_differences_stay():
    model = make_model()
    train(model, config=SupervisedConfig(learning_rate=0.0))
    every = plain_scores(model, PROMPTS * 2, RESPONSES + ("a b",) * 6)
    assert float(every.mean()) == pytest.approx(0.0, abs=1e-5)
    before = plain_scores(make_model(), PROMPTS, RESPONSES)
    after = plain_scores(model, PROMPTS, RESPONSES)
    torch.testing.assert_close(after - after[0], before - before[0])
    assert abs(float((after - before).mean())) > 0.01
    train(model)
    assert float(plain_scores(model, PROMPTS * 2, RESPONSES + ("a b",) * 6).mean()) == pytest.approx(0.0, abs=1e-5)


def rule(n, seed):
    """Pairs of random responses with and without "g": the one with more of them is preferred."""
    rng = np.random.default_rng(seed)
    comparisons = []
    while len(comparisons) < n:
        first, second = (" ".join(rng.choice(list("abcdefg"), size=rng.integers(1, 7))) for _ in range(2))
        difference = first.count("g") - second.count("g")
        if difference:
            comparisons.append(Comparison(str(rng.choice(PROMPTS)), first, second, "first" if difference > 0 else "second"))
    return comparisons


def test_a_tiny_model_learns_a_lexical_rule():
    model, tokenizer = RewardModel(make_lm("gpt2", noise=0.0)), make_tokenizer()
    assert evaluate_reward_model(model, tokenizer, rule(100, 1)).accuracy == 0.5
    train(model, rule(600, 0), SupervisedConfig(epochs=3, batch_size=20, learning_rate=1e-2))
    report = evaluate_reward_model(model, tokenizer, rule(300, 1))
    assert report.accuracy > 0.9
    assert report.loss < 0.3


def test_training_gives_modes_and_random_state_back_and_is_reproducible():
    models, state = [make_model(attn_pdrop=0.3) for _ in range(3)], torch.get_rng_state()
    for model, seed in zip(models, (0, 0, 1), strict=True):
        train(model, seed=seed)
    assert torch.equal(torch.get_rng_state(), state)
    assert not any(module.training for model in models for module in model.modules())
    assert same(weights(models[0]), weights(models[1]))
    assert not same(weights(models[0]), weights(models[2]))


@pytest.mark.parametrize("update", [1, 4])
def test_a_stopped_training_continues_bit_for_bit_the_offset_too(tmp_path, update):
    whole = make_model()
    train(whole)
    train(make_model(), log_dir=tmp_path, callback=lambda state: state.update == update)
    for _ in range(2):  # the second time it has nothing left to do
        resumed = make_model(seed=9)
        train(resumed, resume=tmp_path)
        assert same(weights(resumed), weights(whole))


def test_other_comparisons_or_another_config_are_refused_by_name(tmp_path):
    train(make_model(), log_dir=tmp_path, callback=lambda state: True)
    before = contents(tmp_path)
    changed = [*COMPARISONS[:-1], Comparison(PROMPTS[-1], RESPONSES[-1], "a b", "first")]
    with pytest.raises(ValueError, match=r"these differ: comparisons \(checkpoint '\w+', given '\w+'\)$"):
        train(make_model(), changed, resume=tmp_path)
    with pytest.raises(ValueError, match=r"these differ: weight_decay \(checkpoint 0.01, given 0.5\)$"):
        train(make_model(), config=SupervisedConfig(epochs=2, batch_size=3, learning_rate=1e-2, weight_decay=0.5), resume=tmp_path)
    assert contents(tmp_path) == before


@pytest.mark.parametrize(
    ("comparisons", "message"),
    [
        ([], "prompts must be a non-empty list"),
        ([Comparison("", "a", "b", "tie")], r"prompts\[0\] must be a non-empty string"),
        ([Comparison("a", "b " * 40, "b", "tie")], "context of 32 tokens"),
    ],
)
def test_bad_comparisons_are_one_clear_error(comparisons, message):
    with pytest.raises(ValueError, match=message):
        train(make_model(), comparisons)


def test_a_model_of_another_vocabulary_is_refused_and_a_training_that_diverges_is_one_clear_error():
    with pytest.raises(ValueError, match="tokenizer must have the model's vocabulary of 30 tokens"):
        train(make_model(vocab_size=30))
    with pytest.raises(FloatingPointError, match="training diverged"):
        train(make_model(), config=SupervisedConfig(epochs=5, learning_rate=1e30))


# Evaluation ---------------------------------------------------------------------------------------------------------------


def stub(*differences):
    """A model whose scores differ by these numbers."""
    scores = iter([torch.tensor(differences) + 3.0, torch.full((len(differences),), 3.0)])
    return SimpleNamespace(device="cpu", scores=lambda tokenizer, prompts, responses: next(scores))


def preferring(*preferred):
    return [Comparison("p", "x", "y", name) for name in preferred]


def test_accuracy_loss_and_calibration_by_hand():
    """Predictions of 0.75 (three times: first, first, a tie), 0.25 (the second) and 0.9 (the second), in four bins."""
    up, high = math.log(3), math.log(9)
    model = stub(up, up, up, -up, high)
    report = evaluate_reward_model(model, None, preferring("first", "first", "tie", "second", "second"), bins=5)
    assert report.accuracy == pytest.approx(3 / 4), "of the decided"
    losses = [math.log(4 / 3), math.log(4 / 3), -0.5 * math.log(3 / 16), math.log(4 / 3), math.log(10)]
    assert report.loss == pytest.approx(np.mean(losses), rel=1e-5)
    assert report.counts.tolist() == [0, 1, 0, 3, 1]
    np.testing.assert_allclose(report.predicted, [math.nan, 0.25, math.nan, 0.75, 0.9], rtol=1e-5)
    np.testing.assert_allclose(report.observed, [math.nan, 0.0, math.nan, 2.5 / 3, 0.0], rtol=1e-5)
    assert report.calibration_error == pytest.approx((0.25 + 3 * abs(2.5 / 3 - 0.75) + 0.9) / 5, rel=1e-5)


def test_a_perfect_annotator_of_probabilities_has_no_calibration_error():
    preferred = ["first"] * 30 + ["second"] * 10 + ["first"] * 4 + ["second"] * 12
    report = evaluate_reward_model(stub(*[math.log(3)] * 40, *[-math.log(3)] * 16), None, preferring(*preferred))
    assert report.calibration_error == pytest.approx(0.0, abs=1e-6)
    assert report.accuracy == pytest.approx(42 / 56)


@pytest.mark.parametrize("preferred", ["first", "second"])
def test_equal_scores_predict_nothing_and_count_half(preferred):
    report = evaluate_reward_model(stub(0.0, 0.0, 0.0), None, preferring(*[preferred] * 3))
    assert report.accuracy == 0.5
    assert report.loss == pytest.approx(math.log(2))


def test_certain_predictions_fall_into_the_outermost_bins():
    report = evaluate_reward_model(stub(200.0, -200.0), None, preferring("first", "second"), bins=4)
    assert report.counts.tolist() == [1, 0, 0, 1]
    assert report.calibration_error == 0.0


def test_nothing_but_ties_or_no_bins_is_one_clear_error():
    with pytest.raises(ValueError, match="comparisons must hold at least one that is not a tie"):
        evaluate_reward_model(stub(1.0, 2.0), None, preferring("tie", "tie"))
    with pytest.raises(ValueError, match="bins"):
        evaluate_reward_model(stub(1.0), None, preferring("first"), bins=0)


# Files --------------------------------------------------------------------------------------------------------------------


def test_a_saved_model_comes_back_whole(architecture, tmp_path):
    model = make_model(architecture)
    model.save_pretrained(tmp_path / "model")
    loaded = RewardModel.from_pretrained(tmp_path / "model")
    assert same(weights(loaded), weights(model))
    assert not any(module.training for module in loaded.modules())
    args = make_tokenizer(), PROMPTS, RESPONSES
    assert torch.equal(loaded.scores(*args), model.scores(*args))


@pytest.mark.parametrize("damage", ["nothing there", "language model", "policy", "no trunk", "cut head", "no offset", "wider head"])
def test_a_folder_that_is_no_reward_model_is_refused(tmp_path, damage):
    from safetensors.torch import save_file

    if damage == "language model":
        make_lm("gpt2").save_pretrained(tmp_path)
    elif damage == "policy":
        PolicyWithValue(make_lm("gpt2")).save_pretrained(tmp_path)
    elif damage != "nothing there":
        make_model().save_pretrained(tmp_path)
    head = tmp_path / HEAD_NAME
    if damage == "no trunk":
        (tmp_path / "model.safetensors").unlink()
    elif damage == "cut head":
        head.write_bytes(head.read_bytes()[:20])
    elif damage == "no offset":
        save_file({"head.weight": torch.zeros(1, 16)}, head)
    elif damage == "wider head":
        save_file({"head.weight": torch.zeros(1, 17), "offset": torch.zeros(())}, head)
    with pytest.raises(ValueError, match=r"path must be a folder written by RewardModel\.save_pretrained"):
        RewardModel.from_pretrained(tmp_path)


def test_the_trunk_is_saved_as_transformers_has_it(tmp_path):
    from transformers import AutoModel

    model = make_model()
    model.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["architectures"] == ["GPT2Model"]
    assert same(weights(AutoModel.from_pretrained(tmp_path)), weights(model.trunk))
