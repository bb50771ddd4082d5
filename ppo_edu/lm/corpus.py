"""Two languages small enough to know exactly: product reviews that a grammar writes and scores, and sums that arithmetic checks.

A review is a prompt (its opening sentence) and a response (opinions on aspects of one product, then perhaps a verdict).
The reviewer has an attitude that every opinion shares, so a model can learn mood; the product decides which aspects and
which adjectives fit, so it can learn sense; connectives agree with what they join, so it can learn argument.

The writer and the scorer read the same tables, so the scorer understands all that is written. It understands odd things too,
such as a gripping lid: it judges praise and blame, not mood, sense or argument.
"""

import random
import re
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from ppo_edu.core.validation import check_bool, check_count, describe

Choice = TypeVar("Choice")


@dataclass(frozen=True)
class Example:
    """What is given and what is to be written after it."""

    prompt: str
    response: str

    @property
    def text(self) -> str:
        """The whole text: prompt and response."""
        return self.prompt + self.response


# What the grammar speaks of ------------------------------------------------------------------------------------------

PRODUCTS = {
    "kitchen": ("kettle", "teapot", "saucepan", "blender"),
    "travel": ("tent", "backpack", "jacket", "suitcase"),
    "electronics": ("laptop", "phone", "camera", "tablet"),
    "books": ("novel", "thriller", "biography", "memoir"),
}
# aspect: (praise, fault, {what it does: +1 if that is welcome, -1 if not})
ASPECTS = {
    "kitchen": {
        "lid": ("sturdy", "loose", {"fits": 1, "leaks": -1}),
        "handle": ("comfortable", "slippery", {}),
        "base": ("sturdy", "wobbly", {"leaks": -1}),
        "finish": ("shiny", "dull", {}),
    },
    "travel": {
        "zip": ("sturdy", "stiff", {"works": 1, "sticks": -1}),
        "fabric": ("soft", "thin", {}),
        "stitching": ("neat", "loose", {}),
        "pocket": ("roomy", "tiny", {}),
    },
    "electronics": {
        "screen": ("sharp", "dim", {"works": 1, "fails": -1}),
        "battery": ("reliable", "weak", {"lasts": 1, "fails": -1}),
        "menu": ("clear", "confusing", {}),
        "button": ("handy", "stiff", {"works": 1, "sticks": -1}),
    },
    "books": {
        "story": ("gripping", "boring", {"moves me": 1, "drags": -1}),
        "ending": ("clever", "rushed", {"moves me": 1}),
        "writing": ("clever", "clumsy", {"drags": -1}),
        "cover": ("beautiful", "dull", {}),
    },
}
# What fits any aspect.
PRAISE, FAULTS = ("good", "nice", "lovely"), ("bad", "poor", "ugly")
RELATIVES = ("mother", "father", "sister", "brother", "neighbour", "uncle")
TIMES = ("yesterday", "last week", "last month", "last year")
PLACES = ("at the market", "at the airport", "in a small shop", "in an online store")
OCCASIONS = ("for my birthday", "for Christmas")

# How strong praise is after each word; blame is as strong the other way. "Not" turns an adjective round and weakens it.
DEGREES = {"": 0.6, "fairly ": 0.4, "really ": 0.8, "very ": 0.8, "extremely ": 1.0, "slightly ": 0.2, "not ": -0.5}
FREQUENCIES = {"always": 0.8, "often": 0.5}
FEELINGS = {"love": 1.0, "like": 0.6, "do not like": -0.6, "dislike": -0.7, "hate": -1.0}

# How a sentence holds opinions, and whether those written so agree (+1) or differ (-1) in sign: a and b, or a alone and the
# opinion before it. The scorer does not ask.
SENTENCES = {
    "{a}.": 0,
    "also, {a}.": 1,
    "however, {a}.": -1,
    "{a}, and {b}.": 1,
    "{a}, but {b}.": -1,
    "although {a}, {b}.": -1,
}
# Opinions in each sentence of a review, and whether a verdict follows.
PLANS = (((2,), False), ((1, 1), False), ((2, 1), False), ((1,), True), ((2,), True), ((1, 1), True))
ATTITUDES = (0.03, 0.15, 0.85, 0.97)  # chance that an opinion of this reviewer is praise

