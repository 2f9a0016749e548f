"""Augmentations of chunks."""

import random
from collections import Counter

import pytest

from triptych.datamodules.batches.chunks import sentences
from triptych.datamodules.remember.rewriting import RewriterConfig, rewritten
from triptych.datamodules.remember.text.augmentations import (
    Augmentations,
    AugmentationsConfig,
    Chunk,
    from_templates,
)

CHUNK = Chunk("a", "One is odd. Two is even. Three is odd. Four is even.", "Numbers")


def texts(tmp_path, chunks=(CHUNK,), seed=0, **settings):
    return Augmentations(AugmentationsConfig(**settings), chunks, tmp_path, seed)


def test_templates_keep_every_sentence_and_lead_with_the_title(tmp_path):
    found = texts(tmp_path, num_augmentations=12).texts(0, 0)
    assert len(set(found)) == len(found) == 12
    assert CHUNK.text not in found
    for text in found:
        lead, colon, rest = text.rpartition(": ")
        assert "Numbers" in lead if colon else not lead
        assert Counter(sentences(rest)) == Counter(sentences(CHUNK.text))
    assert any(text.endswith(CHUNK.text) for text in found)
    assert any(not text.endswith(CHUNK.text) for text in found)


def test_without_a_title_and_with_one_sentence_there_are_only_leads(tmp_path):
    chunk = Chunk("a", "One is odd.")
    found = texts(tmp_path, [chunk], num_augmentations=20).texts(0, 0)
    assert 1 <= len(found) <= 4
    assert all(text.endswith(": One is odd.") for text in found)
    titled = from_templates(Chunk("a", "One.", "A {title} of {braces}"), 9, random.Random(0))
    assert "According to A {title} of {braces}: One." in titled


def test_draws_depend_on_seed_pass_and_index_alone(tmp_path):
    some = texts(tmp_path, [CHUNK, CHUNK])
    again = texts(tmp_path, [CHUNK, CHUNK])
    backwards = [again.texts(index, number) for index, number in [(1, 1), (0, 1), (1, 0), (0, 0)]]
    forwards = [some.texts(index, number) for index, number in [(0, 0), (1, 0), (0, 1), (1, 1)]]
    assert forwards == backwards[::-1]
    assert len({tuple(found) for found in forwards}) == 4
    assert texts(tmp_path, [CHUNK, CHUNK], seed=1).texts(0, 0) != forwards[0]


def test_rows_bring_their_own(tmp_path):
    chunk = Chunk("a", "x", augmentations=("p", "q", "r"))
    found = texts(tmp_path, [chunk], source="rows")
    assert found.texts(0, 0) == ["p", "q", "r"]
    few = texts(tmp_path, [chunk], source="rows", num_augmentations=2)
    drawn = [tuple(few.texts(0, number)) for number in range(12)]
    assert all(len(set(two)) == 2 and set(two) < {"p", "q", "r"} for two in drawn)
    assert len({frozenset(two) for two in drawn}) == 3


def test_a_model_writes_some(tmp_path, monkeypatch):
    def write(asked):
        return [[f"{text} again", "", f"{text} again ", f"{text} twice"] for text in asked]

    monkeypatch.setattr(
        "triptych.datamodules.remember.text.augmentations.rewritten",
        lambda asked, config, folder: rewritten(asked, config, folder, lambda _: write),
    )
    model = RewriterConfig("a/model")
    found = texts(tmp_path, [Chunk("a", "x"), Chunk("b", "y")], source="model", model=model)
    assert found.texts(1, 0) == ["y again", "y twice"]


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"source": "model"}, r"source is 'model', but augmentations\.model is null"),
        ({"model": RewriterConfig("x")}, r"source is 'templates', but augmentations\.model is set"),
    ],
)
def test_bad_settings_are_refused(settings, complaint):
    with pytest.raises(ValueError, match=complaint):
        AugmentationsConfig(**settings)
