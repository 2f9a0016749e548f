"""Components, transforms and means of molecules, by hand."""

import math
import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rdkit import Chem, DataStructs
from rdkit.Chem import QED, Crippen, Descriptors, rdFingerprintGenerator

from triptych.objectives.rewards.molecules.component import describe
from triptych.objectives.rewards.molecules.docking import VinaDocking
from triptych.objectives.rewards.molecules.objective import MoleculeObjective
from triptych.objectives.rewards.molecules.properties import (
    DrugLikeness,
    FormalCharge,
    FractionSp3,
    HydrogenBondAcceptors,
    HydrogenBondDonors,
    LogP,
    MolecularWeight,
    PolarSurfaceArea,
    RDKitDescriptor,
    Rings,
    RotatableBonds,
    Stereocentres,
)
from triptych.objectives.rewards.molecules.python_component import PythonComponent
from triptych.objectives.rewards.molecules.structure import (
    CustomAlerts,
    ScaffoldMatch,
    Substructure,
    TargetSimilarity,
)
from triptych.objectives.rewards.molecules.synthesizability import (
    Retrosynthesis,
    RetrosynthesisModel,
    SyntheticAccessibility,
)
from triptych.objectives.rewards.molecules.transforms import (
    DoubleSigmoid,
    Gaussian,
    Identity,
    MaxGaussian,
    MinGaussian,
    ReverseSigmoid,
    Sigmoid,
    Step,
    ValueMapping,
)

ASPIRIN = "CC(=O)Oc1ccccc1C(=O)O"


def value(component, smiles=ASPIRIN):
    return component.value(Chem.MolFromSmiles(smiles), smiles)


@pytest.mark.parametrize(
    ("transform", "points"),
    [
        # 10 k (v - middle) / (high - low) is -0.75, 0 and 0.75.
        (Sigmoid(0, 4, k=0.15), {0: 0.150979, 2: 0.5, 4: 0.849021}),
        (ReverseSigmoid(-16, 0, k=0.15), {-16: 0.849021, -8: 0.5, 0: 0.150979}),
        # At an end 1/2 - 1/(1 + 10^1.5); between them 1/(1 + 10^-0.75) - 1/(1 + 10^0.75).
        (DoubleSigmoid(1, 2), {1: 0.469347, 1.5: 0.698041, 2: 0.469347}),
        (Step(0, 3), {-1: 0, 0: 1, 3: 1, 3.5: 0}),
        (Step(low=5), {4.9: 0, 5: 1, 1e9: 1}),
        (Identity(), {0.3: 0.3}),
        # exp(-1/2) and exp(-2).
        (Gaussian(4, 2), {0: 0.135335, 2: 0.606531, 4: 1, 6: 0.606531}),
        (MinGaussian(4, 2), {0: 1, 4: 1, 6: 0.606531}),
        (MaxGaussian(4, 2), {2: 0.606531, 4: 1, 9: 1}),
        (ValueMapping({0: 1.0, 1: 0.5}, otherwise=0.1), {0: 1.0, 1: 0.5, 2: 0.1}),
    ],
)
def test_transforms_by_hand(transform, points):
    for at, expected in points.items():
        assert transform(at) == pytest.approx(expected, abs=1e-6)


@given(value=st.floats(-1e6, 1e6), low=st.floats(-100, 99), k=st.floats(0.01, 10))
def test_transforms_stay_in_their_range_and_mirror(value, low, k):
    up, down = Sigmoid(low, 100, k)(value), ReverseSigmoid(low, 100, k)(value)
    assert 0 <= up <= 1
    assert up + down == pytest.approx(1)
    assert 0 <= DoubleSigmoid(low, 100)(value) <= 1


def test_properties_are_rdkits():
    molecule = Chem.MolFromSmiles(ASPIRIN)
    assert value(DrugLikeness()) == QED.qed(molecule)
    assert value(LogP()) == Crippen.MolLogP(molecule)
    assert value(MolecularWeight()) == Descriptors.MolWt(molecule) == pytest.approx(180.159)
    assert value(PolarSurfaceArea()) == pytest.approx(63.6)
    assert value(HydrogenBondDonors()) == 1
    assert value(Rings()) == 1
    # Easy molecules score near 1, a steroid's skeleton higher.
    easy, hard = (
        SyntheticAccessibility(),
        "C[C@]12CC[C@H]3[C@@H](CC[C@H]4C[C@@H](O)CC[C@]34C)[C@@H]1CCC2=O",
    )
    assert 1 < value(easy) < 2 < value(easy, hard) < 5
    assert value(easy) == pytest.approx(1.58004, abs=1e-4)


