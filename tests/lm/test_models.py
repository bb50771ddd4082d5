"""Language models: what a log-probability is, padding that changes nothing, the value head, and what is read from disk."""

import json
import os

import huggingface_hub.constants
import numpy as np
import pytest
import safetensors.torch
import torch
from lm_helpers import (
    PROMPTS,
    all_responses,
    make_lm,
    make_tokenizer,
    more_padding,
    plain_log_probs,
    seeded_generator,
    texts_as_tokens,
)
from torch import nn
from torch.testing import assert_close
from transformers import AutoModelForCausalLM
from transformers.modeling_outputs import CausalLMOutputWithPast

from ppo_edu.lm import (
    PolicyWithValue,
    Sequences,
    encode,
    generate,
    load_causal_lm,
    make_gpt2,
    response_advantages,
    sequence_log_probs,
    token_rewards,
)
from ppo_edu.lm.models import VALUE_HEAD_NAME, VALUE_TRUNK_NAME, check_vocabulary, response_logits

PAD, EOS = 0, 1
RESPONSES = ("b c", "", "a a d e f", "g", "e d c b", "c a b")  # to PROMPTS; each gets its end token


@pytest.fixture
def batch(tokenizer):
    """Six texts, of different length on both sides."""
    return encode(tokenizer, PROMPTS, RESPONSES)


def with_values(lm, value_model=None, *, seed=1):
    """A policy whose values are not 0."""
    policy = PolicyWithValue(lm, value_model).eval()
    for parameter in policy.value_head.parameters():
        nn.init.normal_(parameter, generator=seeded_generator(seed))
    return policy


TRUNKS = {
    "shared trunk": with_values,
    "value model": lambda lm: with_values(lm, make_lm("llama", seed=5, hidden_size=24)),
}


def gradients(loss, module):
    """Gradient of each parameter, 0 where there is none, by name."""
    names, parameters = zip(*module.named_parameters(), strict=True)
    found = torch.autograd.grad(loss, parameters, allow_unused=True)
    return {name: torch.zeros_like(p) if g is None else g for name, p, g in zip(names, parameters, found, strict=True)}


# Log-probabilities by hand ----------------------------------------------------------------------------------------------


class BigramLM(nn.Module):
    """The next token depends on the last one only: logits are a table [V, V], the row is the last token."""

    def __init__(self, table):
        super().__init__()
        self.table = nn.Parameter(torch.tensor(table))

    def forward(self, input_ids, attention_mask, position_ids, use_cache, logits_to_keep):
        return CausalLMOutputWithPast(logits=self.table[input_ids][:, -logits_to_keep:])


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_two_tokens_by_hand(temperature):
    table = np.array([[0.3, -1.0, 2.0], [1.5, 0.0, -0.5], [-2.0, 0.7, 0.1]], dtype=np.float32)
    sequences = Sequences(
        prompt_tokens=torch.tensor([[0, 2], [1, 0]]),
        prompt_mask=torch.tensor([[False, True], [True, True]]),
        tokens=torch.tensor([[2, 1], [1, 0]]),
        mask=torch.tensor([[True, True], [True, False]]),
    )
    x = table.astype(np.float64) / temperature
    log_p = x - np.log(np.exp(x).sum(1, keepdims=True))
    expected = [[log_p[2, 2], log_p[2, 1]], [log_p[0, 1], 0.0]]  # after prompt 2: then 2, then 1; after prompt 1, 0: then 1
    log_probs = sequence_log_probs(BigramLM(table), sequences, temperature=temperature)
    assert_close(log_probs.detach().double(), torch.tensor(expected, dtype=torch.float64), atol=1e-6, rtol=0)


