"""The choice of rows by hand, and settings that cannot work."""

import pytest
import torch

from triptych.objectives.remember.row_selection import RowSelection
from triptych.objectives.remember.slot_scores import TableStatistics


def lists(rows):
    assert all(table.dtype == torch.int64 for table in rows)
    return [table.tolist() for table in rows]


COUNTS = [torch.tensor([0, 6, 3, 1]), torch.tensor([2, 0, 9, 9, 0])]


def test_each_table_has_its_best_rows():
    assert lists(RowSelection(2, ranking="tf").select(COUNTS)) == [[1, 2], [2, 3]]


def test_a_step_is_scored_by_its_own_counts_alone():
    # Scores are written where those of the step before stood, also where tables are of one size.
    selection = RowSelection(1, ranking="tf")
    assert lists(selection.select([torch.tensor([0, 9, 1]), torch.tensor([4, 0, 3])])) == [[1], [0]]
    assert lists(selection.select([torch.tensor([1, 0, 0]), torch.tensor([0, 0, 2])])) == [[0], [2]]
    assert lists(selection.select([torch.tensor([0, 0, 1, 5])])) == [[3]]
    pooled = RowSelection(1, ranking="tf", scope="pooled")
    assert lists(pooled.select([torch.tensor([3, 1]), torch.tensor([0, 5])])) == [[], [1]]
    assert lists(pooled.select([torch.tensor([0, 5]), torch.tensor([1, 1])])) == [[1], []]


def test_rows_of_all_tables_compete():
    # Shares of reads: .6 .3 .1 and .1 .45 .45.
    pooled = RowSelection(3, ranking="tf", scope="pooled")
    assert lists(pooled.select(COUNTS)) == [[1], [2, 3]]
    assert lists(RowSelection(1, ranking="tf", scope="pooled").select(COUNTS)) == [[1], []]


def test_background_is_that_of_each_table():
    # The most read row is one that every document reads: its score is 0.
    background = [
        TableStatistics(torch.tensor([9, 9, 0, 0]), torch.tensor([9, 9, 0, 0]), 9),
        TableStatistics(torch.tensor([0, 0, 9, 0, 0]), torch.tensor([0, 0, 9, 0, 0]), 9),
    ]
    assert lists(RowSelection(1).select(COUNTS, background)) == [[2], [3]]
    assert lists(RowSelection(4).select(COUNTS, background)) == [[2, 3], [0, 3]]


def test_a_share_of_the_score():
    share = RowSelection(None, 0.85, ranking="tf")
    assert lists(share.select(COUNTS)) == [[1, 2], [2, 3]]
    assert lists(RowSelection(None, 0.55, ranking="tf").select(COUNTS)) == [[1], [2, 3]]
    everything = RowSelection(None, 1.0, ranking="all")
    assert lists(everything.select(COUNTS)) == [[1, 2, 3], [0, 2, 3]]
    assert not everything.needs_background


def test_nothing_was_read():
    nothing = [torch.zeros(4, dtype=torch.int64)]
    assert lists(RowSelection(2, ranking="tf").select(nothing)) == [[]]


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"num_slots": 5, "score_share": 0.5}, "give one of them and set the other to null"),
        ({"num_slots": None}, "give one of them and set the other to null"),
        ({"num_slots": 0}, "num_slots is 0: set it to at least 1"),
        ({"num_slots": None, "score_share": 1.5}, "score_share is 1.5: set it above 0"),
        ({"idf_exponent": 0.0}, "idf_exponent is 0.0: set it above 0"),
        ({"ranking": "all"}, "set score_share: 1 and num_slots: null"),
    ],
)
def test_settings_that_cannot_work(settings, words):
    with pytest.raises(ValueError, match=words):
        RowSelection(**settings)


def test_a_ranking_without_its_background():
    with pytest.raises(ValueError, match="tfidf needs background statistics"):
        RowSelection(2).select(COUNTS)
