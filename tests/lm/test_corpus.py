"""The two corpora: what the grammar writes, how its scorer reads it (by a table made by hand and by a second reader), sums."""

import re
import zlib
from itertools import combinations
from statistics import mean

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ppo_edu.lm import corpus
from ppo_edu.lm.corpus import (
    Example,
    addition_reward,
    distinct_n,
    gold_score,
    gold_sentiment,
    grammatical_share,
    make_reviews,
    make_sums,
    positive_share,
    review_prompts,
    review_responses,
    sum_prompts,
)

seeds = st.integers(0, 10**6)
REVIEWS = make_reviews(2000, seed=0)

# --- the scorer, by hand

SCORES = {
    # degrees
    " The lid is sturdy.": 0.6,
    " The lid is fairly sturdy.": 0.4,
    " The lid is very sturdy.": 0.8,
    " The lid is extremely sturdy.": 1.0,
    " The lid is extremely loose.": -1.0,
    " The zip is slightly stiff.": -0.2,
    " I find the story really gripping.": 0.8,
    # feelings and what things do
    " I do not like the cover.": -0.6,
    " I dislike the pocket.": -0.7,
    " The battery always fails.": -0.8,
    " The zip often works.": 0.5,
    # negation
    " The lid is not sturdy.": -0.5,
    " The menu is not ugly.": 0.5,
    # connectives and several sentences
    " The lid is very sturdy, but the handle is not comfortable. I would recommend it to anyone.": (0.8 - 0.5 + 0.8) / 3,
    " Although I hate the cover, I love the story.": 0.0,
    " I love the screen, and the battery is reliable.": 0.8,
    " The fabric is soft. Also, the pocket is roomy.": 0.6,
    " The fabric is soft. However, I dislike the pocket.": (0.6 - 0.7) / 2,
    # verdicts
    " I would not recommend it to my sister.": -0.8,
    " Overall, I am very happy with it.": 0.8,
    " Overall, I am not disappointed with it.": 0.5,
    " I regret buying this tent.": -0.8,
    " I do not regret buying this tent.": 0.5,
    " It is not worth the price.": -0.6,
    " I would never buy it again.": -1.0,
    # odd, but plain
    " The lid is slightly sturdy.": 0.2,
    " I find the lid not sturdy.": -0.5,
    " The lid is extremely gripping.": 1.0,
    " The cover often leaks.": -0.5,
    " The lid is sturdy, and the lid is good.": 0.6,
    " I love the lid, but the base is sturdy.": 0.8,
    " I love the lid, and the base is thin.": 0.2,
    " Although I love the lid, I like the base.": 0.8,
    " I love the lid. However, I like the base.": 0.8,
    " I love this kettle. I hate the cover, and I hate this tent. I hate the zip.": 0.0,  # the second is no sentence
}


@pytest.mark.parametrize(("response", "score"), SCORES.items())
def test_scores_worked_out_by_hand(response, score):
    assert gold_sentiment(response) == pytest.approx(score)


def test_intensity_is_ordered():
    scores = [gold_sentiment(f" The lid is {degree}sturdy.") for degree in ("not ", "slightly ", "fairly ", "", "very ", "extremely ")]
    assert scores == sorted(scores)
    assert len(set(scores)) == len(scores)


BABBLE = [
    " I find the lid is good.",
    " great great great great.",
    " Sturdy sturdy sturdy.",
    " The lid is very very sturdy.",
    " The lid is not very sturdy.",
    " The lid is sturdy sturdy.",
    " The lid is delicious.",
    " The kettle is sturdy.",
    " The _ is sturdy.",
    " The lid sturdy is.",
    " The lid works.",
    " The lid never leaks.",
    " I love.",
    " I love the lid",  # cut off
    " the lid is sturdy.",
    " I Love the lid.",
    " i love the lid.",
    " I love the lid!",
    " I love  the lid.",
    " I love the lid, I love the base.",
    " I love the lid, and I love the base, and I love the handle.",
    " I love the lid, and I love the lid.",
    " I love the lid, and the base is very.",
    " Also, I love the lid.",  # nothing before it
    " However, I hate the lid.",
    ".",
    "...",
    " I love this lid.",
    " I love this kettle, and I love the lid.",
    " Overall, I am slightly happy with it.",
]