def test_the_gradient_by_hand():
    """d log softmax(x)_a / dx = onehot(a) - softmax(x), divided by the temperature; nothing comes from the padding."""
    table = np.array([[0.3, -1.0, 2.0], [1.5, 0.0, -0.5], [-2.0, 0.7, 0.1]], dtype=np.float32)
    lm = BigramLM(table)
    yes = torch.tensor([[True]])
    sequences = Sequences(torch.tensor([[0]]), yes, torch.tensor([[2, 0]]), torch.tensor([[True, False]]))
    sequence_log_probs(lm, sequences, temperature=0.5).sum().backward()
    p = np.exp(table[0] / 0.5) / np.exp(table[0] / 0.5).sum()
    expected = np.zeros((3, 3))
    expected[0] = (np.array([0.0, 0.0, 1.0]) - p) / 0.5
    assert_close(lm.table.grad.double().numpy(), expected, atol=1e-6, rtol=0)


# Log-probabilities of real models ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_log_probs_equal_a_plain_forward_pass_of_each_text_alone(lm, batch, temperature):
    log_probs = sequence_log_probs(lm, batch, temperature=temperature)
    assert log_probs.shape == batch.tokens.shape
    assert log_probs.dtype == torch.float32
    for (prompt, response), row in zip(texts_as_tokens(batch), log_probs, strict=True):
        expected = plain_log_probs(lm, prompt, response, temperature=temperature)
        assert_close(row[: len(response)].double(), expected, atol=1e-5, rtol=0)
        assert (row[len(response) :] == 0).all()


@pytest.mark.parametrize("trunk", TRUNKS)
def test_a_policy_with_values_has_its_lms_log_probs(lm, batch, trunk):
    assert_close(sequence_log_probs(TRUNKS[trunk](lm), batch), sequence_log_probs(lm, batch), atol=1e-6, rtol=0)


def test_their_sum_is_the_log_probability_of_the_text(lm, batch):
    """Transformers' own loss, over prompt and response, less the loss over the prompt."""
    totals = sequence_log_probs(lm, batch).sum(1)
    for (prompt, response), total in zip(texts_as_tokens(batch), totals, strict=True):
        ids = torch.tensor([prompt + response])
        labels = torch.tensor([[-100] * len(prompt) + response])
        assert_close(-lm(input_ids=ids, labels=labels).loss * len(response), total, atol=1e-4, rtol=0)


