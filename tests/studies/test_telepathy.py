import json

import pytest

from tests.conftest import ROOT
from tests.studies.conftest import redrawn
from triptych.studies import telepathy


def numbers(thought, linear, nonlinear, single=0.66, shuffled=0.4):
    rest = dict.fromkeys(telepathy.CONDITIONS, 0.5)
    return rest | {
        "single": single,
        "text_1": 0.82,
        "text_full": 1.0,
        "thought": thought,
        "shuffled": shuffled,
        telepathy.LINEAR: linear,
        telepathy.NONLINEAR: nonlinear,
    }


def test_verdicts_are_means_over_seeds():
    # .985 is within .02 of full text as a mean, though one seed is not
    strict = [numbers(0.97, 0.9, 0.95), numbers(1.0, 0.9, 0.95)]
    masked = [numbers(0.96, 0.21, 0.23), numbers(0.95, 0.19, 0.225)]
    good = {telepathy.STRICT.label: strict, telepathy.MASKED.label: masked}
    assert all(check.held for check in telepathy.checks(good, 0.667).values())
    for way, bad in (
        (telepathy.STRICT, numbers(0.97, 0.9, 0.9)),
        (telepathy.STRICT, numbers(1.0, 0.9, 0.9, single=0.71)),
        (telepathy.STRICT, numbers(1.0, 0.9, 0.9, shuffled=0.68)),
        (telepathy.MASKED, numbers(0.94, 0.2, 0.2)),
        (telepathy.MASKED, numbers(1.0, 0.24, 0.2)),
        (telepathy.MASKED, numbers(1.0, 0.2, 0.24)),
    ):
        verdicts = telepathy.checks(good | {way.label: [bad]}, 0.667)
        assert [check.held for check in verdicts.values()].count(False) == 1


def test_every_way_has_a_name_of_its_own():
    labels = [way.label for way in telepathy.ways("full")]
    assert len(set(labels)) == len(labels)
    assert [way.label for way in telepathy.ways("cpu")] == ["strict, plain", "strict, masked"]
    assert {way.num_agents for way in telepathy.ways("full")} == {2, 3, 4, 5}


@pytest.mark.slow
@pytest.mark.usefixtures("warm_workers")
def test_the_study_runs_through(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("TRIPTYCH_CACHE", str(tmp_path / "cache"))
    out = tmp_path / "study"
    words = ["--preset", "smoke", "--workers", "1", "--out", str(out)]
    results = telepathy.main(words)
    assert json.loads((out / "results.json").read_text()) == results
    assert set(results["arms"]) == {"strict, plain", "strict, masked"}
    assert not results["held"]  # two steps teach nothing
    assert (out / "figure.png").stat().st_size > 1000
    assert redrawn("telepathy", out) == (out / "figure.png").read_bytes()
    # both codecs read the same agents, and every stage is there once
    stages = sorted(path.name.rpartition("-")[0] for path in (out / "smoke" / "runs").iterdir())
    assert stages == ["agents-3", "masked-3", "plain-3", "strict-masked", "strict-plain"]
