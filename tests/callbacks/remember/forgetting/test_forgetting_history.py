"""The history: changes against the first measurement, the matrix R, the words of the table."""

import json
import math

import pytest

from triptych.callbacks.remember.forgetting.forgetting_history import ForgettingHistory
from triptych.callbacks.remember.forgetting.forgetting_report import (
    table_rows,
    transfers,
    write_report,
)
from triptych.callbacks.remember.probes.fact_recall import FactRecall
from triptych.callbacks.remember.probes.text_perplexity import TextPerplexity


def test_changes_are_against_the_first_measurement():
    history = ForgettingHistory()
    for step, value in ((0, 0.5), (2, 0.75), (4, 0.25)):
        history.add(step, None, "old", {"exact_match": value, "f1": 1.0})
    history.add(4, None, "text", {"exact_match": 9.0})
    assert [row["change"] for row in history.of("old", "exact_match")] == [0.0, 0.25, -0.25]
    assert (history.first("old", "exact_match"), history.last("old", "exact_match")) == (0.5, 0.25)
    assert history.first("old", "accuracy") is history.last("none", "f1") is None
    assert history.rows[0] == {
        "step": 0,
        "visit": None,
        "probe": "old",
        "metric": "exact_match",
        "value": 0.5,
        "change": 0.0,
    }
    assert history.has(4, None)
    assert not history.has(2, None)
    assert not history.has(4, 1)
    assert not ForgettingHistory().has(0, None)


GROUPS = {"visits_1_to_2_exact_match": 2, "visits_3_to_3_exact_match": 3}


def recall() -> FactRecall:
    probe = FactRecall(first_visits=2, visits_per_group=2)
    probe.groups = GROUPS
    return probe


def of_a_stream() -> ForgettingHistory:
    """Three visits in two groups, measured in the middle of the second visit as well."""
    history = ForgettingHistory()
    for step, visit, first, second in [
        (0, 0, 0.0, 0.125),
        (3, 2, 0.5, 0.25),  # the second visit has only begun
        (4, 2, 1.0, 0.375),
        (6, 3, 0.75, 0.875),
    ]:
        values = dict(zip(GROUPS, (first, second), strict=True))
        history.add(step, visit, "new", {"exact_match": first, **values})
    return history


def test_the_matrix_has_a_row_for_the_end_of_each_group():
    scores, start = of_a_stream().retention("new", GROUPS)
    assert scores == [[1.0, 0.375], [0.75, 0.875]]
    assert start == [0.0, 0.125]
    assert transfers(of_a_stream(), {"new": recall()})["new"] == {
        "backward_transfer": pytest.approx(-0.25),
        "forward_transfer": pytest.approx(0.375 - 0.125),
        "forgetting": pytest.approx(0.125),
    }


def test_there_is_no_matrix_where_a_group_was_not_measured_in_time():
    history = of_a_stream()
    history.rows = [row for row in history.rows if row["visit"] != 2]
    assert history.retention("new", GROUPS) is None
    assert history.retention("new", {}) is None
    assert transfers(history, {"new": recall(), "text": TextPerplexity()}) == {}


def test_the_table_tells_what_was_learned_and_forgotten():
    history = of_a_stream()
    history.add(0, 0, "text", {"nll_nats_per_token": 4.0})
    history.add(6, 3, "text", {"nll_nats_per_token": 4.1})
    probes = {"text": TextPerplexity(), "new": recall()}
    told = table_rows(history, probes, transfers(history, probes), "at step 6: all of it")
    assert told == [
        ("learned: new, exact match", "0 to 0.75 (+75.0 points)"),
        ("learned: new, first 2 visits exact match", "not measured"),
        ("forgotten: text, nll nats/token", "4 to 4.1 (+2.50%)"),
        ("new: backward transfer", "-0.25"),
        ("new: forward transfer", "+0.25"),
        ("new: forgetting", "+0.125"),
        ("forgetting budget spent", "at step 6: all of it"),
    ]


def test_json_has_no_nan(tmp_path):
    history = ForgettingHistory()
    history.add(1, None, "text", {"nll_nats_per_token": math.nan})
    history.add(2, None, "text", {"nll_nats_per_token": math.inf})
    write_report(tmp_path / "f.json", history, {"text": TextPerplexity()}, {}, None)
    content = json.loads((tmp_path / "f.json").read_text(), parse_constant=pytest.fail)
    assert [(row["value"], row["change"]) for row in content["rows"]] == [(None, 0.0), (None, None)]
    assert content["probes"]["text"]["role"] == "retained"
    assert content["stopped"] is None