def test_the_gradient_equals_that_of_plain_forward_passes(lm, batch):
    """Padding and masks leave no trace in the gradient."""
    weights = torch.randn(batch.tokens.shape, generator=seeded_generator(2))
    ours = gradients((weights * sequence_log_probs(lm, batch)).sum(), lm)
    rows = zip(texts_as_tokens(batch), weights, strict=True)
    plain = gradients(sum((w[: len(y)] * plain_log_probs(lm, x, y).float()).sum() for (x, y), w in rows), lm)
    assert max(g.abs().max() for g in ours.values()) > 0.1
    for name in ours:
        assert_close(ours[name], plain[name], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_the_probabilities_of_all_responses_sum_to_1(temperature):
    """Five tokens, at most three long: 21 responses that end and 64 that are cut."""
    tokenizer, lm = make_tokenizer(("a", "b")), make_lm("gpt2", vocab_size=5)
    everything = all_responses(5, EOS, 3)
    assert len(everything) == 85
    tokens = torch.tensor([y + [PAD] * (3 - len(y)) for y in everything])
    mask = torch.arange(3) < torch.tensor([[len(y)] for y in everything])
    prompt = torch.tensor(tokenizer("b a b")["input_ids"]).expand(85, -1)
    sequences = Sequences(prompt, torch.ones_like(prompt, dtype=torch.bool), tokens, mask)
    probabilities = sequence_log_probs(lm, sequences, temperature=temperature).sum(1).double().exp()
    assert_close(probabilities.sum().item(), 1.0, atol=1e-5, rtol=0)
    assert probabilities.min() > 0


def test_logits_are_computed_where_a_response_token_is_predicted_and_nowhere_else(gpt2, batch):
    rows = []
    gpt2.lm_head.register_forward_hook(lambda module, inputs, logits: rows.append(logits.shape[1]))
    logits, values = response_logits(gpt2, batch)
    assert rows == [batch.tokens.shape[1]] == [logits.shape[1]]
    assert values is None


def test_a_bfloat16_model_gives_float32_numbers(batch):
    policy = with_values(make_lm("llama").to(torch.bfloat16))
    logits, values = response_logits(policy, batch, temperature=0.7)
    assert logits.dtype == values.dtype == sequence_log_probs(policy, batch).dtype == torch.float32
    assert_close(sequence_log_probs(policy, batch), sequence_log_probs(make_lm("llama"), batch), atol=0.2, rtol=0)


# More padding changes no number -----------------------------------------------------------------------------------------


def numbers(policy, sequences, temperature=0.7):
    """All that PPO computes of a batch."""
    logits, values = response_logits(policy, sequences, temperature=temperature)
    mask = sequences.mask
    log_probs = sequence_log_probs(policy, sequences, temperature=temperature)
    ref_log_probs = sequence_log_probs(policy, sequences)
    scores = torch.linspace(-1, 1, len(sequences))
    rewards = token_rewards(scores, log_probs, ref_log_probs, mask, kl_coef=0.1)
    advantages = response_advantages(rewards, values.detach(), mask, gamma=0.95, lam=0.9)
    return {"logits": logits, "log_probs": log_probs, "values": values, "rewards": rewards, "advantages": advantages}


@pytest.mark.parametrize("token", [PAD, EOS, 5], ids=["pad", "eos", "a word"])
@pytest.mark.parametrize("trunk", TRUNKS)
def test_more_padding_of_whatever_token_changes_no_number(lm, batch, trunk, token):
    policy = TRUNKS[trunk](lm)
    before, after = numbers(policy, batch), numbers(policy, more_padding(batch, left=3, right=4, token=token))
    for name, expected in before.items():
        assert expected[batch.mask].abs().max() > 0.1
        found = after[name][:, : batch.tokens.shape[1]]
        assert_close(found[batch.mask], expected[batch.mask], atol=1e-5, rtol=0)
    for name in ("log_probs", "rewards", "advantages"):
        assert (after[name][:, batch.tokens.shape[1] :] == 0).all()


def test_garbage_under_the_padding_changes_no_number(lm, batch):
    policy = with_values(lm)
    garbage = torch.randint(2, 10, batch.tokens.shape, generator=seeded_generator(3))
    prompt_garbage = torch.randint(2, 10, batch.prompt_tokens.shape, generator=seeded_generator(4))
    tokens = torch.where(batch.mask, batch.tokens, garbage)
    prompt_tokens = torch.where(batch.prompt_mask, batch.prompt_tokens, prompt_garbage)
    assert not torch.equal(tokens, batch.tokens)
    before, after = numbers(policy, batch), numbers(policy, Sequences(prompt_tokens, batch.prompt_mask, tokens, batch.mask))
    for name, expected in before.items():
        assert_close(after[name][batch.mask], expected[batch.mask], atol=1e-5, rtol=0)


def test_trimming_changes_no_number(gpt2, batch):
    policy = with_values(gpt2)
    short = batch.rows(torch.tensor([0, 5]))  # prompts "a" and "f": five columns of which one is needed
    before, after = numbers(policy, short), numbers(policy, short.trimmed())
    assert short.trimmed().input_ids.shape[1] < short.input_ids.shape[1]
    for name in before:
        assert_close(after[name][short.trimmed().mask], before[name][short.mask], atol=1e-5, rtol=0)


# Values -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value_model", [False, True])
def test_before_training_every_value_is_0(lm, architecture, batch, value_model):
    policy = PolicyWithValue(lm, make_lm(architecture, seed=1) if value_model else None)
    logits, values = policy(batch.input_ids, batch.attention_mask)
    assert logits.shape == (*batch.input_ids.shape, 10)
    assert values.shape == batch.input_ids.shape
    assert (values == 0).all()


def test_the_shared_head_reads_the_last_hidden_state_after_the_final_norm(lm, batch):
    policy = with_values(lm)
    _, values = policy(batch.input_ids, batch.attention_mask)
    for row, (prompt, response) in zip(values, texts_as_tokens(batch), strict=True):
        hidden = lm.base_model(torch.tensor([prompt + response])).last_hidden_state[0]
        expected = hidden @ policy.value_head.weight[0] + policy.value_head.bias
        start = batch.prompt_tokens.shape[1] - len(prompt)
        assert_close(row[start : start + len(expected)], expected, atol=1e-5, rtol=0)


def test_a_value_model_reads_its_own_hidden_state(architecture, batch):
    value_model = make_lm(architecture, seed=5)
    policy = with_values(make_lm("gpt2"), value_model)
    logits, values = policy(batch.input_ids, batch.attention_mask)
    for row, (prompt, response) in zip(values, texts_as_tokens(batch), strict=True):
        hidden = value_model.base_model(torch.tensor([prompt + response])).last_hidden_state[0]
        expected = hidden @ policy.value_head.weight[0] + policy.value_head.bias
        start = batch.prompt_tokens.shape[1] - len(prompt)
        assert_close(row[start : start + len(expected)], expected, atol=1e-5, rtol=0)
    alone = PolicyWithValue(make_lm("gpt2"))(batch.input_ids, batch.attention_mask)[0]
    assert_close(logits, alone, atol=1e-6, rtol=0)


@pytest.mark.parametrize("trunk", TRUNKS)
def test_the_value_of_a_response_token_is_that_of_the_text_before_it(gpt2, batch, trunk):
    """So a change of token t and of all after it leaves values 0 to t as they were."""
    policy = TRUNKS[trunk](gpt2)
    _, before = response_logits(policy, batch)
    changed = batch.tokens.clone()
    changed[:, 2:] = (changed[:, 2:] + 1) % 10
    _, after = response_logits(policy, Sequences(batch.prompt_tokens, batch.prompt_mask, changed, batch.mask))
    assert_close(after[:, :3], before[:, :3], atol=1e-6, rtol=0)
    assert ((after[:, 3:] - before[:, 3:]).abs() > 1e-3)[batch.mask[:, 3:]].all()
    _, everywhere = policy(batch.input_ids, batch.attention_mask)
    P = batch.prompt_tokens.shape[1]
    assert_close(before, everywhere[:, P - 1 : -1], atol=1e-5, rtol=0)


@pytest.mark.parametrize("trunk", TRUNKS)
@pytest.mark.parametrize("last", [1, 3, 11])
def test_last_gives_the_tail(lm, batch, trunk, last):
    policy = TRUNKS[trunk](lm)
    logits, values = policy(batch.input_ids, batch.attention_mask)
    assert logits.shape[1] == values.shape[1] == 11
    tail_logits, tail_values = policy(batch.input_ids, batch.attention_mask, last=last)
    assert_close(tail_logits, logits[:, -last:], atol=1e-6, rtol=0)
    assert_close(tail_values, values[:, -last:], atol=1e-6, rtol=0)


def test_without_a_mask_every_token_is_real(lm, batch):
    policy = with_values(lm)
    found = policy(batch.input_ids)
    expected = policy(batch.input_ids, torch.ones_like(batch.attention_mask))
    for a, b in zip(found, expected, strict=True):
        assert torch.equal(a, b)
    assert_close(found[0], lm(batch.input_ids).logits, atol=1e-5, rtol=0)


def test_a_value_model_and_the_policy_do_not_touch_each_other(lm, batch):
    policy = TRUNKS["value model"](lm)
    from_policy, from_values = (gradients(response_logits(policy, batch)[i].square().mean(), policy) for i in (0, 1))
    for name in from_policy:
        policys = name.startswith("lm.")
        assert from_policy[name].any() == policys, name
        assert from_values[name].any() == (not policys), name


def test_on_a_shared_trunk_both_losses_shape_it(lm, batch):
    policy = with_values(lm)
    by_loss = [gradients(response_logits(policy, batch)[i].square().mean(), policy) for i in (0, 1)]
    for name in by_loss[0]:
        head, value_head = "lm_head" in name or "embed_out" in name, name.startswith("value_head")
        assert by_loss[0][name].any() == (not value_head), name
        assert by_loss[1][name].any() == (not head), name


def test_the_value_trunk_carries_no_language_head():
    """It would be copied, saved and kept in memory for nothing."""
    policy = PolicyWithValue(make_lm("llama"), make_lm("llama", seed=1))
    assert not any("lm_head" in name for name, _ in policy.named_parameters() if not name.startswith("lm."))


def test_a_head_lives_where_its_trunk_lives():
    policy = PolicyWithValue(make_lm("gpt2"), make_lm("llama").to(torch.bfloat16))
    assert policy.value_head.weight.dtype == torch.bfloat16
    assert policy(torch.tensor([[3, 4]]))[1].dtype == torch.bfloat16


@pytest.mark.parametrize("pick", [lambda lm: lm, lambda lm: lm.base_model])
def test_a_value_model_must_be_another_model(gpt2, pick):
    with pytest.raises(ValueError, match="value_model must be another model than lm"):
        PolicyWithValue(gpt2, pick(gpt2))


def test_a_value_model_must_read_the_same_vocabulary(gpt2):
    with pytest.raises(ValueError, match="value_model must have lm's vocabulary of 10, got 8"):
        PolicyWithValue(gpt2, make_lm("gpt2", vocab_size=8))


# To disk and back -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("trunk", TRUNKS)
def test_save_and_load_is_a_round_trip(lm, batch, tmp_path, trunk):
    policy = TRUNKS[trunk](lm)
    policy.save_pretrained(tmp_path / "policy")
    loaded = PolicyWithValue.from_pretrained(tmp_path / "policy")
    expected, found = policy.state_dict(), loaded.state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    for a, b in zip(loaded(batch.input_ids, batch.attention_mask), policy(batch.input_ids, batch.attention_mask), strict=True):
        assert torch.equal(a, b)
    assert not loaded.training
    assert all(p.requires_grad for p in loaded.parameters())


def test_plain_transformers_loads_the_saved_folder(lm, batch, tmp_path):
    with_values(lm, make_lm("gpt2", seed=3)).save_pretrained(tmp_path)
    plain = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert type(plain) is type(lm)
    assert torch.equal(plain(batch.input_ids).logits, lm(batch.input_ids).logits)


def test_gpt2s_tied_head_stays_tied(tmp_path):
    policy = PolicyWithValue(make_lm("gpt2"))
    policy.save_pretrained(tmp_path)
    loaded = PolicyWithValue.from_pretrained(str(tmp_path))
    assert loaded.lm.lm_head.weight is loaded.lm.transformer.wte.weight
    assert len(list(loaded.parameters())) == len(list(policy.parameters()))


def test_a_policy_saved_over_another_leaves_nothing_of_it(gpt2, batch, tmp_path):
    TRUNKS["value model"](gpt2).save_pretrained(tmp_path)
    policy = with_values(gpt2)
    policy.save_pretrained(tmp_path)
    loaded = PolicyWithValue.from_pretrained(tmp_path)
    assert loaded.value_trunk is None
    assert torch.equal(loaded(batch.input_ids)[1], policy(batch.input_ids)[1])


@pytest.mark.parametrize("trunk", TRUNKS)
def test_a_policy_can_be_loaded_in_another_precision(gpt2, tmp_path, trunk):
    TRUNKS[trunk](gpt2).save_pretrained(tmp_path)
    loaded = PolicyWithValue.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert {p.dtype for p in loaded.parameters()} == {torch.bfloat16}


def test_saving_leaves_the_policy_as_it_is(gpt2, batch, tmp_path):
    policy = with_values(gpt2).train()
    before = policy(batch.input_ids)
    policy.save_pretrained(tmp_path)
    assert policy.training
    for a, b in zip(policy(batch.input_ids), before, strict=True):
        assert torch.equal(a, b)


def truncate(path):
    path.write_bytes(path.read_bytes()[:-20])


def drop_a_weight(path):
    tensors = safetensors.torch.load_file(path)
    del tensors[min(tensors)]
    safetensors.torch.save_file(tensors, path, metadata={"format": "pt"})


@pytest.mark.parametrize("name", [VALUE_HEAD_NAME, "model.safetensors", f"{VALUE_TRUNK_NAME}/model.safetensors"])
@pytest.mark.parametrize("damage", [truncate, drop_a_weight, os.remove])
def test_a_damaged_folder_is_refused_with_its_name(gpt2, tmp_path, name, damage):
    TRUNKS["value model"](gpt2).save_pretrained(tmp_path)
    damage(tmp_path / name)
    with pytest.raises(ValueError, match=f"path must be a folder written by save_pretrained, got {tmp_path}"):
        PolicyWithValue.from_pretrained(tmp_path)


def test_a_folder_without_a_value_head_is_refused(gpt2, tmp_path):
    gpt2.save_pretrained(tmp_path)
    for path in (tmp_path, tmp_path / "nothing"):
        with pytest.raises(ValueError, match=f"path must be a folder written by save_pretrained, got {path}, .* no {VALUE_HEAD_NAME}"):
            PolicyWithValue.from_pretrained(path)


# Any causal LM of transformers ------------------------------------------------------------------------------------------


def saved(path, lm=None, tokenizer=None):
    """A folder as anyone may have it: a model and a tokenizer, saved by transformers."""
    (lm or make_lm("gpt2")).save_pretrained(path)
    (tokenizer or make_tokenizer()).save_pretrained(path)
    return path


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_checkpoints_of_every_architecture_load_and_sample(lm, tokenizer, batch, tmp_path, dtype):
    loaded, loaded_tokenizer = load_causal_lm(saved(tmp_path, lm, tokenizer), dtype=dtype)
    assert type(loaded) is type(lm)
    assert loaded.dtype == dtype
    assert not loaded.training
    assert all(torch.equal(x, lm.state_dict()[name].to(dtype)) for name, x in loaded.state_dict().items())
    assert loaded_tokenizer.get_vocab() == tokenizer.get_vocab()
    assert (loaded_tokenizer.pad_token, loaded_tokenizer.eos_token) == ("<pad>", "<eos>")
    assert loaded_tokenizer.padding_side == "left"
    responses = generate(loaded, loaded_tokenizer, PROMPTS, max_new_tokens=4, generator=seeded_generator())
    assert (responses.log_probs[responses.mask] < 0).all()


def test_float32_is_the_default_whatever_was_saved(tmp_path):
    saved(tmp_path, make_lm("llama").to(torch.bfloat16))
    assert load_causal_lm(str(tmp_path))[0].dtype == torch.float32


def test_a_tokenizer_that_pads_on_the_right_pads_on_the_left_once_loaded(tmp_path):
    tokenizer = make_tokenizer()
    tokenizer.padding_side = "right"
    assert load_causal_lm(saved(tmp_path, tokenizer=tokenizer))[1].padding_side == "left"


def test_a_tokenizer_without_a_pad_token_pads_with_its_end_token(tmp_path):
    lm, tokenizer = load_causal_lm(saved(tmp_path, tokenizer=make_tokenizer(pad_token=None)))
    assert tokenizer.pad_token_id == tokenizer.eos_token_id == EOS
    responses = generate(lm, tokenizer, 4 * PROMPTS, max_new_tokens=8, generator=seeded_generator())
    assert responses.ended.any()
    assert (responses.tokens == EOS)[responses.mask].sum() == responses.ended.sum(), "each end counts, once"


def test_a_tokenizer_without_an_end_token_is_refused(tmp_path):
    with pytest.raises(ValueError, match="tokenizer must have its eos_token set"):
        load_causal_lm(saved(tmp_path, tokenizer=make_tokenizer(eos_token=None)))


def test_a_tokenizer_of_another_vocabulary_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"tokenizer must have the model's vocabulary of 10 tokens .* got 5"):
        load_causal_lm(saved(tmp_path, tokenizer=make_tokenizer(("a", "b"))))


