"""Supervised fine-tuning against plain forward passes: which tokens carry loss, perplexity, learning by heart, bad input."""

import copy
import math
import signal

import numpy as np
import pytest
import torch
from lm_helpers import make_lm, make_tokenizer, plain_log_probs
from ppo_helpers import same, weights

from ppo_edu.lm import Example, PolicyWithValue, SupervisedConfig, decode, generate, perplexity, train_sft
from ppo_edu.runs import CHECKPOINT_NAME, column, load_checkpoint

EOS = 1
EXAMPLES = [Example("a", "b c"), Example("b c d a e", "f"), Example("c c", ""), Example("d e f", "a a g b c d"), Example("g", "e")]


def tokens_of(example):
    tokenizer = make_tokenizer()
    return tokenizer(example.prompt)["input_ids"], [*tokenizer(example.response)["input_ids"], EOS]


def step(lm, examples=EXAMPLES, **changes):
    """One step on all the examples at once; the row it logs."""
    config = SupervisedConfig(**({"batch_size": len(examples), "max_grad_norm": None} | changes))
    return train_sft(lm, make_tokenizer(), examples, config, progress=False).log[0]


# The loss -----------------------------------------------------------------------------------------------------------------


def test_the_loss_is_minus_the_mean_log_probability_of_all_response_tokens(architecture):
    """One text at a time in float64. Per token, not per text: the mean of the texts' means is another number here."""
    lm = make_lm(architecture)
    plain = [plain_log_probs(copy.deepcopy(lm).double(), *tokens_of(x)).detach().numpy() for x in EXAMPLES]
    found = step(lm)["loss"]
    assert found == pytest.approx(-np.concatenate(plain).mean(), rel=1e-5)
    assert abs(found + np.mean([x.mean() for x in plain])) > 1e-3