@pytest.mark.parametrize("response", BABBLE)
def test_babble_earns_nothing(response):
    assert gold_sentiment(response) == 0.0
    assert grammatical_share(response) == 0.0


@pytest.mark.parametrize("response", ["", " ", "\n"])
def test_no_text_scores_zero(response):
    assert gold_sentiment(response) == grammatical_share(response) == 0.0


@pytest.mark.parametrize(
    ("added", "score", "share"),
    [
        (" I love the lid.", 0.5, 0.5),  # said before
        (" I love the lid. I love the lid.", 1 / 3, 1 / 3),
        (" The base is good, and I love the lid.", 0.5, 0.5),
        (" The base is good, and I love the lid. The base is good.", 1 / 3, 1 / 3),
        (" Great great.", 0.5, 0.5),
        (" The base is", 0.5, 0.5),
        ("I love the base.", 0.5, 0.5),  # no space between the sentences
        (" Also, I love this kettle.", 0.5, 0.5),
        (" I love this kettle. I love this kettle.", 2 / 3, 2 / 3),
        (" I love the base.", 1.0, 1.0),
        (" Also, I love the base.", 1.0, 1.0),
        (" However, I love the base.", 1.0, 1.0),
        (" I love this kettle. I love the base.", 1.0, 1.0),
    ],
)
def test_a_sentence_that_does_not_fit_dilutes_a_good_one(added, score, share):
    response = " I love the lid." + added
    assert gold_sentiment(response) == pytest.approx(score)
    assert grammatical_share(response) == pytest.approx(share)


def test_a_response_may_come_without_its_first_space():
    assert gold_sentiment("I love the lid. I like the base. ") == pytest.approx(0.8)


# --- what the grammar writes


GOOD = re.findall(
    r"\w+",
    """
    sturdy comfortable shiny soft neat roomy sharp reliable clear handy gripping clever beautiful good nice lovely happy
    fits works lasts moves love like recommend worth buy
""",
)
BAD = re.findall(
    r"\w+",
    """
    loose slippery wobbly dull stiff thin tiny dim weak confusing boring rushed clumsy bad poor ugly disappointed
    leaks sticks fails drags dislike hate regret
""",
)
SET_BY = {"slightly": 0.2, "fairly": 0.4, "often": 0.5, "really": 0.8, "very": 0.8, "always": 0.8, "extremely": 1.0, "never": 1.0}
FIRM = {"love": 1.0, "hate": 1.0, "dislike": 0.7, "recommend": 0.8, "buy": 0.8, "regret": 0.8}


def second_reader(response):
    """The strength of each opinion, from word lists typed for this test: one judging word a clause, turned by each negation."""
    strengths = []
    for clause in re.split(r"\.|, (?:and|but)|(?<=[a-z]), (?=the|I)", re.sub(r"Also, |However, |Overall, ", "", response)):
        words = clause.split()
        judging = [word for word in words if word in GOOD + BAD]
        assert len(judging) == bool(words), clause
        if words:
            size = next((SET_BY[word] for word in words if word in SET_BY), FIRM.get(judging[0], 0.6))
            if "not" in words and judging[0] not in ("like", "recommend", "worth"):
                size = 0.5
            sign = 1 if judging[0] in GOOD else -1
            strengths.append(size * sign * (-1) ** sum(word in ("not", "never") for word in words))
    return strengths


@given(seed=seeds)
def test_every_review_is_grammatical_and_means_what_a_second_reader_reads(seed):
    for example in make_reviews(5, seed=seed):
        assert grammatical_share(example.response) == 1.0
        assert re.fullmatch(r"(My|I) [^.]+\.", example.prompt)
        assert example.text == example.prompt + example.response
        assert gold_sentiment(example.response) == pytest.approx(mean(second_reader(example.response)))