def test_further_properties_by_hand():
    # Aspirin: an acetyl and an acid; the carboxyl's and ester's bonds to the ring rotate.
    assert value(HydrogenBondAcceptors()) == 3
    assert value(RotatableBonds()) == 2
    assert value(FractionSp3()) == pytest.approx(1 / 9)
    assert value(Stereocentres(), "C[C@H](N)C(=O)O") == value(Stereocentres(), "CC(N)C(O)=O") == 1
    assert value(Stereocentres(), "OC(F)C(Cl)O") == 2
    assert value(FormalCharge(), "C[NH2+]CC(=O)[O-]") == 0
    assert value(FormalCharge(), "CC[NH3+]") == 1
    assert value(RDKitDescriptor("HeavyAtomCount")) == 13
    assert RDKitDescriptor("BertzCT").name == "BertzCT"
    with pytest.raises(
        ValueError, match=r"'FractionCsp3', which is none.*did you mean FractionCSP3"
    ):
        RDKitDescriptor("FractionCsp3")


def test_fingerprints_of_other_kinds_are_rdkits():
    molecules = [Chem.MolFromSmiles(text) for text in (ASPIRIN, "OC(=O)c1ccccc1O")]
    features = rdFingerprintGenerator.GetMorganFeatureAtomInvGen()
    makers = {
        "morgan": rdFingerprintGenerator.GetMorganGenerator(radius=3, fpSize=1024),
        "feature_morgan": rdFingerprintGenerator.GetMorganGenerator(
            radius=3, fpSize=1024, atomInvariantsGenerator=features
        ),
        "atom_pair": rdFingerprintGenerator.GetAtomPairGenerator(fpSize=1024),
    }
    found = set()
    for kind, maker in makers.items():
        for counts in (False, True):
            make = maker.GetCountFingerprint if counts else maker.GetFingerprint
            expected = DataStructs.TanimotoSimilarity(*map(make, molecules))
            component = TargetSimilarity(
                ["OC(=O)c1ccccc1O"], radius=3, num_bits=1024, fingerprint=kind, counts=counts
            )
            assert value(component) == expected
            found.add(round(expected, 6))
    assert len(found) == 6
    left, right = "C[C@H](N)C(=O)O", "C[C@@H](N)C(=O)O"
    assert value(TargetSimilarity([left]), right) == 1
    assert value(TargetSimilarity([left], chirality=True), right) < 1
    with pytest.raises(ValueError, match="fingerprint is 'maccs'"):
        TargetSimilarity([left], fingerprint="maccs")


def test_alerts_and_filters_multiply_the_mean():
    alerts = CustomAlerts(["[NX3](=O)=O", "C(=O)Cl"])
    objective = MoleculeObjective([alerts, DrugLikeness(), constant(0.5, 1)], mean="arithmetic")
    qed = QED.qed(Chem.MolFromSmiles(ASPIRIN))
    assert objective.score(ASPIRIN).score == pytest.approx((qed + 0.5) / 2)
    bad = objective.score("CC(=O)Cl")
    assert bad.score == 0
    assert bad.components == {"custom_alerts": 0.0}  # nothing else is computed
    halved = MoleculeObjective([DrugLikeness()], filters=[constant(0.5, 1)])
    assert halved.score(ASPIRIN).score == pytest.approx(qed / 2)
    assert halved.names == ["drug_likeness", "target_similarity"]
    assert halved.ruled_out("CC(=O)Cl") is None
    early = MoleculeObjective([DrugLikeness()], preliminary=[CustomAlerts(["C(=O)Cl"])])
    assert early.ruled_out("CC(=O)Cl") == "custom_alerts"
    assert early.score(ASPIRIN).score == pytest.approx(qed)


def test_names_of_ones_own():
    objective = MoleculeObjective(
        [Substructure(["C"], name="alkyl"), Substructure(["O"], name="oxygen"), LogP(Step(-9, 9))]
    )
    assert objective.names == ["alkyl", "oxygen", "log_p"]
    found = objective.score("CO")
    assert found.raw == {
        "alkyl": 1,
        "oxygen": 1,
        "log_p": Crippen.MolLogP(Chem.MolFromSmiles("CO")),
    }
    assert objective.describe()["components"][0]["name"] == "alkyl"
    assert "name" not in objective.describe()["components"][2]
    with pytest.raises(ValueError, match="two components are called 'mine'"):
        MoleculeObjective([LogP(name="mine"), Rings(name="mine")])


