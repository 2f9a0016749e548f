"""PMO: oracles on molecules computed by hand, the area under the top-k curve, and a small study."""

import json
import math
import sqlite3

import numpy as np
import pytest

from tests.lit_modules.diversify.molecules.tiny_priors import CHAINS
from triptych.datamodules.diversify.molecules.smiles_tokenizer import atomwise_tokenizer
from triptych.datamodules.diversify.molecules.smiles_tokens import vocabulary_of
from triptych.models.diversify.molecules.molecule import read_molecule
from triptych.models.diversify.molecules.smiles_rnn import SmilesRNN, SmilesRNNConfig
from triptych.studies import pmo
from triptych.studies.diversify.pmo import oracles
from triptych.studies.diversify.pmo.ledger_scores import scores_of_calls, top_k
from triptych.studies.diversify.pmo.oracles import ORACLES
from triptych.studies.diversify.pmo.published import REINVENT_AUC_TOP_10
from triptych.studies.results import at_least

TARGETS = {
    "celecoxib_rediscovery": oracles._CELECOXIB,
    "troglitazone_rediscovery": oracles._TROGLITAZONE,
    "thiothixene_rediscovery": oracles._THIOTHIXENE,
    "albuterol_similarity": oracles._ALBUTEROL,
    "mestranol_similarity": oracles._MESTRANOL,
}


def score(name: str, smiles: str) -> float:
    return ORACLES[name](read_molecule(smiles))


def test_twenty_oracles_with_published_numbers():
    assert len(ORACLES) == 20
    assert ORACLES.keys() == REINVENT_AUC_TOP_10.keys()
    for oracle in ORACLES.values():
        for smiles in ("C", "CCO", oracles._SITAGLIPTIN):
            assert 0 <= oracle(read_molecule(smiles)) <= 1


@pytest.mark.parametrize(("name", "target"), TARGETS.items())
def test_a_target_scores_one_and_others_less(name, target):
    assert score(name, target) == 1.0
    assert score(name, "CCCCCC") < 0.3


def test_similarities_count_environments():
    # Ethanol and methanol, radius 2. Ethanol: CH3, CH2, OH, and one environment of radius 1 around
    # each of CH3, CH2 and OH (two bonds at most, so radius 2 adds none that is new). Methanol: CH3,
    # OH, and one environment of both atoms. Common: CH3 and OH. 2 / (6 + 3 - 2).
    assert oracles.similarity(read_molecule("CCO"), "CO", "ECFP4") == pytest.approx(2 / 7)
    # Chains of 12 and 16 carbons differ by counts alone: with bits they would be equal.
    assert oracles.similarity(read_molecule("C" * 12), "C" * 16, "ECFP4") < 0.8
    # Atom pairs of propane: two at 1, one at 2. Of butane: two ends at 1, the middle at 1, two at
    # 2, one at 3. Common: the ends at 1. 2 / (3 + 6 - 2).
    assert oracles.similarity(read_molecule("CCC"), "CCCC", "AP") == pytest.approx(2 / 7)


def test_isomers_by_hand():
    # Ethanol for C2H6O: all 1. Methanol: C, H 1 and 2 below, 6 atoms for 9.
    formula = {"C": 2, "H": 6, "O": 1}
    assert oracles.isomer_score(read_molecule("CCO"), formula) == 1.0
    expected = math.exp(-0.5 * (1**2 + 2**2 + 0**2 + (3 / 2) ** 2) / 4)
    assert oracles.isomer_score(read_molecule("CO"), formula) == pytest.approx(expected)
    # Hydroquinone with two amines, C6H8N2O2: one carbon and one atom are missing.
    expected = math.exp(-0.5 * (1**2 + 0.5**2) / 5)
    assert score("isomers_c7h8n2o2", "Nc1cc(O)c(N)cc1O") == pytest.approx(expected)


def test_several_properties_by_hand():
    # Perindopril has no aromatic ring: exp(-.5 (2 / .5)^2) = exp(-8), geometric with 1.
    assert score("perindopril_mpo", oracles._PERINDOPRIL) == pytest.approx(math.exp(-4))
    # Amlodipine has two rings, one below three.
    assert score("amlodipine_mpo", oracles._AMLODIPINE) == pytest.approx(math.exp(-1))
    # Sitagliptin is too like itself: exp(-.5 (1 / .1)^2) = exp(-50), the other three parts are 1.
    assert score("sitagliptin_mpo", oracles._SITAGLIPTIN) == pytest.approx(math.exp(-50 / 4))
    # Decane: neither polar nor like osimertinib. RDKit's logP of it is 4.147, its surface 0.
    parts = [
        min(oracles.similarity(read_molecule("C" * 10), oracles._OSIMERTINIB, "FCFP4") / 0.8, 1),
        1.0,
        math.exp(-50),
        math.exp(-0.5 * (4.147 - 1) ** 2),
    ]
    expected = math.prod(parts) ** (1 / 4)
    assert score("osimertinib_mpo", "C" * 10) == pytest.approx(expected, rel=1e-3)
    assert score("valsartan_smarts", "CCO") == 0.0
    assert score("median1", oracles._CAMPHOR) == pytest.approx(
        math.sqrt(oracles.similarity(read_molecule(oracles._CAMPHOR), oracles._MENTHOL, "ECFP4"))
    )