def test_each_clause_has_the_sign_it_was_chosen_for_and_the_strength_that_a_second_reader_reads():
    count = 0
    for forms in [*corpus._ASPECT_FORMS.values(), *corpus._VERDICT_FORMS.values()]:
        for sign in (1, -1):
            for clause in (clause for form in forms[sign] for clause in form):
                sentence = f" {clause[0].upper()}{clause[1:]}."
                (strength,) = second_reader(sentence)
                assert gold_sentiment(sentence) == pytest.approx(strength), sentence
                assert strength * sign > 0, sentence
                assert not re.search("not (very|fairly|really|extremely)|I find .* not|slightly (happy|sturdy|good)", clause), clause
                count += 1
    assert count > 1000


def test_any_adjective_is_understood_of_any_aspect():
    adjectives = GOOD[: GOOD.index("happy")] + BAD[: BAD.index("disappointed")]
    aspects = [aspect for aspects in corpus.ASPECTS.values() for aspect in aspects]
    assert len(adjectives) == 32
    assert len(set(aspects)) == len(aspects) == 16
    for aspect in aspects:
        for adjective in adjectives:
            for degree in ("", "slightly ", "fairly ", "really ", "very ", "extremely ", "not "):
                for sentence in (f" The {aspect} is {degree}{adjective}.", f" I find the {aspect} {degree}{adjective}."):
                    assert gold_sentiment(sentence) == pytest.approx(second_reader(sentence)[0]), sentence


def test_no_clause_has_two_strengths():
    own = [words for aspects in corpus.ASPECTS.values() for words in aspects.values()]
    praise = {*corpus.PRAISE, *(praise for praise, _, _ in own)}
    faults = {*corpus.FAULTS, *(fault for _, fault, _ in own)}
    assert not praise & faults
    doings = {pair for _, _, doings in own for pair in doings.items()}
    assert len(dict(doings)) == len(doings)
    assert not corpus._CLAUSES.keys() & corpus._VERDICTS.keys()
    strengths = {}
    for item in [item for items in corpus.PRODUCTS.values() for item in items]:
        for words, strength in (pair for form in corpus._verdict_forms(item) for pair in form.items()):
            assert strengths.setdefault(words, strength) == strength, words


@pytest.mark.parametrize(
    ("pattern", "agree"),
    [(r" [^.]*, and [^.]*\.", True), (r" [^.]*, but [^.]*\.", False), (r" Although [^.]*\.", False)],
)
def test_connectives_mean_what_they_say(pattern, agree):
    found = [sentence for example in REVIEWS for sentence in re.findall(pattern, example.response)]
    assert len(found) > 50
    for sentence in found:
        first, second = second_reader(sentence)
        assert (first * second > 0) == agree, sentence


def test_also_goes_on_and_however_turns():
    for word, agree in (("Also", True), ("However", False)):
        found = [example.response.split(f" {word},") for example in REVIEWS if f" {word}," in example.response]
        assert len(found) > 50
        assert all((second_reader(before)[-1] * second_reader(after)[0] > 0) == agree for before, after in found)


def test_length_and_vocabulary():
    lengths = [len(re.findall(r"\w+|[^\w\s]", example.response)) for example in REVIEWS]
    assert min(lengths) == 10
    assert max(lengths) == 25
    assert all(5 <= len(example.prompt.split()) <= 9 for example in REVIEWS)
    assert all(example.response.startswith(" ") and example.response.endswith(".") for example in REVIEWS)
    words = {word.lower() for example in REVIEWS for word in re.findall(r"\w+", example.text)}
    assert len(words) == 143


def test_sentiment_is_balanced_and_opinions_share_an_attitude():
    scores = [gold_sentiment(example.response) for example in REVIEWS]
    assert positive_share([example.response for example in REVIEWS]) == pytest.approx(0.49, abs=0.03)
    assert sum(score < 0 for score in scores) / len(scores) == pytest.approx(0.49, abs=0.03)
    assert sum(abs(score) < 0.3 for score in scores) / len(scores) > 0.12  # mixed ones
    pairs = [pair for example in REVIEWS for pair in combinations(second_reader(example.response), 2)]
    agreeing = sum(a * b > 0 for a, b in pairs) / len(pairs)
    assert agreeing == pytest.approx(0.5 * (0.03**2 + 0.97**2 + 0.15**2 + 0.85**2), abs=0.02)


