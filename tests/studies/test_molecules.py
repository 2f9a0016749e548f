"""The study of molecules: numbers of a search by hand, verdicts on made-up ones, a smoke run."""

import importlib
import json
import math

import numpy as np
import pytest

from tests.conftest import ROOT
from tests.models.diversify.molecules.tiny_molecules import tiny_rnn, tiny_tokenizer
from tests.studies.conftest import redrawn
from triptych.models.diversify.molecules.molecule import read_molecule
from triptych.studies import molecules
from triptych.studies.diversify.molecules import molecule_comparison as comparison
from triptych.studies.diversify.molecules.molecule_comparison import Paired, compare, gates
from triptych.studies.diversify.molecules.molecule_search import (
    Search,
    diversity,
    equal_calls,
    equal_number,
    equal_samples,
    read_search,
)
from triptych.studies.diversify.molecules.molecule_tasks import DRUGS, pocket_energy, tasks

ETHANOL, INDOLE = "CCO", "Cc1c(CCN)c2cc(Cl)ccc2n1C"
CELECOXIB = "Cc1ccc(-c2cc(C(F)(F)F)nn2-c2ccc(S(N)(=O)=O)cc2)cc1"


def search(is_hit: str, calls=(2, 4, 5), samples=(3, 6, 9)) -> Search:
    """Hits and misses of calls, such as "+-+"."""
    smiles = ["C" * (n + 1) for n in range(len(is_hit))]
    return Search(smiles, np.array([c == "+" for c in is_hit]), np.array(calls), np.array(samples))


# -- one search, and two ---------------------------------------------------------------------------


def test_numbers_of_a_search():
    one = search("-+-++")
    assert (one.num_calls, one.num_samples) == (5, 9)
    assert one.hits == ["CC", "CCCC", "CCCCC"]
    assert [one.found(), one.found(4), one.found(1)] == [3, 2, 0]
    # Whole steps alone: 5 samples are the first step's 3, which were 2 calls.
    assert [one.found_in_samples(n) for n in (2, 3, 5, 6, 9, 99)] == [0, 1, 1, 2, 3, 3]
    assert [one.burden(n) for n in (1, 2, 3, 4)] == [2, 4, 5, None]


def test_two_searches_are_compared_at_equal_calls_and_samples():
    slow = search("-+-++")
    fast = search("++-", calls=(1, 3), samples=(3, 6))
    assert equal_calls(slow, fast) == (1, 2)  # 3 calls each
    assert equal_samples(slow, fast) == (2, 2)  # 6 samples each: 4 calls, and 3


def test_as_many_hits_of_both_in_their_order():
    many, few = [str(n) for n in range(50)], ["a", "b", "c"]
    drawn, all_of_them = equal_number(many, few, 1)
    assert all_of_them == few
    assert len(drawn) == 3
    assert drawn == sorted(drawn, key=int)
    assert equal_number(many, few, 1) == (drawn, few)
    assert equal_number(many, few, 2)[0] != drawn
    assert equal_number(many, [], 1) == ([], [])


def test_diversity_of_hits():
    assert diversity([]) == (0.0, 0.0)
    # One molecule: its distance to itself is 0, and it is a circle.
    assert diversity(["CCO"]) == (0.0, 1.0)
    # Two without a common bit: of the four pairs two are at distance 1.
    assert diversity(["CCO", "c1ccccc1"]) == (pytest.approx(0.5), 2.0)


# -- verdicts --------------------------------------------------------------------------------------


def test_bounds_and_p_by_hand():
    # Differences 1, 2, 3: t = 2 sqrt(3) with 2 degrees of freedom, p = 1/2 - t / (2 sqrt(2 + t^2)).
    paired = Paired([3.0, 4.0, 5.0], [2.0, 2.0, 2.0])
    t = 2 * math.sqrt(3)
    assert paired.p == pytest.approx(0.5 - t / (2 * math.sqrt(2 + t * t)))
    assert paired.bound(-1) == pytest.approx(2 - 2.919986 / math.sqrt(3), abs=1e-5)
    assert paired.share(1) == pytest.approx((2 + 2.919986 / math.sqrt(3)) / 2, abs=1e-5)
    assert Paired([2.0], [1.0]).p == 1.0
    assert Paired([2.0], [1.0]).bound(1) == 1.0
    assert Paired([1.0, 1.0], [0.0, 0.0]).p == 1.0  # no spread: nothing is tested


def verdicts(changes=()) -> dict:
    noise = np.linspace(-1, 1, 10)
    ours = {
        comparison.YIELD: (1500 + 100 * noise, 1200 - 100 * noise),
        comparison.BURDEN: (510 + 20 * noise, 500 - 20 * noise),
        comparison.INT_DIV: (0.74 + 0.005 * noise, 0.745 + 0 * noise),
        comparison.CIRCLES: (40 + 2 * noise, 42 - 2 * noise),
    } | dict(changes)
    return gates({name: Paired(list(a), list(b)) for name, (a, b) in ours.items()}, 10)