HELD_OUT_ONE_IN = 5


# The grammar ---------------------------------------------------------------------------------------------------------


def _graded(before: str, praise: Sequence[str], faults: Sequence[str], after: str = "") -> dict[str, float]:
    """An adjective in every degree, with its strength: "the lid is " + "very " + "sturdy" + ""."""
    signed = [*((adjective, 1) for adjective in praise), *((adjective, -1) for adjective in faults)]
    return {before + degree + adjective + after: sign * x for adjective, sign in signed for degree, x in DEGREES.items()}


def _aspect_forms(aspect: str, praise: Sequence[str], faults: Sequence[str], doings: dict[str, int]) -> list[dict[str, float]]:
    """Every clause that judges an aspect, form by form, with its strength in [-1, 1], never 0."""
    the = f"the {aspect}"
    return [
        _graded(f"{the} is ", praise, faults),
        _graded(f"I find {the} ", praise, faults),
        {f"I {feeling} {the}": x for feeling, x in FEELINGS.items()},
        {f"{the} {often} {does}": sign * x for often, x in FREQUENCIES.items() for does, sign in doings.items()},
    ]


def _verdict_forms(item: str) -> list[dict[str, float]]:
    """Every verdict on a product, form by form, with its strength."""
    this = f"this {item}"
    audiences = ("anyone", "a friend", *(f"my {relative}" for relative in RELATIVES))
    advice = {"would": 0.8, "would not": -0.8, "would never": -1.0}
    return [
        {f"I {would} recommend it to {audience}": x for would, x in advice.items() for audience in audiences},
        _graded("overall, I am ", ("happy",), ("disappointed",), " with it"),
        {f"I {feeling} {this}": x for feeling, x in FEELINGS.items()},
        {
            "it is worth the price": 0.6,
            "it is not worth the price": -0.6,
            "I would buy it again": 0.8,
            "I would never buy it again": -1.0,
            f"I regret buying {this}": -0.8,
            f"I do not regret buying {this}": 0.5,
        },
    ]


def _is_odd(words: str, strength: float) -> bool:
    """Whether no reviewer says it, plain as it is: "the lid is slightly sturdy", "I find the lid not sturdy"."""
    return (" slightly " in words and strength > 0) or (words.startswith("I find") and " not " in words)


def _by_sign(forms: list[dict[str, float]]) -> dict[int, list[list[str]]]:
    """What a reviewer may choose from: the forms that can praise (+1) and those that can blame (-1), each with such clauses only."""
    signed = {sign: [[words for words, x in form.items() if x * sign > 0 and not _is_odd(words, x)] for form in forms] for sign in (1, -1)}
    return {sign: [form for form in kept if form] for sign, kept in signed.items()}


_CATEGORY = {item: category for category, items in PRODUCTS.items() for item in items}
_OWN_WORDS = {aspect: words for aspects in ASPECTS.values() for aspect, words in aspects.items()}
_ASPECT_FORMS = {
    aspect: _by_sign(_aspect_forms(aspect, (praise, *PRAISE), (fault, *FAULTS), doings))
    for aspect, (praise, fault, doings) in _OWN_WORDS.items()
}
_VERDICT_FORMS = {item: _by_sign(_verdict_forms(item)) for item in _CATEGORY}


# Writing reviews -----------------------------------------------------------------------------------------------------


def _all_prompts() -> list[tuple[str, str]]:
    """Every opening sentence, with its product."""
    prompts = []
    for item in _CATEGORY:
        bought = [f"I {verb} this {item} {time}." for verb in ("bought", "ordered") for time in TIMES]
        found = [f"I {verb} this {item} {place}." for verb in ("bought", "found") for place in PLACES]
        for_whom = [f"I bought this {item} for my {relative} {time}." for relative in RELATIVES for time in TIMES]
        given = [f"My {relative} gave me this {item} {when}." for relative in RELATIVES for when in (*TIMES, *OCCASIONS)]
        prompts += [(prompt, item) for prompt in bought + found + for_whom + given]
    return prompts


def _is_held_out(key: str) -> bool:
    """Whether this text or pair is kept for evaluation: about one in five, the same in every run and for every seed."""
    return zlib.crc32(key.encode()) % HELD_OUT_ONE_IN == 0