def test_a_folder_without_a_tokenizer_is_refused(gpt2, tmp_path):
    gpt2.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="tokenizer"):
        load_causal_lm(tmp_path)


@pytest.fixture
def offline(monkeypatch):
    """What HF_HUB_OFFLINE=1 in the environment does, which is read when the library is imported."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)


@pytest.mark.parametrize("name", ["nobody/no-such-model", "./no-such-folder", "no such name"])
def test_a_missing_model_is_one_clear_error_offline(offline, tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    message = f"name_or_path must name a causal language model .*, got '{name}'; no such folder is here, and the hub .* gave: [^\n]+$"
    with pytest.raises(ValueError, match=message):
        load_causal_lm(name)


def test_a_missing_folder_given_as_a_path_is_named(offline, tmp_path):
    with pytest.raises(ValueError, match=f"name_or_path must .*, got '{tmp_path / 'nothing'}'; no such folder is here"):
        load_causal_lm(tmp_path / "nothing")


@pytest.mark.parametrize("name", [None, "", 3])
def test_no_name_at_all_is_refused(name):
    with pytest.raises(ValueError, match="name_or_path must be the name or the folder of a model, got"):
        load_causal_lm(name)


def test_an_empty_folder_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"name_or_path must name a causal language model .* the folder gave"):
        load_causal_lm(tmp_path)


class MakesAFolder:
    """Unpickling it makes a folder: what a harmful checkpoint could do."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


