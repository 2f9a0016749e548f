"""Distribution metrics of GuacaMol and MOSES against independent code."""

import importlib.util
import math
import warnings

import numpy as np
import pytest
import torch
from rdkit import Chem, DataStructs
from rdkit.Chem import AllChem, Descriptors
from rdkit.Chem.FilterCatalog import FilterCatalog, FilterCatalogParams
from scipy.spatial.distance import cosine
from scipy.stats import entropy, gaussian_kde

from tests.metrics.diversify.molecules.molecule_sets import DRUGS
from triptych.metrics.diversify.molecules.chemnet_distance import (
    ChemNetDistance,
    frechet_distance,
)
from triptych.metrics.diversify.molecules.circles import Circles
from triptych.metrics.diversify.molecules.circles_over_orders import CirclesOverOrders
from triptych.metrics.diversify.molecules.filters import FilterShare
from triptych.metrics.diversify.molecules.fragments import FragmentSimilarity
from triptych.metrics.diversify.molecules.internal_diversity import InternalDiversity
from triptych.metrics.diversify.molecules.property_divergence import (
    CONTINUOUS,
    COUNTS,
    PropertyDivergence,
)

REFERENCE, SAMPLES = DRUGS[:7], [*DRUGS[5:], "CCOC(=O)c1ccccc1N", "C[C@H](N)C(=O)OCC"]


def similarity_matrix(smiles: list[str], num_bits: int = 4096) -> np.ndarray:
    generator = AllChem.GetMorganGenerator(radius=2, fpSize=num_bits)
    prints = [generator.GetFingerprint(Chem.MolFromSmiles(text)) for text in smiles]
    matrix = np.array([DataStructs.BulkTanimotoSimilarity(one, prints) for one in prints])
    np.fill_diagonal(matrix, 0)
    return matrix


def test_kl_score_equals_scipy():
    metric = PropertyDivergence(REFERENCE)
    metric.update([*SAMPLES, SAMPLES[0], "C1CC", "C[C@@H](N)C(=O)OCC"])  # repeats count once
    found = metric.compute()
    scores = []
    for name in (*CONTINUOUS, *COUNTS, "internal_similarity"):
        if name == "internal_similarity":
            p, q = (similarity_matrix(smiles).max(1) for smiles in (REFERENCE, SAMPLES))
        else:
            p, q = (
                np.array([getattr(Descriptors, name)(Chem.MolFromSmiles(s)) for s in smiles])
                for smiles in (REFERENCE, SAMPLES)
            )
        if name in COUNTS:
            heights, edges = np.histogram(p, bins=10, density=True)
            expected = entropy(heights + 1e-10, np.histogram(q, edges, density=True)[0] + 1e-10)
        else:
            x = np.linspace(min(*p, *q), max(*p, *q), 1000)
            expected = entropy(gaussian_kde(p)(x) + 1e-10, gaussian_kde(q)(x) + 1e-10)
        assert found[f"kl_nats_{name}"].item() == pytest.approx(expected, rel=1e-5), name
        scores.append(math.exp(-expected))
    assert len(scores) == 10
    assert found["kl_score"].item() == pytest.approx(np.mean(scores), rel=1e-5)


def test_a_property_without_spread_is_left_out():
    metric = PropertyDivergence(["C", "CC"])
    metric.update(["CCC", "CCCC"])
    found = metric.compute()
    assert found["kl_nats_TPSA"].isnan()  # all are 0
    assert 0 <= found["kl_score"] <= 1
    with pytest.raises(ValueError, match=r"reference\[1\] is 'C1CC'"):
        PropertyDivergence(["C", "C1CC"])
    with pytest.raises(ValueError, match="fewer than two"):
        PropertyDivergence(["CCO", "OCC"])


def test_fragments_equal_rdkit_and_scipy():
    def counts(smiles: list[str]) -> dict[str, int]:
        found: dict[str, int] = {}
        for text in smiles:
            cut = Chem.FragmentOnBRICSBonds(Chem.MolFromSmiles(text))
            for piece in Chem.MolToSmiles(cut).split("."):
                found[piece] = found.get(piece, 0) + 1
        return found

    metric = FragmentSimilarity(REFERENCE)
    samples = [*SAMPLES, SAMPLES[1]]  # repeats count
    metric.update([*samples, "C1CC"])
    ours, theirs = counts(samples), counts(REFERENCE)
    names = sorted(ours.keys() | theirs.keys())
    vectors = [[of.get(name, 0) for name in names] for of in (ours, theirs)]
    assert 0 < metric.compute() < 1
    assert metric.compute().item() == pytest.approx(1 - cosine(*vectors), abs=1e-12)
    with pytest.raises(ValueError, match=r"reference\[1\]"):
        FragmentSimilarity(["C", "C1CC"])


