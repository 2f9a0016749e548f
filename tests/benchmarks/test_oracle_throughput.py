"""The benchmark of throughput in small: both loops search and agree; a false score is told."""

import json
import math
from pathlib import Path

import pytest
import torch

from tests.models.diversify.molecules.tiny_molecules import tiny_rnn, tiny_tokenizer
from triptych.benchmarks import oracle_throughput
from triptych.benchmarks.oracle_throughput_sides import Job, Outcome, finished, prepared
from triptych.benchmarks.plain_reward import PlainReward, drugs_task
from triptych.benchmarks.report import Report
from triptych.datamodules.embedded.molecules import drugs


@pytest.fixture(scope="module")
def prior(tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("prior")
    tiny_rnn().save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return str(folder)


@pytest.fixture
def here(tmp_path_factory, monkeypatch):
    """Searches run in this process, one after another."""

    class Here:
        def prepare(self, job: Job) -> None:
            self.search = prepared(job, tmp_path_factory.mktemp("search"))

        def begin(self) -> None:
            self.found = finished(self.search)

        def outcome(self) -> Outcome:
            return self.found

        def close(self) -> None:
            pass

    monkeypatch.setattr(oracle_throughput, "Searcher", Here)


@pytest.mark.slow
def test_a_small_report_has_everything_and_its_sides_agree(here, prior, tmp_path):
    report = Report("oracle_throughput", {"type": "cpu"})
    oracle_throughput.compare(report, prior, num_calls=20, num_rounds=1)
    report.write(tmp_path / "report.json")
    stored = json.loads((tmp_path / "report.json").read_text())
    assert [row["name"] for row in stored["rows"]] == [
        "plain loop", "plain loop, two threads", "two paired runs",
        "a run with two scoring processes",
    ]  # fmt: skip
    for row in stored["rows"]:
        assert row["calls_per_s"] == pytest.approx(20 / row["median_s"])
        assert row["samples_per_call"] >= 1
    assert stored["checks"]["largest difference from a score of the plain loop"]["held"]
    assert stored["checks"]["calls that differ with parallel scoring"]["held"]
    assert len(stored["checks"]) == 5


def test_the_plain_reward_is_ours_to_the_last_bit():
    plain, ours = PlainReward(), drugs_task()
    ours.prepare()
    for smiles in [*list(drugs().values())[:25], "C", "OCC(O)C(O)C(O)CO"]:
        canonical = plain.canonical(smiles)
        assert plain(canonical) == ours.score(canonical).score
    assert plain(plain.canonical(drugs()["imatinib"])) > 0.5
    assert plain("OCC(O)C(O)C(O)CO") == 0  # five donors
    assert plain.canonical("C1CC") is None
    assert plain.canonical("") is None


def test_the_plain_loop_learns(prior):
    search = prepared(Job("plain", prior, seed=1, num_calls=10), Path())
    rows = search.sample()
    assert len(rows) == 64
    lengths = [len(row) for row in rows]
    assert max(lengths) <= 80
    assert all(search.end not in row[:-1] for row in rows)
    before = [parameter.clone() for parameter in search.agent.parameters()]
    search.update(rows, torch.tensor([1.0 / length for length in lengths]))
    assert any(
        not old.equal(new) for old, new in zip(before, search.agent.parameters(), strict=True)
    )


def test_calls_that_differ_are_counted():
    one = Outcome({"C": 0.1, "CC": 0.2}, 0.0, 0, 2)
    assert oracle_throughput.differing(one, Outcome(dict(one.scores), 1.0, 1, 3)) == 0
    assert oracle_throughput.differing(one, Outcome({"C": 0.1, "CC": 0.3}, 0.0, 0, 2)) == 1
    assert oracle_throughput.differing(one, Outcome({"C": 0.1}, 0.0, 0, 2)) == 1
    agreement = oracle_throughput.agreement(
        {
            "plain loop": [[Outcome({"C": math.pi}, 0.0, 0, 1)]],
            "two paired runs": [[one, one]],
            "a run with two scoring processes": [[one]],
        }
    )
    assert [check.held for check in agreement.values()] == [False, True]


@pytest.mark.parametrize(
    ("words", "match"),
    [
        (["--num-calls", "0"], "--num-calls is 0"),
        (["--device", "cuda"], "leave it out"),
        (["--prior", "nothing.yaml"], "no such file; give"),
    ],
)
def test_options_that_make_no_sense(words, match):
    with pytest.raises(ValueError, match=match):
        oracle_throughput.main(words)