@pytest.mark.parametrize("harmful", [False, True])
@pytest.mark.parametrize("beside", [None, b"damaged"])
def test_a_pickle_is_refused_and_not_even_opened(tmp_path, harmful, beside):
    """Nor is it where the safetensors file beside it cannot be read."""
    saved(tmp_path)
    safe, pickled = tmp_path / "model.safetensors", tmp_path / "pytorch_model.bin"
    weights = safetensors.torch.load_file(safe)
    torch.save({"x": MakesAFolder(tmp_path / "executed")} if harmful else weights, pickled)
    safe.unlink()
    if beside is not None:
        safe.write_bytes(beside)
    with pytest.raises(ValueError, match=r"with safetensors weights, .* the folder gave: .*(safetensors|header)"):
        load_causal_lm(tmp_path)
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize("known", [True, False])
def test_code_in_the_folder_is_never_run(tmp_path, known):
    """With a known model type transformers' own class loads; with an unknown one nothing does."""
    saved(tmp_path)
    (tmp_path / "evil.py").write_text(f"import os\nos.mkdir({str(tmp_path / 'executed')!r})\nclass Evil: pass\n")
    for file, changes in (
        ("config.json", {"auto_map": {"AutoConfig": "evil.Evil", "AutoModelForCausalLM": "evil.Evil"}}),
        ("tokenizer_config.json", {"auto_map": {"AutoTokenizer": ["evil.Evil", "evil.Evil"]}}),
    ):
        content = json.loads((tmp_path / file).read_text()) | changes
        if not known and file == "config.json":
            content["model_type"] = "evil"
        (tmp_path / file).write_text(json.dumps(content))
    if known:
        assert type(load_causal_lm(tmp_path)[0]).__module__.startswith("transformers.")
    else:
        with pytest.raises(ValueError, match="name_or_path must name a causal language model"):
            load_causal_lm(tmp_path)
    assert not (tmp_path / "executed").exists()


