"""Distinct n-grams against hand-computed values, exact fractions and reference packages."""

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.metrics.diversify.sample_texts import SAMPLES, TEXTS, package_module, real_prompts
from triptych.metrics.diversify.text_diversity import (
    DistinctNgrams,
    ExpectationAdjustedDistinct,
    NgramDiversity,
    expectation_adjusted_share,
)


def values(metric, *batches) -> dict[str, float]:
    for batch in batches:
        metric.update(*batch)
    return {name: value.item() for name, value in metric.compute().items()}


def test_distinct_n_by_hand():
    found = values(
        DistinctNgrams(sizes=[1, 2, 3]),
        ([["a b a", "a  b"], ["c"]],),  # words 2/5, pairs ab ba ab 2/3, triples 1/1
        ([["d d", "d"]],),  # 1/3, 1/1, none
    )
    assert found == pytest.approx(
        {
            "distinct_1": (2 / 5 + 1 + 1 / 3) / 3,
            "distinct_2": (2 / 3 + 0 + 1) / 3,
            "distinct_3": (1 + 0 + 0) / 3,
            "overall_distinct_1": 4 / 9,  # a b c d of 9 words
            "overall_distinct_2": 3 / 4,  # ab ba ab dd
            "overall_distinct_3": 1.0,
        },
        abs=1e-15,
    )


def test_words_by_the_rule_of_mteval():
    found = values(DistinctNgrams(sizes=[1], words="13a"), ([["no, no.", "3.5"]],))
    assert found["distinct_1"] == 4 / 5  # no , no . 3.5


@pytest.mark.parametrize("num_possible", [2, 26, 50257])
@pytest.mark.parametrize(("num_different", "num_ngrams"), [(1, 1), (3, 7), (20, 400)])
def test_adjusted_share_equals_exact_fractions(num_different, num_ngrams, num_possible):
    v = Fraction(num_possible)
    exact = num_different / (v * (1 - ((v - 1) / v) ** num_ngrams))
    found = expectation_adjusted_share(num_different, num_ngrams, num_possible)
    assert found == pytest.approx(float(exact), rel=1e-14)


def test_adjusted_share_keeps_its_digits_where_the_formula_has_none():
    # With V = 50257^5, 1 - ((V - 1) / V)^C is 0 in floating point. The share is then N / C.
    assert 1 - ((50257**5 - 1) / 50257**5) ** 100 == 0
    assert expectation_adjusted_share(60, 100, float(50257**5)) == pytest.approx(0.6, rel=1e-14)
    assert expectation_adjusted_share(0, 0, 10) == 0


def test_adjusted_distinct_by_hand():
    metric = ExpectationAdjustedDistinct(sizes=[1, 2], vocabulary_size=2)
    found = values(metric, ([["x y x", "y"]],))
    # Words: 2 of 4, V = 2: 2 / (2 (1 - 1/16)). Pairs: 2 of 2, V = 4: 2 / (4 (1 - 9/16)).
    assert found["ead_1"] == pytest.approx(16 / 15)
    assert found["ead_2"] == pytest.approx(8 / 7)
    assert found["ead"] == pytest.approx((16 / 15 + 8 / 7) / 2)
    stated = ExpectationAdjustedDistinct(sizes=[2], vocabulary_size={2: 3})
    assert values(stated, ([["x y x", "y"]],))["ead"] == pytest.approx(2 / (3 * (1 - 4 / 9)))


def rlfh_gen_div(texts: list[str]) -> float:
    """The repository's metric, from its description alone."""
    results = []
    for n in range(1, 6):
        found = []
        for text in texts:
            kept = "".join(c for c in text if c not in ".\n")
            words = [word for word in kept.split(" ") if word != ""]
            found += [" ".join(words[i : i + n]) for i in range(len(words) - n + 1)]
        if not found:
            results.append(0.0)
            continue
        results.append(len(set(found)) / (50257 * (1 - (50256 / 50257) ** len(found))))
    return np.mean(results)


def test_rlfh_gen_div_by_hand():
    metric = ExpectationAdjustedDistinct(compat="rlfh-gen-div", sizes=[1], vocabulary_size=9)
    found = values(metric, ([["a b. a", "b\na c\td"], ["."]],))
    # Texts become "a b a" and "ba c\td": the full stop and the line end leave no space, the tab is
    # no space. Words a b ba c\td, 4 of 5; pairs "a b" "b a" "ba c\td", 3 of 3; one triple; 0; 0.
    v = Fraction(50257)
    ead_1 = 4 / (v * (1 - ((v - 1) / v) ** 5))
    ead_2 = 3 / (v * (1 - ((v - 1) / v) ** 3))
    assert found["overall_ead_1"] == pytest.approx(float(ead_1), rel=1e-10)
    assert found["overall_ead"] == pytest.approx(float((ead_1 + ead_2 + 1) / 5), rel=1e-10)
    assert found["overall_ead"] == 0.560010346995575  # the original's last digits
    assert found["ead"] == 0.560010346995575 / 2  # "." has no words, which is 0, not undefined