def test_verdicts_on_made_up_numbers():
    assert all(check.held for check in verdicts().values())
    assert len(verdicts()) == 5
    noise = np.linspace(-1, 1, 10)
    for name, bad in (
        (comparison.YIELD, (1210 + 100 * noise, 1200 - 100 * noise)),
        (comparison.BURDEN, (600 + 20 * noise, 500 - 20 * noise)),
        (comparison.BURDEN, ([510.0] * 9, [500.0] * 9)),  # one seed never had 100 hits
        (comparison.INT_DIV, (0.70 + 0 * noise, 0.745 + 0.001 * noise)),
        (comparison.CIRCLES, (33 + 2 * noise, 42 - 2 * noise)),
    ):
        assert sum(not check.held for check in verdicts({name: bad}.items()).values()) == 1


def test_a_burden_that_was_never_reached_is_not_made_up():
    enough, few = search("+" * 100, (100,), (100,)), search("+" * 99 + "-", (100,), (100,))
    numbers = compare([enough, enough], [few, few], [1, 2])
    assert comparison.BURDEN not in numbers
    checks = gates(numbers, 2)
    assert checks["seeds in which both had 100 hits"].value == 0
    assert not any("upper bound" in name for name in checks)
    both = compare([enough, enough], [few, enough], [1, 2])
    assert both[comparison.BURDEN].first == [100.0]


def test_each_way_has_the_sigma_with_the_most_hits(tmp_path, monkeypatch):
    bench = molecules.Bench(molecules.Preset(), tmp_path, tmp_path, 1)

    def run(self, cells, seeds):
        hits = {(molecules.MARA, 32.0): 3, (molecules.REINVENT, 64.0): 2}
        return {cell: [search("+" * hits.get((cell.way, cell.sigma), 1))] for cell in cells}

    monkeypatch.setattr(molecules.Bench, "run", run)
    assert {way: cell.sigma for (_, way), cell in bench.best([1]).items()} == {
        molecules.MARA: 32.0,
        molecules.REINVENT: 64.0,
    }


# -- tasks -----------------------------------------------------------------------------------------


def test_the_docking_stand_in_by_hand():
    # Aspirin: 13 heavy atoms, 1 aromatic ring, 3 acceptors as RDKit counts, no amide, 2 bends.
    aspirin = read_molecule("CC(=O)Oc1ccccc1C(=O)O")
    assert pocket_energy(aspirin) == pytest.approx(-(4 + 1.56 + 1.2 + 1.8))
    # 32 carbons in a chain: 2 beyond 30, and 29 bends that turn, 23 beyond 6.
    assert pocket_energy(read_molecule("C" * 32)) == pytest.approx(-(4 + 3.6) + 0.6 + 5.75)


def built(settings):
    """What YAML names by class_path."""
    if isinstance(settings, list):
        return [built(each) for each in settings]
    if not isinstance(settings, dict):
        return settings
    module, _, name = settings["class_path"].rpartition(".")
    arguments = {key: built(value) for key, value in settings["init_args"].items()}
    return getattr(importlib.import_module(module), name)(**arguments)


def test_every_task_scores_molecules():
    known = tasks()
    assert set(known) == {task for p in molecules.PRESETS.values() for task in p.tasks}
    assert len(DRUGS) == 8
    scores = {}
    for name, task in known.items():
        reward = built(task.reward(7))
        assert reward.budget == 7
        scores[name] = [reward.objective.score(text).score for text in (ETHANOL, INDOLE, CELECOXIB)]
    assert scores["scaffolds"] == [0, 1, 0]
    assert scores["similarity"][2] > known["similarity"].threshold  # one of the drugs itself
    for name, (least, _, _) in scores.items():
        assert least < known[name].threshold


# -- smoke run -------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.usefixtures("warm_workers")
def test_the_study_runs_through(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    prior = tmp_path / "prior"
    tiny_rnn().save_pretrained(prior)
    tiny_tokenizer().save_pretrained(prior)
    words = ["--preset", "smoke", "--workers", "1", "--out", str(tmp_path)]
    results = molecules.main([*words, "--init_from", str(prior)])
    assert json.loads((tmp_path / "results.json").read_text()) == results
    assert {name.split(": ")[1].split(",")[0] for name in results["arms"]} == set(molecules.ALL)
    assert not results["held"]  # a prior that knows no rings finds none
    titles = list(results["comparisons"])
    assert titles[0] == "the gated cell"
    assert len(titles) == 1 + len(molecules.PAIRS)
    assert (tmp_path / "figure.png").stat().st_size > 1000
    assert redrawn("molecules", tmp_path) == (tmp_path / "figure.png").read_bytes()
    (run,) = (tmp_path / "smoke" / "runs").glob("scaffolds: MARA, sigma 64-*/seed5")
    found = read_search(run, 0.99)
    assert found.num_calls <= 60
    assert found.num_samples <= 128
    assert found.calls[-1] == found.num_calls