_PROMPTS = {side: [(prompt, item) for prompt, item in _all_prompts() if _is_held_out(prompt) == side] for side in (False, True)}
_ITEM = {prompt: item for side in _PROMPTS.values() for prompt, item in side}


def make_reviews(n: int, *, seed: int, held_out: bool = False) -> list[Example]:
    """Reviews of the grammar, half of them more praise than blame; the same for the same arguments.

    The prompts are those of `review_prompts(n, seed=seed, held_out=held_out)`: no held-out prompt is ever a training prompt.
    A response starts with a space and has two or three sentences (or one that joins two opinions).

    Returns: n examples.
    Raises: ValueError naming n, seed or held_out.
    """
    rng = _rng("reviews", n=n, seed=seed, held_out=held_out)
    return [Example(prompt, _write(item, rng)) for prompt, item in _draw_prompts(n, seed, held_out)]


def review_prompts(n: int, *, seed: int, held_out: bool = False) -> list[str]:
    """Opening sentences in random order: each is used once before any is used again, so n may exceed their number.

    The training and the held-out set are fixed and disjoint; about one opening in five is held out.

    Returns: n prompts.
    Raises: ValueError naming n, seed or held_out.
    """
    return [prompt for prompt, _ in _draw_prompts(n, seed, held_out)]


def review_responses(prompts: Sequence[str], *, seed: int) -> list[str]:
    """One review of the grammar for each prompt: another seed writes other reviews of the same products.

    Raises: ValueError naming prompts (each as `review_prompts` writes it) or seed.
    """
    _check_texts(prompts=prompts)
    if not prompts:
        raise ValueError(f"prompts must hold at least one opening, got {describe(prompts)}")
    rng = _rng("responses", n=len(prompts), seed=seed, held_out=False)
    unknown = [prompt for prompt in prompts if prompt not in _ITEM]
    if unknown:
        raise ValueError(f"prompts must be openings that review_prompts writes, got {unknown[0]!r}")
    return [_write(_ITEM[prompt], rng) for prompt in prompts]


def _draw_prompts(n: int, seed: int, held_out: bool) -> list[tuple[str, str]]:
    rng = _rng("prompts", n=n, seed=seed, held_out=held_out)
    drawn = []
    while len(drawn) < n:
        drawn += sorted(_PROMPTS[held_out], key=lambda _: rng.random())
    return drawn[:n]


def _write(item: str, rng: random.Random) -> str:
    """One response on a product."""
    attitude = _choose(rng, ATTITUDES)
    counts, has_verdict = _choose(rng, PLANS)
    aspects = sorted(ASPECTS[_CATEGORY[item]], key=lambda _: rng.random())
    sentences, previous = [], 0
    for count in counts:
        signs = [_sign(rng, attitude) for _ in range(count)]
        clauses = [_choose(rng, _choose(rng, _ASPECT_FORMS[aspects.pop()][sign])) for sign in signs]
        relation = signs[0] * signs[1] if count == 2 else previous * signs[0]
        fitting = [s for s, needed in SENTENCES.items() if ("{b}" in s) == (count == 2) and needed in (0, relation)]
        sentences.append(_choose(rng, fitting).format(**dict(zip("ab", clauses, strict=False))))
        previous = signs[-1]
    if has_verdict:
        sentences.append(_choose(rng, _choose(rng, _VERDICT_FORMS[item][_sign(rng, attitude)])) + ".")
    return "".join(" " + _capitalised(sentence) for sentence in sentences)


def _sign(rng: random.Random, attitude: float) -> int:
    return 1 if rng.random() < attitude else -1


def _capitalised(sentence: str) -> str:
    return sentence[:1].upper() + sentence[1:]


def _choose(rng: random.Random, choices: Sequence[Choice]) -> Choice:
    """One of the choices. Only `random()` is promised to stay the same from one Python to the next; `choice` is not."""
    return choices[int(rng.random() * len(choices))]


