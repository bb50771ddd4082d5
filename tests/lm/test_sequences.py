"""Texts as tensors: padding on the right side, masks made from lengths, the end token that belongs to the response."""

from collections import UserList

import pytest
import torch
from lm_helpers import make_tokenizer, more_padding
from tokenizers.processors import TemplateProcessing

from ppo_edu.lm import Responses, Sequences, decode, encode
from ppo_edu.lm.sequences import check_tokenizer, encode_prompts, position_ids

PAD, EOS, UNK, A, B, C = range(6)
YES, NO = True, False


def with_start_token():
    """A tokenizer that puts <s> in front of a text, as Llama's does."""
    tokenizer = make_tokenizer(("a", "b", "c", "<s>"), bos_token="<s>")
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 6)])
    return tokenizer


def hand_made():
    """Two responses of a batch, the first shorter: its third column is padding."""
    return Sequences(
        prompt_tokens=torch.tensor([[PAD, A], [B, C]]),
        prompt_mask=torch.tensor([[NO, YES], [YES, YES]]),
        tokens=torch.tensor([[B, EOS, PAD], [A, A, C]]),
        mask=torch.tensor([[YES, YES, NO], [YES, YES, YES]]),
    )


# Texts to tokens --------------------------------------------------------------------------------------------------------


def test_prompts_are_padded_on_the_left(tokenizer):
    tokens, mask = encode_prompts(tokenizer, ["a", "b c a", "c c"])
    assert tokens.tolist() == [[PAD, PAD, A], [B, C, A], [PAD, C, C]]
    assert mask.tolist() == [[NO, NO, YES], [YES, YES, YES], [NO, YES, YES]]
    assert tokens.dtype == torch.int64
    assert mask.dtype == torch.bool


def test_whatever_side_the_tokenizer_pads_on_prompts_are_padded_on_the_left():
    tokenizer = make_tokenizer()
    tokenizer.padding_side = "right"
    assert encode_prompts(tokenizer, ["a", "b c"])[0].tolist() == [[PAD, A], [B, C]]


def test_a_response_begins_in_the_same_column_in_every_row_and_ends_with_its_end_token(tokenizer):
    sequences = encode(tokenizer, ["a", "b c a", "c c"], ["b", "", "a b c"])
    assert sequences.prompt_tokens.tolist() == [[PAD, PAD, A], [B, C, A], [PAD, C, C]]
    assert sequences.tokens.tolist() == [[B, EOS, PAD, PAD], [EOS, PAD, PAD, PAD], [A, B, C, EOS]]
    assert sequences.mask.tolist() == [[YES, YES, NO, NO], [YES, NO, NO, NO], [YES, YES, YES, YES]]


def test_a_start_token_belongs_to_the_prompt_only():
    sequences = encode(with_start_token(), ["a"], ["b"])
    assert sequences.prompt_tokens.tolist() == [[6, A]]
    assert sequences.tokens.tolist() == [[B, EOS]]


@pytest.mark.parametrize("pad_token", ["<eos>", "<unk>", "a"])
def test_masks_come_from_lengths_whatever_token_pads(pad_token):
    """A tokenizer may pad with its end token (as GPT-2 is used), or with a word: what is real stays real."""
    tokenizer = make_tokenizer(pad_token=pad_token)
    sequences = encode(tokenizer, ["a", "<eos> a <unk>"], ["a a", "x a <eos> a"])
    assert sequences.prompt_mask.tolist() == [[NO, NO, YES], [YES, YES, YES]]
    assert sequences.mask.tolist() == [[YES, YES, YES, NO, NO], [YES] * 5]
    assert sequences.tokens[0, 2] == sequences.tokens[1, 4] == EOS


# What a batch says of itself --------------------------------------------------------------------------------------------


def test_prompt_and_response_stand_side_by_side():
    sequences = hand_made()
    assert sequences.input_ids.tolist() == [[PAD, A, B, EOS, PAD], [B, C, A, A, C]]
    assert sequences.attention_mask.tolist() == [[NO, YES, YES, YES, NO], [YES] * 5]
    assert sequences.lengths.tolist() == [2, 3]
    assert len(sequences) == 2


def test_rows_picks_rows_of_everything_and_keeps_the_kind():
    s = hand_made()
    responses = Responses(s.prompt_tokens, s.prompt_mask, s.tokens, s.mask, torch.tensor([[-1.0, -2, 0], [-3, -4, -5]]), s.mask[:, 0])
    picked = responses.rows(torch.tensor([1, 0, 1]))
    assert isinstance(picked, Responses)
    assert picked.log_probs.tolist() == [[-3, -4, -5], [-1, -2, 0], [-3, -4, -5]]
    assert picked.input_ids.tolist() == s.input_ids[[1, 0, 1]].tolist()
    assert picked.attention_mask.tolist() == s.attention_mask[[1, 0, 1]].tolist()
    assert len(picked.ended) == len(picked) == 3