def reshape_a_weight(path):
    tensors = safetensors.torch.load_file(path)
    tensors[max(tensors)] = torch.zeros(3, 3)
    safetensors.torch.save_file(tensors, path, metadata={"format": "pt"})


@pytest.mark.parametrize("damage", [truncate, drop_a_weight, reshape_a_weight])
def test_damaged_weights_are_refused(tmp_path, damage):
    """Transformers would fill in a missing weight at random and go on."""
    saved(tmp_path)
    damage(tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=r"name_or_path must name a causal language model with safetensors weights, .* the folder gave"):
        load_causal_lm(tmp_path)


def test_a_trunk_without_a_language_head_is_no_language_model(tmp_path):
    saved(tmp_path, make_lm("llama").model)
    with pytest.raises(ValueError, match=r"the weights lack lm_head.weight \(1 such\)"):
        load_causal_lm(tmp_path)


# A model made on the spot -----------------------------------------------------------------------------------------------


def test_make_gpt2_fits_its_tokenizer_and_has_no_dropout(tokenizer):
    lm = make_gpt2(tokenizer, layers=3, width=24, heads=2, context=16)
    config = lm.config
    assert (config.n_layer, config.n_embd, config.n_head, config.n_positions, config.vocab_size) == (3, 24, 2, 16, 10)
    assert (config.pad_token_id, config.eos_token_id) == (PAD, EOS)
    assert not lm.training
    ids = torch.tensor([[3, 4, 5]])
    assert torch.equal(lm.train()(ids).logits, lm.train()(ids).logits), "no dropout even in training mode"
    check_vocabulary(lm, tokenizer)