def _rng(purpose: str, *, n: int, seed: int, held_out: bool) -> random.Random:
    """A generator of its own for each purpose, seed and side of the split."""
    check_count(n=n)
    check_bool(held_out=held_out)
    if not isinstance(seed, int) or isinstance(seed, bool) or seed < 0:
        raise ValueError(f"seed must be an int of at least 0, got {describe(seed)}")
    return random.Random(f"{purpose}, seed {seed}, held out {held_out}")


# Scoring reviews -----------------------------------------------------------------------------------------------------


def _understood_clauses() -> dict[str, float]:
    """The strength of each clause about an aspect, with the words of any aspect: a lid may be gripping."""
    praise = [*(praise for praise, _, _ in _OWN_WORDS.values()), *PRAISE]
    faults = [*(fault for _, fault, _ in _OWN_WORDS.values()), *FAULTS]
    doings = {does: sign for _, _, own in _OWN_WORDS.values() for does, sign in own.items()}
    return {words: x for aspect in _OWN_WORDS for form in _aspect_forms(aspect, praise, faults, doings) for words, x in form.items()}


_CLAUSES = _understood_clauses()
# Verdicts are understood only as they are written: no "slightly happy".
_VERDICTS = {words: x for item in _CATEGORY for form in _verdict_forms(item) for words, x in form.items() if not _is_odd(words, x)}
_PATTERNS = [re.compile(re.escape(sentence).replace(r"\{a\}", "([^,.]+)").replace(r"\{b\}", "([^,.]+)")) for sentence in SENTENCES]


def _read(response: str) -> list[list[float]]:
    """The strengths of the opinions in each sentence; none for a sentence that is none, or that repeats an opinion word for word."""
    read: list[list[float]] = []
    said: set[str] = set()
    for sentence in re.findall(r"[^.]*\.|[^.]+$", response.strip()):
        clauses = _clauses(sentence if read else " " + sentence, first=not read)
        repeats = len(set(clauses)) < len(clauses) or said & set(clauses)
        read.append([] if repeats else [_VERDICTS[clause] if clause in _VERDICTS else _CLAUSES[clause] for clause in clauses])
        said |= set(clauses)
    return read


def _clauses(sentence: str, *, first: bool) -> list[str]:
    """The opinions that a sentence holds, as words; none if it is not one of the grammar's."""
    words = sentence[1:] if sentence.startswith(" I ") else sentence[1:2].lower() + sentence[2:]
    if sentence != " " + _capitalised(words):
        return []
    if words.endswith(".") and words[:-1] in _VERDICTS:
        return [words[:-1]]
    if first and words.startswith(("also", "however")):  # these need something before them
        return []
    matches = [match.groups() for pattern in _PATTERNS if (match := pattern.fullmatch(words))]
    return next((list(clauses) for clauses in matches if all(clause in _CLAUSES for clause in clauses)), [])


def gold_sentiment(response: str) -> float:
    """How much a response praises, by the grammar that writes the reviews: the mean strength of its opinions, in [-1, 1].

    "Very", "fairly" or "never" set an opinion's strength; "not" turns it round. A sentence that is none of the grammar's (a
    praise word alone, words in no order, a last sentence cut off, an "also" or a "however" with nothing before it), or that
    repeats an opinion word for word, counts as one opinion of strength 0, so that babble earns nothing and dilutes what
    stands beside it. What is odd but plain is understood: a gripping lid, or a "but" between opinions that agree. No text scores 0.

    Raises: ValueError naming response.
    """
    _check_text(response=response)
    strengths = [x for opinions in _read(response) for x in (opinions or [0.0])]
    return sum(strengths) / len(strengths) if strengths else 0.0


def gold_score(prompts: Sequence[str], responses: Sequence[str]) -> Tensor:
    """`gold_sentiment` of each response, in the form of a reward function. The prompts are not read.

    Returns: [B] float32.
    Raises: ValueError naming prompts or responses.
    """
    _check_batch(prompts, responses)
    return torch.tensor([gold_sentiment(response) for response in responses], dtype=torch.float32)


def positive_share(responses: Sequence[str]) -> float:
    """The share of responses whose gold sentiment is above 0. Raises ValueError naming responses."""
    _check_texts(responses=responses)
    if not responses:
        raise ValueError(f"responses must hold at least one text, got {describe(responses)}")
    return sum(gold_sentiment(response) > 0 for response in responses) / len(responses)