def test_products_have_their_own_aspects():
    of_tents = " ".join(example.response for example in REVIEWS if "this tent" in example.prompt)
    assert "zip" in of_tents
    assert not re.search(r"lid|screen|story|gripping|shiny|leaks", of_tents)
    for item in ("tent", "novel", "kettle", "camera"):
        named = [set(re.findall(r"this (\w+)", example.text)) for example in REVIEWS if f"this {item} " in example.prompt]
        assert len(named) > 50
        assert all(names == {item} for names in named)


# --- prompts and reproducibility


def test_training_and_held_out_prompts_are_disjoint_and_the_same_for_every_seed():
    training, held_out = ({frozenset(review_prompts(3000, seed=seed, held_out=side)) for seed in range(3)} for side in (False, True))
    assert len(training) == len(held_out) == 1
    (training,), (held_out,) = training, held_out
    assert not training & held_out
    assert len(training | held_out) == 16 * 76
    assert len(held_out) / len(training | held_out) == pytest.approx(0.2, abs=0.02)
    assert {prompt.split("this ")[1].split()[0].rstrip(".") for prompt in held_out} == {
        prompt.split("this ")[1].split()[0].rstrip(".") for prompt in training
    }


def test_no_prompt_repeats_before_all_were_used():
    everything = review_prompts(4000, seed=5, held_out=True)
    distinct = len(set(everything))
    assert len(set(everything[:distinct])) == distinct
    assert everything[:distinct] != everything[distinct : 2 * distinct]
    assert review_prompts(100, seed=5, held_out=True) == everything[:100]


@pytest.mark.parametrize("held_out", [False, True])
def test_same_arguments_same_reviews(held_out):
    reviews = make_reviews(50, seed=3, held_out=held_out)
    assert reviews == make_reviews(50, seed=3, held_out=held_out)
    assert reviews != make_reviews(50, seed=4, held_out=held_out)
    assert [example.prompt for example in reviews] == review_prompts(50, seed=3, held_out=held_out)
    assert make_sums(50, seed=3, held_out=held_out) == make_sums(50, seed=3, held_out=held_out)
    assert make_sums(50, seed=3, held_out=held_out) != make_sums(50, seed=4, held_out=held_out)


def test_the_first_review_is_the_same_on_every_machine():
    assert make_reviews(1, seed=0) == [
        Example(
            "I bought this saucepan at the market.",
            " I hate the handle. Overall, I am slightly disappointed with it.",
        )
    ]
    assert review_responses(["I bought this saucepan at the market."], seed=0) == [
        " I love the handle. However, the finish is really ugly. I like this saucepan."
    ]
    assert sum_prompts(4, seed=0) == ["69+62=", "99+74=", "86+16=", "39+66="]


def test_the_reviews_stay_as_they_are():
    """Chapters, budgets and thresholds are tuned on them: whoever changes one word measures those again."""
    reviews = make_reviews(200, seed=0)
    assert zlib.crc32("".join(example.text for example in reviews).encode()) == 2951735868
    assert mean(gold_sentiment(example.response) for example in reviews) == pytest.approx(0.0441666667)


# --- responses to given prompts


@pytest.mark.parametrize("held_out", [False, True])
def test_responses_fit_their_prompts(held_out):
    prompts = review_prompts(400, seed=2, held_out=held_out)
    responses = review_responses(prompts, seed=7)
    assert len(responses) == len(prompts)
    assert positive_share(responses) == pytest.approx(0.49, abs=0.08)
    for prompt, response in zip(prompts, responses, strict=True):
        assert response.startswith(" ")
        assert grammatical_share(response) == 1.0
        item = prompt.split("this ")[1].split()[0].rstrip(".")
        assert set(re.findall(r"this (\w+)", response)) <= {item}
        (category,) = (category for category, items in corpus.PRODUCTS.items() if item in items)
        for name in set(re.findall(r"[Tt]he (\w+)", response)) - {"price"}:
            assert name in corpus.ASPECTS[category], (prompt, response)


def test_another_seed_writes_other_responses_to_the_same_prompts():
    prompts = review_prompts(50, seed=3)
    responses = review_responses(prompts, seed=0)
    assert responses == review_responses(tuple(prompts), seed=0)
    for others in (review_responses(prompts, seed=1), [example.response for example in make_reviews(50, seed=3)]):
        assert sum(a == b for a, b in zip(responses, others, strict=True)) < 5
    assert len(set(review_responses(prompts[:1] * 50, seed=0))) > 40