def test_make_gpt2_is_reproducible_and_leaves_the_random_state_alone(tokenizer):
    state = torch.get_rng_state()
    first, again, other = (make_gpt2(tokenizer, width=16, seed=seed).transformer.wpe.weight for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"width": 30, "heads": 4}, r"width must be a multiple of heads \(4\), got 30"),
        ({"layers": 0}, "layers must be an int of at least 1, got int 0"),
        ({"width": 0}, "width must be an int of at least 1"),
        ({"heads": 1.0}, "heads must be an int of at least 1"),
        ({"context": -1}, "context must be an int of at least 1"),
    ],
)
def test_make_gpt2_names_a_bad_size(tokenizer, changes, message):
    with pytest.raises(ValueError, match=message):
        make_gpt2(tokenizer, **changes)


@pytest.mark.parametrize("name", ["pad_token", "eos_token"])
def test_make_gpt2_needs_a_complete_tokenizer(name):
    with pytest.raises(ValueError, match=f"tokenizer must have its {name} set"):
        make_gpt2(make_tokenizer(**{name: None}))


# Bad input --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("temperature", [0.0, -1.0, float("nan"), float("inf"), "1", True])
def test_a_bad_temperature_is_named(gpt2, batch, temperature):
    with pytest.raises(ValueError, match="temperature must be a finite number above 0, got"):
        sequence_log_probs(gpt2, batch, temperature=temperature)