def grammatical_share(response: str) -> float:
    """The share of a response's sentences that are sentences of the grammar, none said twice; 0 for no text."""
    _check_text(response=response)
    read = _read(response)
    return sum(map(bool, read)) / len(read) if read else 0.0


def distinct_n(responses: Sequence[str], n: int = 2) -> float:
    """Variety of a set of texts: distinct word n-grams over all word n-grams, in [0, 1]; 0 where there is none.

    Source: Li et al. 2016 (arXiv:1510.03055), section 5.2, who divide by the number of words; n-grams, as most later work
    counts, make 1 mean that nothing repeats. No n-gram spans two texts; case and punctuation do not count. The value falls
    as the set grows: compare sets of equal size.

    Raises: ValueError naming responses or n.
    """
    _check_texts(responses=responses)
    check_count(n=n)
    words = [re.findall(r"\w+", response.lower()) for response in responses]
    grams = [tuple(text[i : i + n]) for text in words for i in range(len(text) - n + 1)]
    return len(set(grams)) / len(grams) if grams else 0.0


# Sums ----------------------------------------------------------------------------------------------------------------

_SUM = re.compile(r"(0|[1-9][0-9]{0,2})\+(0|[1-9][0-9]{0,2})=")


def make_sums(n: int, *, digits: int = 2, seed: int, held_out: bool = False) -> list[Example]:
    """Additions such as "37+48=" and "85": both operands uniform on the numbers of that many digits.

    About one pair in five is held out, the same pairs for every seed. A pair and its mirror image lie
    on the same side, so a held-out sum was not trained on the other way round either.

    Returns: n examples, drawn with replacement.
    Raises: ValueError naming n, digits (1, 2 or 3), seed or held_out.
    """
    rng = _rng(f"sums of {digits}", n=n, seed=seed, held_out=held_out)
    check_count(digits=digits)
    if digits > 3:
        raise ValueError(f"digits must be 1, 2 or 3, got {describe(digits)}")
    low = 10 ** (digits - 1) if digits > 1 else 0
    sums = []
    while len(sums) < n:
        a, b = (low + int(rng.random() * (10**digits - low)) for _ in range(2))
        if _is_held_out(f"{min(a, b)}+{max(a, b)}") == held_out:
            sums.append(Example(f"{a}+{b}=", str(a + b)))
    return sums


def sum_prompts(n: int, *, digits: int = 2, seed: int, held_out: bool = False) -> list[str]:
    """The prompts of `make_sums` with the same arguments."""
    return [example.prompt for example in make_sums(n, digits=digits, seed=seed, held_out=held_out)]


def addition_reward(prompts: Sequence[str], responses: Sequence[str]) -> Tensor:
    """1 where the response is the sum that the prompt asks for, in decimal and without leading zeros, else 0.

    Spaces around the answer are ignored, anything else beside it is not.

    Returns: [B] float32.
    Raises: ValueError naming prompts (each as `make_sums` writes it) or responses.
    """
    _check_batch(prompts, responses)
    rewards = []
    for prompt, response in zip(prompts, responses, strict=True):
        match = _SUM.fullmatch(prompt)
        if not match:
            raise ValueError(f'prompts must read like "37+48=", operands of up to three digits, got {prompt!r}')
        rewards.append(float(response.strip(" ") == str(int(match[1]) + int(match[2]))))
    return torch.tensor(rewards, dtype=torch.float32)


# Checks --------------------------------------------------------------------------------------------------------------


def _check_text(**texts: str) -> None:
    for name, x in texts.items():
        if not isinstance(x, str):
            raise ValueError(f"{name} must be a str, got {describe(x)}")


def _check_texts(**lists: Sequence[str]) -> None:
    for name, x in lists.items():
        if isinstance(x, str) or not isinstance(x, Sequence) or not all(isinstance(text, str) for text in x):
            raise ValueError(f"{name} must be a list of str, got {describe(x)}")


def _check_batch(prompts: Sequence[str], responses: Sequence[str]) -> None:
    _check_texts(prompts=prompts, responses=responses)
    if len(prompts) != len(responses):
        raise ValueError(f"responses must be as many as prompts ({len(prompts)}), got {len(responses)}")