def test_the_gradient_is_that_of_a_plain_forward_pass():
    lm = make_lm("gpt2")
    plain = copy.deepcopy(lm).double()
    (-torch.cat([plain_log_probs(plain, *tokens_of(x)) for x in EXAMPLES]).mean()).backward()
    step(lm)
    for name, p in plain.named_parameters():
        torch.testing.assert_close(lm.get_parameter(name).grad.double(), p.grad, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize(("prompt", "response"), [("a", "b c"), ("a a c", "")])
def test_response_and_end_token_carry_loss_and_the_prompts_tokens_none(prompt, response):
    """A model with nothing but the bias of an untied head learns what frequencies it is shown: those of the targets alone."""
    lm = make_lm("gpt2", noise=0.0, tie_word_embeddings=False)
    lm.lm_head = torch.nn.Linear(lm.config.n_embd, lm.config.vocab_size)
    with torch.no_grad():
        lm.lm_head.weight.zero_()
        lm.lm_head.bias.zero_()
    assert step(lm, [Example(prompt, response)])["loss"] == pytest.approx(math.log(10), rel=1e-6)
    targets = np.bincount(tokens_of(Example(prompt, response))[1], minlength=10)
    np.testing.assert_allclose(lm.lm_head.bias.grad, 0.1 - targets / targets.sum(), atol=1e-6)


def test_a_tiny_model_learns_two_examples_by_heart_and_where_they_end():
    tokenizer, lm = make_tokenizer(), make_lm("gpt2", noise=0.0)
    examples = [Example("a", "b c d"), Example("b a", "e")]
    log = train_sft(lm, tokenizer, examples, SupervisedConfig(epochs=80, batch_size=2, learning_rate=0.03), progress=False).log
    prompts, responses = [x.prompt for x in examples], [x.response for x in examples]
    assert log[0]["loss"] > 1.5
    assert perplexity(lm, tokenizer, prompts, responses) < 1.05
    written = generate(lm, tokenizer, prompts, max_new_tokens=8, temperature=0.05)
    assert decode(tokenizer, written) == responses
    assert written.ended.all()


def test_training_is_in_place_reproducible_and_leaves_evaluation_mode(tmp_path):
    models = [make_lm("gpt2", attn_pdrop=0.3) for _ in range(3)]
    states = [
        train_sft(lm, make_tokenizer(), EXAMPLES, SupervisedConfig(epochs=3, batch_size=2), seed=seed, progress=False)
        for lm, seed in zip(models, (0, 0, 1), strict=True)
    ]
    assert [state.model for state in states] == models
    assert not any(module.training for lm in models for module in lm.modules())
    assert same(weights(models[0]), weights(models[1]))
    assert not same(weights(models[0]), weights(models[2]))
    assert column(states[0].log, "update").tolist() == list(range(1, 7))


# Perplexity ---------------------------------------------------------------------------------------------------------------


def test_perplexity_is_exp_of_the_mean_over_tokens_by_hand():
    """A flat model of ten words has perplexity 10; one whose end token has probability 1/2 and any other 1/18 mixes them."""
    tokenizer, lm = make_tokenizer(), make_lm("gpt2", noise=0.0)
    with torch.no_grad():
        lm.transformer.wte.weight.zero_()
    assert perplexity(lm, tokenizer, ["a", "b"], ["c", "c d e"]) == pytest.approx(10, rel=1e-5)
    shift = torch.zeros(10)
    shift[EOS] = math.log(9)
    lm.lm_head.register_forward_hook(lambda module, inputs, logits: logits + shift)
    expected = (2**2 * 18**4) ** (1 / 6)  # two ends and four words
    assert perplexity(lm, tokenizer, ["a", "b"], ["c", "c d e"]) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("batch_size", [1, 2, 256])
def test_perplexity_weighs_tokens_whatever_the_batches(batch_size):
    lm = make_lm("gpt2")
    plain = torch.cat([plain_log_probs(lm, *tokens_of(x)).detach() for x in EXAMPLES])
    for model in (lm, PolicyWithValue(lm)):
        found = perplexity(model, make_tokenizer(), [x.prompt for x in EXAMPLES], [x.response for x in EXAMPLES], batch_size=batch_size)
        assert found == pytest.approx(float(torch.exp(-plain.mean())), rel=1e-5)


# Resuming and bad input ---------------------------------------------------------------------------------------------------


def train(lm, examples=EXAMPLES, config=None, **options):
    return train_sft(lm, make_tokenizer(), examples, config or SupervisedConfig(epochs=2, batch_size=2), progress=False, **options)


def test_a_stopped_training_continues_bit_for_bit_and_other_data_are_refused_by_name(tmp_path):
    whole = make_lm("gpt2")
    train(whole)
    train(make_lm("gpt2"), log_dir=tmp_path, callback=lambda state: state.update == 1)
    with pytest.raises(ValueError, match=r"these differ: examples \(checkpoint '\w+', given '\w+'\)$"):
        train(make_lm("gpt2"), EXAMPLES[::-1], resume=tmp_path)
    with pytest.raises(ValueError, match=r"these differ: epochs \(checkpoint 2, given 3\)$"):
        train(make_lm("gpt2"), config=SupervisedConfig(epochs=3, batch_size=2), resume=tmp_path)
    with pytest.raises(ValueError, match="the checkpoint does not fit the model"):
        train(make_lm("gpt2", n_layer=3), resume=tmp_path)
    with pytest.raises(ValueError, match="kind lm-sft; it was written by ppo-edu-1, kind test"):
        train(make_lm("gpt2"), resume=other_kind(tmp_path))
    resumed = make_lm("gpt2", seed=9)
    train(resumed, resume=tmp_path)
    assert same(weights(resumed), weights(whole))


def other_kind(directory):
    """A copy of the run, as if another trainer had written it."""
    from ppo_edu.runs import Checkpoint, save_checkpoint

    checkpoint = load_checkpoint(directory / CHECKPOINT_NAME, kind="lm-sft")
    (directory / "other").mkdir()
    save_checkpoint(directory / "other" / CHECKPOINT_NAME, Checkpoint(checkpoint.tensors, "test", checkpoint.config, checkpoint.update))
    return directory / "other"


def test_ctrl_c_saves_what_was_learned(tmp_path):
    lm = make_lm("gpt2")
    with pytest.raises(KeyboardInterrupt):
        train(lm, log_dir=tmp_path, callback=lambda state: signal.raise_signal(signal.SIGINT))
    checkpoint = load_checkpoint(tmp_path / CHECKPOINT_NAME, kind="lm-sft")
    assert checkpoint.update == 1
    assert torch.equal(checkpoint.tensors["model.transformer.wte.weight"], lm.transformer.wte.weight)


@pytest.mark.parametrize(
    ("examples", "message"),
    [
        ([], "prompts must be a non-empty list"),
        ([Example("", "a")], r"prompts\[0\] must be a non-empty string"),
        ([Example("a", None)], r"responses\[0\] must be a string"),
        ([Example("a", "b " * 40)], "context of 32 tokens"),
    ],
)
def test_bad_examples_are_one_clear_error(examples, message):
    with pytest.raises(ValueError, match=message):
        train(make_lm("gpt2"), examples)
    if examples:
        with pytest.raises(ValueError, match=message):
            perplexity(make_lm("gpt2"), make_tokenizer(), [x.prompt for x in examples], [x.response for x in examples])


def test_a_model_of_another_vocabulary_is_refused():
    with pytest.raises(ValueError, match="tokenizer must have the model's vocabulary of 30 tokens"):
        train(make_lm("gpt2", vocab_size=30))


def test_a_training_that_diverges_is_one_clear_error():
    with pytest.raises(FloatingPointError, match="training diverged"):
        train(make_lm("gpt2"), config=SupervisedConfig(epochs=5, learning_rate=1e30))