def test_trimmed_leaves_out_columns_that_are_padding_in_every_row():
    sequences = more_padding(hand_made(), left=2, right=3)
    trimmed = sequences.trimmed()
    for name in ("prompt_tokens", "prompt_mask", "tokens", "mask"):
        assert torch.equal(getattr(trimmed, name), getattr(hand_made(), name))
    assert trimmed.rows(torch.tensor([0])).trimmed().input_ids.tolist() == [[A, B, EOS]]


def test_positions_count_real_tokens_only():
    mask = torch.tensor([[NO, NO, YES, YES, YES], [YES, YES, YES, NO, NO], [YES] * 5])
    positions = position_ids(mask)
    assert positions[mask].tolist() == [0, 1, 2, 0, 1, 2, 0, 1, 2, 3, 4]
    assert positions.min() >= 0, "a pad, too, needs a position that exists"
    assert positions.dtype == torch.int64


# Tokens to texts --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pad_token", ["<pad>", "<eos>"])
def test_encode_and_decode_are_a_round_trip(pad_token):
    tokenizer = make_tokenizer(pad_token=pad_token)
    responses = ["b", "", "a b c", "g g"]
    assert decode(tokenizer, encode(tokenizer, ["a", "b c", "a", "d"], responses)) == responses


def test_decode_reads_nothing_under_the_padding(tokenizer):
    sequences = hand_made()
    sequences.tokens[0, 2] = C
    assert decode(tokenizer, sequences) == ["b", "a a c"]


# Bad input --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("prompts", "message"),
    [
        ([], "prompts must be a non-empty list of strings, got list"),
        ("a b", "prompts must be a non-empty list of strings, got str 'a b'"),
        (None, "prompts must be a non-empty list of strings, got NoneType"),
        (["a", ""], r"prompts\[1\] must be a non-empty string, got str ''"),
        (["a", None], r"prompts\[1\] must be a non-empty string, got NoneType"),
        (["a", ["b"]], r"prompts\[1\] must be a non-empty string, got list"),
        (["a", "  "], r"prompts\[1\] must have at least one token, got '  '"),
    ],
)
def test_bad_prompts_are_named(tokenizer, prompts, message):
    with pytest.raises(ValueError, match=message):
        encode_prompts(tokenizer, prompts)


def test_any_sequence_of_strings_will_do(tokenizer):
    for prompts in (("a", "b"), UserList(["a", "b"])):
        assert encode_prompts(tokenizer, prompts)[0].tolist() == [[A], [B]]


@pytest.mark.parametrize("name", ["pad_token", "eos_token"])
def test_a_tokenizer_without_pad_or_end_token_is_refused(name):
    tokenizer = make_tokenizer(**{name: None})
    with pytest.raises(ValueError, match=f"tokenizer must have its {name} set to a token of its vocabulary, got none"):
        check_tokenizer(tokenizer)
    with pytest.raises(ValueError, match=name):
        encode_prompts(tokenizer, ["a"])
    with pytest.raises(ValueError, match=name):
        encode(tokenizer, ["a"], ["b"])


@pytest.mark.parametrize(
    ("responses", "message"),
    [
        (["b"], r"responses must be as many as prompts \(2\), got 1"),
        (["b", "c", "a"], r"responses must be as many as prompts \(2\), got 3"),
        ("bc", "responses must be a list of strings, got str 'bc'"),
        (["b", None], r"responses\[1\] must be a string, got NoneType"),
    ],
)
def test_bad_responses_are_named(tokenizer, responses, message):
    with pytest.raises(ValueError, match=message):
        encode(tokenizer, ["a", "b"], responses)


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("prompt_tokens", torch.zeros(2, dtype=torch.int64)),
        ("prompt_tokens", torch.zeros(2, 2)),
        ("prompt_mask", torch.ones(2, 3, dtype=torch.bool)),
        ("prompt_mask", torch.ones(2, 2, dtype=torch.int64)),
        ("tokens", torch.zeros(2, 3, 1, dtype=torch.int64)),
        ("tokens", [[1, 2, 3], [1, 2, 3]]),
        ("mask", torch.ones(2, 2, dtype=torch.bool)),
        ("mask", torch.ones(2, 3)),
    ],
)
def test_tensors_that_do_not_fit_together_are_named(name, wrong):
    s = hand_made()
    parts = {"prompt_tokens": s.prompt_tokens, "prompt_mask": s.prompt_mask, "tokens": s.tokens, "mask": s.mask}
    with pytest.raises(ValueError, match=f"^{name} must be"):
        Sequences(**(parts | {name: wrong}))


def test_prompts_and_responses_must_be_as_many():
    s = hand_made()
    with pytest.raises(ValueError, match=r"tokens must be as many sequences as prompt_tokens \(2\), got 1"):
        Sequences(s.prompt_tokens, s.prompt_mask, s.tokens[:1], s.mask[:1])