def test_hops_by_hand():
    target = oracles._PHARMACOPHORE
    # The target has the scaffold, the thiazole and the sulfone, which deco_hop does not want.
    assert score("deco_hop", target) == (1 + 0 + 0 + 1) / 4
    # It has the decoration, which scaffold_hop wants, on the scaffold that it does not want.
    assert score("scaffold_hop", target) == pytest.approx((1 + 1 + 0) / 3)
    # Methane is like nothing, and has nothing of it.
    assert score("deco_hop", "C") == (0 + 1 + 1 + 0) / 4
    assert score("scaffold_hop", "C") == pytest.approx((0 + 0 + 1) / 3)


def by_calls(scores: list[float], k: int, budget: int, every: int) -> float:
    """mol_opt's rule by interpolation of the points at which it takes the mean."""
    at = [0, *range(every, len(scores), every), len(scores)]
    means = [0.0] + [float(np.mean(sorted(scores[:n])[-k:])) for n in at[1:]]
    area = np.trapezoid(means, at)
    return float(area + (budget - len(scores)) * means[-1]) / budget


@pytest.mark.parametrize("calls", [1, 99, 100, 101, 250, 400])
def test_area_under_the_top_k_curve(calls):
    def auc(scores: list[float]) -> float:
        return pmo.numbers_of(scores, 400)[pmo.AUC]

    scores = np.random.default_rng(calls).random(calls).tolist()
    assert auc(scores) == pytest.approx(by_calls(scores, 10, 400, 100))
    assert auc([1.0] * calls) == pytest.approx(1 - min(calls, 100) / 800)
    assert auc([]) == 0.0
    assert auc([*[0.5] * 400, 1.0]) == pytest.approx(0.5 * (1 - 1 / 8))
    assert top_k([0.1, 0.5, 0.3], 2) == pytest.approx(0.4)


def test_the_verdict_counts_oracles_two_deviations_below():
    def numbers(offset: float) -> dict:
        found = {}
        for oracle in pmo.FIVE:
            mean, deviation = REINVENT_AUC_TOP_10[oracle]
            found[pmo.label(oracle, pmo.REINVENT)] = [{pmo.AUC: mean + offset * deviation}]
        return found

    assert list(pmo.gates(numbers(-1.9), pmo.FIVE).values()) == [at_least(5, 4)]
    assert list(pmo.gates(numbers(-2.1), pmo.FIVE).values()) == [at_least(0, 4)]


@pytest.mark.slow
def test_smoke_runs_resumes_and_compares(tmp_path, capsys):
    tokenizer = atomwise_tokenizer(vocabulary_of(CHAINS))
    words = tokenizer.convert_ids_to_tokens(list(range(len(tokenizer))))
    prior = tmp_path / "prior"
    SmilesRNN(SmilesRNNConfig(hidden_size=16), len(words), words).save_pretrained(prior)
    tokenizer.save_pretrained(prior)
    command = ["--init_from", str(prior), "--out", str(tmp_path / "out"), "--workers", "1"]
    command += ["--oracles", "isomers_c7h8n2o2"]
    results = pmo.main(command)
    assert json.loads((tmp_path / "out" / "results.json").read_text()) == results
    names = {pmo.label("isomers_c7h8n2o2", way) for way in (pmo.REINVENT, pmo.MARA)}
    assert results["arms"].keys() == names
    runs = sorted((tmp_path / "out").glob("smoke/runs/*/seed1"))
    for run in runs:
        scores = scores_of_calls(run)
        name = next(name for name in names if run.parent.name.rpartition("-")[0] == name)
        arm = results["arms"][name]
        assert arm["oracle calls"]["mean"] == len(scores) > 0
        assert arm[pmo.AUC]["mean"] == pytest.approx(by_calls(scores, 10, 60, 100))
        connection = sqlite3.connect(run / "oracle.sqlite")
        smiles, found = connection.execute("SELECT smiles, score FROM calls").fetchone()
        connection.close()
        assert found == pytest.approx(score("isomers_c7h8n2o2", smiles))
    before = [(run / "summary.json").stat().st_mtime_ns for run in runs]
    assert pmo.main(command)["arms"] == results["arms"]  # finished runs are not repeated
    assert [(run / "summary.json").stat().st_mtime_ns for run in runs] == before
    assert "0.852 +- 0.036" in capsys.readouterr().out
    pmo.draw_results(results, tmp_path / "again.png")
    assert (tmp_path / "again.png").is_file()