def test_a_model_that_gives_nan_is_noticed(gpt2, batch):
    with torch.no_grad():
        gpt2.transformer.ln_f.bias[3] = float("nan")
    with pytest.raises(ValueError, match=r"log_probs must be finite, got nan at index \[0, 0\]"):
        sequence_log_probs(gpt2, batch)


@pytest.mark.parametrize(("rows", "fits"), [(10, True), (9, False), (11, False), (8, False)])
def test_the_vocabularies_must_be_equal(tokenizer, rows, fits):
    lm = make_lm("gpt2", vocab_size=rows)
    for model in (lm, PolicyWithValue(lm)):
        if fits:
            check_vocabulary(model, tokenizer)
        else:
            with pytest.raises(ValueError, match=rf"tokenizer must have the model's vocabulary of {rows} tokens .*, got 10"):
                check_vocabulary(model, tokenizer)


@pytest.mark.parametrize(("rows", "fits"), [(100, True), (101, True), (102, True), (103, False), (99, False)])
def test_a_few_unused_rows_of_the_model_are_let_pass(rows, fits):
    tokenizer = make_tokenizer(tuple(f"w{i}" for i in range(97)))
    lm = make_lm("gpt2", vocab_size=rows)
    if fits:
        check_vocabulary(lm, tokenizer)
        responses = generate(lm, tokenizer, ["w0 w1"] * 20, max_new_tokens=8, generator=seeded_generator())
        assert responses.tokens.max() >= 97
    else:
        with pytest.raises(ValueError, match="tokenizer must have the model's vocabulary"):
            check_vocabulary(lm, tokenizer)