@pytest.mark.parametrize(
    ("smiles", "passes"),
    [
        ("CC(=O)Nc1ccc(O)cc1", True),
        ("C1CCCCCC1", True),
        ("C1CCCCCCC1", False),  # a ring of 8
        ("CC[NH3+]", False),
        ("C[N+](=O)[O-]", False),  # charged atoms of a neutral molecule
        ("CCI", False),
        ("c1ccccc1B(O)O", False),
        ("O=C1C=CC(=O)C=C1", False),  # PAINS: quinone
        ("CCN=O", False),  # the alert given
    ],
)
def test_filters_of_hand_picked_molecules(smiles, passes):
    metric = FilterShare(alerts=["[N;R0]=O"])
    metric.update([smiles, "C1CC"])
    assert metric.compute().item() == passes


def test_filters_name_what_is_wrong():
    params = FilterCatalogParams()
    params.AddCatalog(FilterCatalogParams.FilterCatalogs.BRENK)
    metric = FilterShare(catalogs=["BRENK"])
    neutral = [s for s in DRUGS if "." not in s]
    metric.update(neutral)
    alerts = [FilterCatalog(params).HasMatch(Chem.MolFromSmiles(s)) for s in neutral]
    assert metric.compute().item() == pytest.approx(1 - np.mean(alerts))
    with pytest.raises(ValueError, match=r"'MCF': give some of .*PAINS"):
        FilterShare(catalogs=["MCF"])
    with pytest.raises(ValueError, match="is no SMARTS"):
        FilterShare(alerts=["C(("])


def test_unique_molecules_as_guacamol_reports_them():
    repeated = [*DRUGS, *DRUGS[:4], "OC(=O)c1ccccc1OC(C)=O"]
    unique, every = (InternalDiversity(compat="guacamol", unique=u) for u in (True, False))
    unique.update(repeated)
    every.update(repeated)
    assert unique.compute().item() == pytest.approx(1 - similarity_matrix(DRUGS).mean(), abs=1e-7)
    canonical = [*DRUGS, *DRUGS[:4], DRUGS[0]]
    generator = AllChem.GetMorganGenerator(radius=2, fpSize=4096)
    prints = [generator.GetFingerprint(Chem.MolFromSmiles(s)) for s in canonical]
    pairs = np.array([DataStructs.BulkTanimotoSimilarity(one, prints) for one in prints])
    np.fill_diagonal(pairs, 0)
    assert every.compute().item() == pytest.approx(1 - pairs.mean(), abs=1e-7)
    with pytest.raises(ValueError, match="tdc"):
        InternalDiversity(compat="tdc", unique=False)


def test_circles_over_orders_are_circles_of_shuffled_lists():
    molecules = [*DRUGS, "CCO", "CCN", "CCCN", "CCCO", "c1ccccc1", "Cc1ccccc1", "CCc1ccccc1"]
    molecules += ["CCCCO", "CCCCN", "CCCCC", "CCCCCC", "CCCCCO", "CCCCCN", "OCCCCO", "NCCCCN"]
    metric = CirclesOverOrders(threshold=0.5, num_orders=8)
    metric.update([*molecules, *molecules])
    found = metric.compute()
    counts = []
    for seed in range(60):
        one = Circles(threshold=0.5)
        order = np.random.default_rng(1000 + seed).permutation(len(molecules))
        one.update(molecules, order=np.argsort(order).tolist())
        counts.append(one.compute().item())
    assert np.std(counts) > 0
    assert found["circles_std"] > 0
    allowed = 4 * np.std(counts) / math.sqrt(8)
    assert abs(found["circles"].item() - np.mean(counts)) < allowed
    assert min(counts) <= found["circles"] <= max(counts)
    with pytest.raises(ValueError, match="at least 2"):
        CirclesOverOrders(num_orders=1)


def test_frechet_distance_of_commuting_gaussians():
    rng = np.random.default_rng(0)
    basis = torch.from_numpy(np.linalg.qr(rng.normal(size=(4, 4)))[0])
    s, t = torch.tensor([1.0, 4.0, 9.0, 0.0]).double(), torch.tensor([4.0, 1.0, 0.0, 0.0]).double()
    mean, other = torch.zeros(4).double(), torch.tensor([1.0, 2.0, 0.0, 0.0]).double()
    found = frechet_distance(mean, basis * s @ basis.T, other, basis * t @ basis.T)
    assert found == pytest.approx(5 + (1 + 1 + 9 + 0), abs=1e-6)  # sum of (sqrt s - sqrt t)^2


@pytest.mark.skipif(not importlib.util.find_spec("fcd_torch"), reason="needs the extra fcd")
def test_fcd_equals_the_package():
    from fcd_torch import FCD

    metric = ChemNetDistance(REFERENCE, batch_size=4)
    metric.update(SAMPLES[:3])
    metric.update([*SAMPLES[3:], "C1CC"])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # names of numpy 1 and scipy 1
        expected = FCD(device="cpu", n_jobs=1)(REFERENCE, SAMPLES)
    found = metric.compute()
    assert found["fcd"].item() == pytest.approx(expected, rel=1e-3)
    assert found["fcd_score"].item() == pytest.approx(math.exp(-0.2 * expected), rel=1e-3)


@pytest.mark.skipif(bool(importlib.util.find_spec("fcd_torch")), reason="has the extra fcd")
def test_the_missing_extra_is_named():
    with pytest.raises(ModuleNotFoundError, match="install the extra `fcd`"):
        ChemNetDistance(["CCO", "CCN"])
