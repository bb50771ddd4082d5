"""A byte-level BPE tokenizer of our own, trained in a second and used like any other of transformers."""

from collections.abc import Iterable

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from ppo_edu.core.validation import check_count, describe

PAD, EOS = "<pad>", "<eos>"


def train_tokenizer(texts: Iterable[str], *, vocab_size: int = 1024) -> PreTrainedTokenizerFast:
    """Byte-level BPE: starts from the 256 bytes and joins the most frequent neighbours until the vocabulary is full.

    As in GPT-2, a word carries the space before it and any text can be written and read back, seen in training or not.
    Unlike GPT-2, `<pad>` (id 0) and `<eos>` (id 1) are two tokens, so that padding never hides an end; there is no start
    token; every digit is a token of its own, so that numbers are read digit by digit; padding goes to the left, where it
    does not come between a prompt and its continuation. Nothing is added to a text: who trains on texts appends `eos_token_id`.
    As in every tokenizer of transformers, the letters "<eos>" inside a text are read as the end token.

    When every word is one token there is nothing left to join, and `len(tokenizer)` stays below `vocab_size`: the review
    corpus needs about 690 tokens, some 150 of them its words and most of the others their beginnings; sums need the 258 smallest.

    Source: Sennrich et al. 2016 (arXiv:1508.07909), algorithm 1; on bytes: Radford et al. 2019 (GPT-2), section 2.2.

    Returns: a fast tokenizer that `save_pretrained` writes and `AutoTokenizer.from_pretrained` reads.
    Raises: ValueError naming texts or vocab_size.
    """
    texts = _checked_texts(texts)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    smallest = len(alphabet) + 2
    check_count(vocab_size=vocab_size)
    if vocab_size < smallest:
        raise ValueError(f"vocab_size must be at least {smallest} (256 bytes, {PAD} and {EOS}), got {vocab_size}")
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=2,
        special_tokens=[PAD, EOS],
        initial_alphabet=alphabet,
        show_progress=False,
    )
    bpe.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        pad_token=PAD,
        eos_token=EOS,
        padding_side="left",
        clean_up_tokenization_spaces=False,
    )


def _checked_texts(texts: Iterable[str]) -> list[str]:
    if isinstance(texts, str) or not isinstance(texts, Iterable):
        raise ValueError(f"texts must be an iterable of str, got {describe(texts)}")
    texts = list(texts)
    for i, text in enumerate(texts):
        if not isinstance(text, str):
            raise ValueError(f"texts must be an iterable of str, got {describe(text)} at index {i}")
    if not any(texts):
        raise ValueError(f"texts must hold at least one character, got {len(texts)} texts")
    return texts
