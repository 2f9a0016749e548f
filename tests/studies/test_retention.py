"""The retention study: its arithmetic by hand, its arms by what they compose to."""

import json

import pytest
import yaml

from tests.conftest import ROOT
from tests.studies.conftest import redrawn
from triptych.datamodules.remember.facts.facts import FactsConfig, FactsPart
from triptych.studies import retention
from triptych.studies.remember.retention.retention_arms import (
    MOST_TUNED,
    World,
    learning,
    pretraining,
)
from triptych.studies.remember.retention.retention_ways import (
    BEFORE,
    EARLY,
    NEW,
    OLD_DROP,
    SPARSE_NAME,
    STATEMENT,
    SWEEPS,
    TEXT_RISE,
    TF_ONLY,
    numbers_of,
    ways_of,
)
from triptych.studies.retention import _learned_at


def row(step, probe, metric, value):
    return {"step": step, "visit": step // 10, "probe": probe, "metric": metric, "value": value}


def test_numbers_of_a_run_by_hand(tmp_path):
    rows = []
    for step, new, statement, old, nll, early in (
        (0, 0.05, 0.02, 0.98, 4.0, 0.0),
        (50, 0.5, 0.6, 0.97, 4.02, 0.9),
        (90, 0.75, 0.95, 0.96, 4.03, 0.7),
    ):
        rows += [
            row(step, "new_question", "exact_match", new),
            row(step, "new_question", "first_20_visits_exact_match", early),
            row(step, "new_statement", "exact_match", statement),
            row(step, "old", "exact_match", old),
            row(step, "text", "nll_nats_per_token", nll),
        ]
    (tmp_path / "forgetting.json").write_text(json.dumps({"rows": rows}))
    numbers = numbers_of(tmp_path)
    assert (numbers[NEW], numbers[STATEMENT], numbers[BEFORE]) == (0.75, 0.95, 0.05)
    assert numbers[OLD_DROP] == pytest.approx(2.0)
    assert numbers[TEXT_RISE] == pytest.approx(0.75)
    assert numbers[EARLY] == 0.7


def test_learning_at_equal_forgetting_by_hand():
    sweep = [
        {BEFORE: 0.1, NEW: 0.3, OLD_DROP: 2.0},
        {BEFORE: 0.1, NEW: 0.5, OLD_DROP: 10.0},
    ]
    assert _learned_at(-2.0, sweep) == pytest.approx(0.3)
    assert _learned_at(-1.0, sweep) == pytest.approx(0.2)  # half way from the untouched model
    assert _learned_at(-6.0, sweep) == pytest.approx(0.4)
    assert _learned_at(-20.0, sweep) == 0.5  # never forgot so much: the most it learned


def test_every_preset_has_the_arms_that_are_judged():
    for preset in ("cpu", "full"):
        names = [way.name for way in ways_of(preset)]
        assert len(set(names)) == len(names)
        judged = {SPARSE_NAME, TF_ONLY, *SWEEPS["full"], *SWEEPS["LoRA"]}
        assert judged <= set(names)
    assert len(SWEEPS["full"]) >= 4
    assert len(SWEEPS["LoRA"]) >= 4


def test_old_new_and_tuning_facts_are_apart():
    data = ROOT.parent / "shared" / "data"
    if not data.is_dir():
        pytest.skip("the real facts are not on this machine")

    def ids(settings):
        source = settings.pop("source")
        config = FactsConfig(source=FactsConfig().source.__class__(**source), **settings)
        return {fact.id for fact in FactsPart(config, str(data)).facts}

    report, tuning = (World(str(data), split, 1, 140) for split in ("report", "tuning"))
    old, tuned, reported = (
        ids(report.old_facts()),
        ids(tuning.new_facts(300)),
        ids(report.new_facts(240)),
    )
    assert len(ids(report.new_facts(300, novel_answers=True))) == 300
    assert (len(tuned), len(reported)) == (MOST_TUNED, 240)
    assert not old & tuned
    assert not old & reported
    assert not tuned & reported


def test_arms_are_files_that_run_as_they_are(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    world = World(None, "report", 20, 4)
    (sparse, *_) = ways_of("cpu")
    arm = learning(world, sparse, {1: tmp_path / "seed1" / "export"}, tmp_path)
    content = yaml.safe_load((tmp_path / arm.args[1]).read_text())
    assert content["trainer"]["callbacks+"][0]["class_path"].endswith("SparseMemoryFinetuning")
    twin = yaml.safe_load(
        (tmp_path / pretraining(world, "dense twin", tmp_path).args[1]).read_text()
    )
    assert twin["model"]["init_args"]["memory"]["dense_twin"] is True


@pytest.mark.parametrize("data_dir", [None, "shared"])
def test_every_way_of_full_is_a_configuration(data_dir, tmp_path, monkeypatch):
    """Each arm of each preset parses, with what it is held back by."""
    monkeypatch.chdir(ROOT)
    data = ROOT.parent / "shared" / "data"
    if data_dir is not None and not data.is_dir():
        pytest.skip("the real facts are not on this machine")
    world = World(data_dir and str(data), "report", 20, 4)
    held = {}
    for way in ways_of("full"):
        arm = learning(world, way, {1: tmp_path / "seed1" / "export"}, tmp_path)
        content = yaml.safe_load((tmp_path / arm.args[1]).read_text())
        if way.held_by is not None:
            callback, _ = content["trainer"]["callbacks+"]
            data_of = callback["init_args"]["data"]
            assert data_of["init_args"]["facts"]["num_facts"] == world.old_facts()["num_facts"]
            assert data_of["init_args"].get("data_dir") == world.data_dir
            held.setdefault(way.held_by, []).append(callback["class_path"].rsplit(".", 1)[1])
    assert held == {
        "replay": ["Replay"] * 4,
        "EWC": ["ElasticWeightConsolidation"] * 4,
        "KL to the base": ["KLToBase"] * 4,
    }


@pytest.mark.slow
@pytest.mark.usefixtures("warm_workers")
def test_smoke_preset_on_embedded_data(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    results = retention.main(["--preset", "smoke", "--out", str(tmp_path), "--workers", "1"])
    assert results["preset"] == "smoke"
    assert (tmp_path / "figure.png").stat().st_size > 10_000
    assert redrawn("retention", tmp_path) == (tmp_path / "figure.png").read_bytes()
    sparse = results["arms"][SPARSE_NAME]
    assert sparse[NEW]["interval"] is None
    assert set(results["checks"]) >= {"sparse: NEW in questions, median"}