def test_structure():
    caffeine = "Cn1cnc2c1c(=O)n(C)c(=O)n2C"
    generator = rdFingerprintGenerator.GetMorganGenerator(radius=2, fpSize=2048)
    prints = [generator.GetFingerprint(Chem.MolFromSmiles(s)) for s in (ASPIRIN, "OC(=O)c1ccccc1O")]
    expected = DataStructs.TanimotoSimilarity(*prints)
    assert value(TargetSimilarity([caffeine, "OC(=O)c1ccccc1O"])) == expected
    assert value(TargetSimilarity([ASPIRIN])) == 1
    acid = "[CX3](=O)[OX2H1]"
    assert value(Substructure([acid])) == 1
    assert value(Substructure([acid], forbidden=True)) == 0
    assert value(Substructure([acid]), "CCO") == 0
    assert value(ScaffoldMatch(["Cc1ccccc1"])) == 1
    assert value(ScaffoldMatch(["c1ccncc1"])) == 0
    for make, setting in [
        (lambda: TargetSimilarity(["C1CC"]), "targets holds 'C1CC'"),
        (lambda: TargetSimilarity([]), "targets is empty"),
        (lambda: Substructure(["((("]), "no SMARTS"),
        (lambda: Substructure([]), "patterns is empty"),
        (lambda: ScaffoldMatch(["x"]), "scaffolds holds 'x'"),
    ]:
        with pytest.raises(ValueError, match=setting.replace("(", r"\(")):
            make()


def constant(of, cost_ms):
    component = TargetSimilarity([ASPIRIN])
    component.value = lambda molecule, smiles: of
    component.cost_ms = cost_ms
    return component


def test_means_by_hand():
    parts = [constant(0.25, 1), constant(1.0, 1)]
    assert MoleculeObjective(parts).score("C").score == pytest.approx(0.5)
    assert MoleculeObjective(parts, [3, 1]).score("C").score == pytest.approx(0.25**0.75)
    assert MoleculeObjective(parts, [3, 1], "arithmetic").score("C").score == pytest.approx(0.4375)
    found = MoleculeObjective(parts).score("C").components
    assert found == {"target_similarity": 0.25, "target_similarity_2": 1.0}


def test_a_factor_of_zero_spares_what_costs_more():
    parts = [constant(0.5, 30), constant(0.0, 20), constant(0.7, 10)]
    found = MoleculeObjective(parts).score("C")
    assert found.score == 0
    assert found.components == {"target_similarity_3": 0.7, "target_similarity_2": 0.0}
    every = MoleculeObjective(parts, mean="arithmetic").score("C")
    assert every.score == pytest.approx(0.4)
    assert len(every.components) == 3


class Planner(RetrosynthesisModel):
    def __init__(self, depth):
        self.depth, self._loaded = depth, False

    def prepare(self):
        self._loaded = True

    def score(self, smiles):
        return float(self._loaded and len(smiles) < self.depth)


def test_a_retrosynthesis_model_and_a_function_of_ones_own():
    objective = MoleculeObjective([Retrosynthesis(Planner(5))])
    objective.prepare()
    assert objective.score("CCO").score == 1
    assert objective.score("CCCCO").score == 0
    own = PythonComponent(
        "tests.objectives.rewards.molecule_components:three", transform=Sigmoid(0, 6)
    )
    assert own.name == "three"
    assert MoleculeObjective([own]).score("C").score == 0.5
    for wrong in ("math:nothing", "nothing_like_it:f", "math", "math:pi"):
        with pytest.raises(ValueError, match="function is"):
            PythonComponent(wrong)


def test_a_score_outside_its_range_asks_for_a_transform():
    with pytest.raises(ValueError, match=r"molecular_weight gives 16.*give it a transform"):
        MoleculeObjective([MolecularWeight()]).score("C")


def test_descriptions_tell_settings_apart_and_survive_pickling():
    objective = MoleculeObjective([LogP(Sigmoid(0, 4)), DrugLikeness()], [1, 2])
    described = objective.describe()
    assert described["weights"] == [1.0, 2.0]
    assert described["components"][0]["transform"]["high"] == 4
    assert describe(pickle.loads(pickle.dumps(objective))) == describe(objective)
    other = MoleculeObjective([LogP(Sigmoid(0, 5)), DrugLikeness()], [1, 2])
    assert other.describe() != described


def test_settings_that_make_no_sense():
    with pytest.raises(ValueError, match="no components"):
        MoleculeObjective([])
    for weights in ([1], [1, 0], [1, math.inf]):
        with pytest.raises(ValueError, match="one positive weight for each"):
            MoleculeObjective([LogP(), Rings()], weights)
    with pytest.raises(ValueError, match="set low below high"):
        Sigmoid(1, 1)
    with pytest.raises(ValueError, match="set low to at most high"):
        Step(2, 1)


def test_docking_says_what_to_install(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ValueError, match="docking needs vina and meeko: install the extra"):
        VinaDocking("protein.pdbqt", (0.0, 0.0, 0.0))