def test_rlfh_gen_div_to_the_last_digit():
    found = values(ExpectationAdjustedDistinct(compat="rlfh-gen-div"), (SAMPLES,))
    assert found["overall_ead"] == rlfh_gen_div(TEXTS)
    assert found["ead"] == pytest.approx(np.mean([rlfh_gen_div(s) for s in SAMPLES]), rel=1e-15)
    for texts in SAMPLES:
        metric = ExpectationAdjustedDistinct(compat="rlfh-gen-div", overall=False)
        assert values(metric, ([texts],))["ead"] == rlfh_gen_div(texts)


def test_rlfh_gen_div_on_real_prompts(real_data):
    prompts = real_prompts(real_data, 200)
    metric = ExpectationAdjustedDistinct(compat="rlfh-gen-div")
    assert values(metric, ([prompts],))["overall_ead"] == rlfh_gen_div(prompts)


def test_ngram_diversity_by_hand():
    texts = ["a b a", "a b"]
    # Apart: words 2/5, pairs 2/3, triples 1/1. Joined "a b a a b": 2/5, ab ba aa ab 3/4, 3/3.
    apart = values(NgramDiversity(max_size=3), ([texts],))["ngram_diversity"]
    joined = values(NgramDiversity(max_size=3, compat="diversity"), ([texts],))["ngram_diversity"]
    assert apart == pytest.approx(2 / 5 + 2 / 3 + 1)
    assert joined == 2.15
    assert math.isnan(values(NgramDiversity(compat="diversity"), ([["a b c"]],))["ngram_diversity"])


@pytest.mark.parametrize("max_size", [1, 4, 6])
def test_ngram_diversity_equals_the_package(max_size: int):
    peer = package_module("diversity", "ngram_diversity").ngram_diversity_score
    for texts in [*SAMPLES[:2], *SAMPLES[3:], TEXTS]:
        found = values(NgramDiversity(max_size, compat="diversity"), ([texts],))
        assert found["ngram_diversity"] == peer(texts, max_size)
    found = values(NgramDiversity(max_size, compat="diversity"), (SAMPLES[::-1], range(6)[::-1]))
    assert found["overall_ngram_diversity"] == peer(TEXTS, max_size)


def test_ngram_diversity_recorded_from_the_package():
    found = values(NgramDiversity(compat="diversity"), (SAMPLES, range(6)))
    assert found["overall_ngram_diversity"] == 3.243  # diversity 0.3.1, also where it is absent


def test_ngram_diversity_equals_the_package_on_real_prompts(real_data):
    peer = package_module("diversity", "ngram_diversity").ngram_diversity_score
    prompts = real_prompts(real_data, 200)
    found = values(NgramDiversity(compat="diversity"), ([prompts],))
    assert found["overall_ngram_diversity"] == peer(prompts)


TEXT = st.lists(st.sampled_from(["a", "b", "ä.", "c\n", "\ud800", ""]), max_size=6).map(" ".join)
PROMPTS = st.lists(st.lists(TEXT, min_size=1, max_size=4), min_size=1, max_size=5)


@pytest.mark.parametrize(
    "make",
    [DistinctNgrams, ExpectationAdjustedDistinct, lambda: NgramDiversity(compat="diversity")],
    ids=["distinct", "ead", "diversity"],
)
@settings(max_examples=25, deadline=None)
@given(samples=PROMPTS, data=st.data())
def test_no_split_or_order_of_prompts_changes_a_digit(make, samples, data):
    whole = values(make(), (samples, range(len(samples))))
    order = data.draw(st.permutations(range(len(samples))))
    parts = [make(), make()]
    for number in order:
        part = parts[data.draw(st.integers(0, 1))]
        part.update([samples[number]], [number])
    parts[0].merge_state(parts[1])
    merged = {name: value.item() for name, value in parts[0].compute().items()}
    assert merged == pytest.approx(whole, abs=0, rel=0, nan_ok=True)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: DistinctNgrams(sizes=[]), "at least one size"),
        (lambda: DistinctNgrams(sizes=[0]), "each positive"),
        (lambda: DistinctNgrams(words="letters"), "take one of whitespace, 13a"),
        (lambda: ExpectationAdjustedDistinct(vocabulary_size=1), "above 1"),
        (lambda: ExpectationAdjustedDistinct(vocabulary_size={1: 10}), "no possible 2-grams"),
        (lambda: ExpectationAdjustedDistinct(compat="diversity"), "rlfh-gen-div"),
        (lambda: NgramDiversity(compat="yes"), "null or diversity"),
        (lambda: DistinctNgrams().update(["a", "b"]), "put it into a list"),
        (lambda: DistinctNgrams().update([["a"], []]), "prompt 1 has no samples"),
        (lambda: DistinctNgrams().update([["a"]], [1, 2]), "2 positions for 1 prompts"),
    ],
)
def test_mistakes_are_explained(make, message):
    with pytest.raises(ValueError, match=message):
        make()