@pytest.mark.parametrize(
    ("prompts", "message"),
    [
        ([], "prompts must hold at least one opening"),
        ("I bought this tent yesterday.", "prompts must be a list of str"),
        ([3], "prompts must be a list of str"),
        (None, "prompts must be a list of str"),
        (["I bought this tent yesterday.", "I bought this tent"], "prompts must be openings that .* 'I bought this tent'"),
        (["I bought this tent yesterday. "], "prompts must be openings"),
        (["I bought this lid yesterday."], "prompts must be openings"),
        ([""], "prompts must be openings"),
    ],
)
def test_prompts_that_no_review_has_are_named(prompts, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        review_responses(prompts, seed=0)


@pytest.mark.parametrize("seed", [-1, 1.0, None, True])
def test_a_bad_seed_of_responses_is_named(seed):
    with pytest.raises(ValueError, match=r"^seed must be"):
        review_responses(["I bought this tent yesterday."], seed=seed)


# --- scores of batches


def test_gold_score_has_the_form_of_a_reward_function():
    responses = [" I love the lid.", " I hate the lid.", ""]
    scores = gold_score(["I bought this kettle yesterday."] * 3, responses)
    assert scores.dtype == torch.float32
    assert torch.equal(scores, torch.tensor([1.0, -1.0, 0.0]))
    assert positive_share(responses) == pytest.approx(1 / 3)


@pytest.mark.parametrize(
    ("responses", "n", "value"),
    [
        (["a b a b"], 2, 2 / 3),  # ab ba ab
        (["a b", "a b"], 2, 1 / 2),
        (["a b", "b a"], 2, 1.0),  # none spans two texts
        (["The lid. the LID"], 1, 1 / 2),
        (["great great great great"], 2, 1 / 3),
        (["a b c", "a b d"], 3, 1.0),
        (["a"], 2, 0.0),
        ([""], 1, 0.0),
        ([], 2, 0.0),
    ],
)
def test_distinct_n_by_hand(responses, n, value):
    assert distinct_n(responses, n) == pytest.approx(value)


def test_distinct_2_is_the_default():
    assert distinct_n(["a b a b"]) == distinct_n(["a b a b"], 2)


# --- sums


@pytest.mark.parametrize("digits", [1, 2, 3])
@pytest.mark.parametrize("held_out", [False, True])
def test_sums_are_right(digits, held_out):
    largest = 0
    for example in make_sums(500, digits=digits, seed=1, held_out=held_out):
        a, b = re.fullmatch(r"(\d+)\+(\d+)=", example.prompt).groups()
        assert a == str(int(a))
        assert b == str(int(b))
        assert len(a) == len(b) == digits
        assert example.response == str(int(a) + int(b))
        largest = max(largest, int(a), int(b))
    assert largest > 0.9 * (10**digits - 1)
    prompts = [example.prompt for example in make_sums(500, digits=digits, seed=1, held_out=held_out)]
    assert prompts == sum_prompts(500, digits=digits, seed=1, held_out=held_out)


def test_two_digits_are_the_default():
    assert make_sums(20, seed=0) == make_sums(20, digits=2, seed=0)


def unordered_pairs(prompts):
    return {tuple(sorted(int(x) for x in prompt[:-1].split("+"))) for prompt in prompts}


def test_held_out_sums_are_never_trained_on_even_turned_round():
    training, held_out = (
        unordered_pairs(prompt for seed in range(4) for prompt in sum_prompts(10_000, seed=seed, held_out=side)) for side in (False, True)
    )
    assert not training & held_out
    assert len(training | held_out) > 0.98 * 90 * 91 / 2
    assert len(held_out) / len(training | held_out) == pytest.approx(0.2, abs=0.02)
    small_training, small_held_out = (unordered_pairs(sum_prompts(2000, digits=1, seed=9, held_out=side)) for side in (False, True))
    assert not small_training & small_held_out
    assert len(small_training | small_held_out) == 10 * 11 / 2
    assert len(small_held_out) >= 5


def test_operands_are_uniform():
    a = torch.tensor([float(prompt.split("+")[0]) for prompt in sum_prompts(10_000, digits=3, seed=0)])
    counts = torch.histc(a, bins=9, min=100, max=1000)
    assert counts.sum() == 10_000
    assert counts.min() > 1000
    assert counts.max() < 1220


@pytest.mark.parametrize(
    ("prompt", "response", "reward"),
    [
        ("37+48=", "85", 1.0),
        ("37+48=", " 85 ", 1.0),
        ("37+48=", "085", 0.0),
        ("37+48=", "8 5", 0.0),
        ("37+48=", "", 0.0),
        ("37+48=", "86", 0.0),
        ("37+48=", "+85", 0.0),
        ("37+48=", "85.", 0.0),
        ("37+48=", "85\n", 0.0),
        ("37+48=", "８５", 0.0),  # other digits that int() would read
        ("999+999=", "1998", 1.0),
        ("0+0=", "0", 1.0),
        ("0+0=", "00", 0.0),
    ],
)
def test_reward_only_for_the_exact_sum(prompt, response, reward):
    rewards = addition_reward([prompt, "1+1="], [response, "2"])
    assert rewards.dtype == torch.float32
    assert rewards.tolist() == [reward, 1.0]


@given(seed=seeds, digits=st.integers(1, 3))
def test_every_generated_sum_earns_its_reward(seed, digits):
    sums = make_sums(20, digits=digits, seed=seed)
    assert addition_reward([example.prompt for example in sums], [example.response for example in sums]).eq(1).all()
    assert addition_reward([example.prompt for example in sums], [example.response + "0" for example in sums]).eq(0).all()


@pytest.mark.parametrize("prompt", ["", "37+48", "37 + 48=", "037+48=", "-1+2=", "1+2+3=", "1+1000=", "a+b=", " 1+2=", "٣+٤="])
def test_a_malformed_sum_is_named(prompt):
    with pytest.raises(ValueError, match=r"^prompts must read like"):
        addition_reward(["1+1=", prompt], ["2", "2"])


# --- bad arguments


@pytest.mark.parametrize("function", [make_reviews, review_prompts, make_sums, sum_prompts])
@pytest.mark.parametrize(
    ("name", "value"),
    [("n", 0), ("n", -1), ("n", 2.0), ("n", True), ("seed", -1), ("seed", 1.0), ("seed", None), ("seed", True), ("held_out", 1)],
)
def test_bad_arguments_of_the_generators_are_named(function, name, value):
    with pytest.raises(ValueError, match=f"^{name} must be"):
        function(**({"n": 5, "seed": 0} | {name: value}))


@pytest.mark.parametrize("digits", [0, 4, 2.0, True, "2"])
def test_bad_digits_are_named(digits):
    with pytest.raises(ValueError, match=r"^digits must be"):
        make_sums(5, digits=digits, seed=0)


@pytest.mark.parametrize("function", [gold_score, addition_reward])
@pytest.mark.parametrize(
    ("prompts", "responses", "name"),
    [
        ("1+1=", ["2"], "prompts"),
        (["1+1="], "2", "responses"),
        (["1+1="], [2], "responses"),
        ([None], ["2"], "prompts"),
        (["1+1="], ["2", "2"], "responses"),
    ],
)
def test_bad_batches_are_named(function, prompts, responses, name):
    with pytest.raises(ValueError, match=f"^{name} must be"):
        function(prompts, responses)


@pytest.mark.parametrize("function", [gold_sentiment, grammatical_share])
@pytest.mark.parametrize("response", [None, [" I love the lid."], 3])
def test_a_response_must_be_a_str(function, response):
    with pytest.raises(ValueError, match=r"^response must be a str"):
        function(response)


@pytest.mark.parametrize(
    ("call", "name"),
    [
        (lambda: positive_share([]), "responses"),
        (lambda: positive_share(" I love the lid."), "responses"),
        (lambda: distinct_n("a b"), "responses"),
        (lambda: distinct_n(["a b"], 0), "n"),
    ],
)
def test_bad_sets_are_named(call, name):
    with pytest.raises(ValueError, match=f"^{name} must"):
        call()
