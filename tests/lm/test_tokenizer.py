"""The tokenizer: any text comes back, words and digits are one token each, ends and padding stay apart, it loads as any other."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from ppo_edu.lm.corpus import make_reviews, make_sums
from ppo_edu.lm.tokenizer import train_tokenizer

REVIEWS = make_reviews(2000, seed=0)
TOKENIZER = train_tokenizer(example.text for example in REVIEWS)


@given(st.text().filter(lambda text: "<pad>" not in text and "<eos>" not in text))
def test_any_text_comes_back(text):
    assert TOKENIZER.decode(TOKENIZER.encode(text)) == text


@pytest.mark.parametrize(
    "text", ["", " ", "  two  spaces ", "a , b .", "don 't", "naïve 日本 🙂\n\t", "7.5 + 1/2", "\x00", "The lid is sturdy ."]
)
def test_awkward_texts_come_back(text):
    assert TOKENIZER.decode(TOKENIZER.encode(text)) == text
    assert TOKENIZER.decode(TOKENIZER.encode(text), skip_special_tokens=True) == text


def test_special_tokens():
    assert (TOKENIZER.pad_token, TOKENIZER.pad_token_id) == ("<pad>", 0)
    assert (TOKENIZER.eos_token, TOKENIZER.eos_token_id) == ("<eos>", 1)
    assert TOKENIZER.bos_token is None
    assert TOKENIZER.encode("a") == TOKENIZER.encode("a", add_special_tokens=False)
    assert TOKENIZER.decode([0, 0, *TOKENIZER.encode(" I love the lid."), 1], skip_special_tokens=True) == " I love the lid."
    assert TOKENIZER.model_max_length > 10**9
    assert TOKENIZER.clean_up_tokenization_spaces is False


def test_padding_goes_to_the_left():
    batch = TOKENIZER(["I bought this kettle yesterday.", "I"], padding=True, return_tensors="pt")
    assert set(batch) == {"input_ids", "attention_mask"}
    assert batch["attention_mask"].tolist() == [[1] * 6, [0] * 5 + [1]]
    assert batch["input_ids"][1].tolist() == [0] * 5 + TOKENIZER.encode("I")


def test_every_word_of_the_reviews_is_one_token():
    held_out = make_reviews(1000, seed=1, held_out=True)
    pieces = {piece for example in REVIEWS + held_out for piece in re.findall(r" ?\w+|[^\w\s]", example.text)}
    assert len(pieces) > 140
    assert len(TOKENIZER) < 1024  # with every word one token, nothing is left to join
    assert {piece: TOKENIZER.tokenize(piece) for piece in pieces if len(TOKENIZER.encode(piece)) != 1} == {}
    for example in REVIEWS[:200]:
        assert len(TOKENIZER.encode(example.text)) == len(re.findall(r"\w+|[^\w\s]", example.text))
        assert TOKENIZER.encode(example.prompt) + TOKENIZER.encode(example.response) == TOKENIZER.encode(example.text)


def test_digits_are_read_one_by_one():
    tokenizer = train_tokenizer(example.text for example in make_sums(2000, digits=3, seed=0))
    assert len(tokenizer) == 258
    assert tokenizer.convert_ids_to_tokens(tokenizer.encode("137+48=185")) == list("137+48=185")
    assert len(TOKENIZER.encode("2024")) == 4
    assert train_tokenizer(["2024 2024"] * 50).tokenize("2024") == list("2024")


@pytest.mark.parametrize("load", [AutoTokenizer.from_pretrained, PreTrainedTokenizerFast.from_pretrained])
def test_saved_and_loaded_it_is_the_same(tmp_path, load):
    TOKENIZER.save_pretrained(tmp_path)
    loaded = load(tmp_path)
    assert isinstance(loaded, PreTrainedTokenizerFast)
    texts = [REVIEWS[0].text, "I", "naïve  12 , 日本 <eos>"]
    assert loaded(texts, padding=True).data == TOKENIZER(texts, padding=True).data
    assert loaded.batch_decode(loaded(texts)["input_ids"]) == texts
    for name in (
        "pad_token_id",
        "eos_token_id",
        "bos_token",
        "padding_side",
        "clean_up_tokenization_spaces",
        "model_input_names",
        "model_max_length",
    ):
        assert getattr(loaded, name) == getattr(TOKENIZER, name), name
    assert loaded.get_vocab() == TOKENIZER.get_vocab()


def test_training_is_deterministic():
    texts = [example.text for example in REVIEWS[:500]]
    assert train_tokenizer(texts).backend_tokenizer.to_str() == train_tokenizer(iter(texts)).backend_tokenizer.to_str()


@pytest.mark.parametrize("vocab_size", [258, 300, 512])
def test_the_vocabulary_has_the_size_asked_for(vocab_size):
    tokenizer = train_tokenizer([example.text for example in REVIEWS[:500]], vocab_size=vocab_size)
    assert len(tokenizer) == tokenizer.vocab_size == vocab_size
    assert sorted(tokenizer.get_vocab().values()) == list(range(vocab_size))


@pytest.mark.parametrize(
    ("texts", "vocab_size", "name"),
    [
        ([], 512, "texts"),
        (["", ""], 512, "texts"),
        ("one text", 512, "texts"),
        (["a", 3], 512, "texts"),
        (None, 512, "texts"),
        (["a"], 257, "vocab_size"),
        (["a"], 0, "vocab_size"),
        (["a"], 512.0, "vocab_size"),
        (["a"], True, "vocab_size"),
    ],
)
def test_bad_arguments_are_named(texts, vocab_size, name):
    with pytest.raises(ValueError, match=f"^{name} must"):
        train_tokenizer(texts, vocab_size=vocab_size)
