"""An oracle that is down is no property of molecules; the books' own trouble ends the run."""

import json
import sqlite3
import stat
from pathlib import Path

import pytest
import torch

from triptych.objectives.rewards.molecules.component import Failure, MoleculeComponent
from triptych.objectives.rewards.molecules.external_process import ExternalProcess
from triptych.objectives.rewards.molecules.objective import MoleculeObjective
from triptych.objectives.rewards.molecules.oracle_failures import OracleFailedError
from triptych.objectives.rewards.molecules.oracle_ledger import LedgerError, OracleLedger
from triptych.objectives.rewards.molecules.oracle_reward import OracleReward
from triptych.objectives.rewards.molecules.properties import DrugLikeness

CHAINS = ["C" * length for length in range(1, 31)]


class Moody(MoleculeComponent):
    """Scores 0.5, unless it is down or the molecule is one that it cannot do."""

    batch_size = 8

    def __init__(self, cannot=(), batch_is_all=False):
        super().__init__()
        self._cannot, self._is_down, self._batch_is_all = set(cannot), False, batch_is_all
        self._asked: list[list[str]] = []

    def values(self, molecules, smiles):
        self._asked.append(list(smiles))
        if self._is_down:
            raise RuntimeError("the licence server is away")
        if self._batch_is_all and self._cannot & set(smiles):
            raise RuntimeError("segmentation fault")
        return [Failure("no charges") if text in self._cannot else 0.5 for text in smiles]


def oracle(component, path=None, budget=100, **settings) -> OracleReward:
    return OracleReward(
        MoleculeObjective([component]), budget, None if path is None else str(path), **settings
    )


def test_a_molecule_that_fails_has_no_score_and_is_tried_again_by_the_next_run(
    tmp_path, rollout_of, caplog
):
    path = tmp_path / "calls.db"
    reward = oracle(Moody(["CC"]), path)
    scores = reward(rollout_of(["C", "CC", "CCC", "no", "CC"]))
    assert scores.reward_B.isnan().tolist() == [False, True, False, False, True]
    assert scores.errors == {1: "no charges", 4: "no charges"}
    assert not scores.over_budget
    assert "CC has no score: no charges" in caplog.text
    assert reward.ledger.failures() == {"CC": "no charges"}
    assert [call.smiles for call in reward.ledger.calls()] == ["C", "CCC"]
    # Not asked for again in this run, tried again by another one, under its number.
    asked = reward.objective.components[0]._asked
    before = len(asked)
    assert reward(rollout_of(["CC"])).errors == {0: "no charges"}
    assert len(asked) == before
    reward.close()
    again = oracle(Moody(), path)
    assert again(rollout_of(["CC", "CCCC"])).components["oracle_call"].tolist() == [2, 4]
    assert again.ledger.failures() == {}
    again.close()


def test_a_program_that_is_down_pauses_at_the_first_batch_with_its_own_words(tmp_path, rollout_of):
    program = tmp_path / "dock.sh"
    program.write_text("#!/bin/sh\necho 'no licence for DOCK on host x' >&2\nexit 127\n")
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    path = tmp_path / "calls.db"
    reward = oracle(ExternalProcess(str(program)), path, budget=10)
    with pytest.raises(OracleFailedError, match="no licence for DOCK on host x") as caught:
        reward(rollout_of(CHAINS[:6]))
    assert "has scored none so far" in str(caught.value)
    assert "(calls 1 to 6)" in str(caught.value)
    assert reward.num_calls == 0
    assert set(reward.ledger.failures()) == set(CHAINS[:6])
    reward.close()
    # Other molecules get these numbers, and the whole budget.
    program.write_text("#!/bin/sh\nsed 's/.*/0.25/'\n")
    mended = oracle(ExternalProcess("sed s/.*/0.25/"), tmp_path / "other.db", budget=10)
    with pytest.raises(ValueError, match="another objective"):
        oracle(ExternalProcess(str(program)), path, budget=10)(rollout_of(["C"]))
    scores = mended(rollout_of(CHAINS[10:20]))
    assert scores.components["oracle_call"].tolist() == list(range(1, 11))
    mended.close()


def test_numbers_of_a_pause_are_given_back(tmp_path, rollout_of):
    moody = Moody()
    moody._is_down = True
    reward = oracle(moody, tmp_path / "calls.db", budget=6)
    with pytest.raises(OracleFailedError):
        reward(rollout_of(CHAINS[:6]))
    reward.close()
    moody._is_down = False
    scores = reward(rollout_of(CHAINS[10:16]))
    assert scores.components["oracle_call"].tolist() == [1, 2, 3, 4, 5, 6]
    reward.close()


def test_an_oracle_that_goes_down_pauses_after_one_failure(tmp_path, rollout_of):
    moody = Moody()
    reward = oracle(moody, tmp_path / "calls.db")
    reward(rollout_of(CHAINS[:3]))
    moody._is_down = True
    with pytest.raises(OracleFailedError, match=r"now also on 'CCC'.*\n.*licence server is away"):
        reward(rollout_of(CHAINS[2:5]))
    moody._is_down = False
    scores = reward(rollout_of(CHAINS[2:5]))
    assert scores.components["oracle_call"].tolist() == [3, 4, 5]
    assert scores.reward_B.tolist() == [0.5] * 3
    reward.close()


def test_a_molecule_that_breaks_its_batch_costs_itself_alone(rollout_of):
    moody = Moody(["CCCCC"], batch_is_all=True)
    reward = oracle(moody)
    reward(rollout_of(["C"]))
    scores = reward(rollout_of(CHAINS[1:8]))
    assert list(scores.errors) == [3]
    assert "segmentation fault" in scores.errors[3]
    # A batch of seven, a molecule that is known, seven alone.
    assert [len(batch) for batch in moody._asked] == [1, 7, 1, *[1] * 7]


def test_many_failures_in_a_row_pause_though_others_work(rollout_of):
    reward = oracle(Moody(CHAINS[1:20]), stop_after_failures=5)
    reward(rollout_of(["C"]))
    assert len(reward(rollout_of(CHAINS[1:4])).errors) == 3
    with pytest.raises(OracleFailedError, match="6 in a row cannot be scored"):
        reward(rollout_of(CHAINS[4:7]))
    never = oracle(Moody(CHAINS), stop_after_failures=None)
    assert len(never(rollout_of(CHAINS)).errors) == 30
    with pytest.raises(ValueError, match="stop_after_failures is 0"):
        oracle(Moody(), stop_after_failures=0)


class Unready(MoleculeComponent):
    def prepare(self):
        raise RuntimeError("no weights")

    def value(self, molecule, smiles):
        return 0.5


def test_what_prepare_raises_ends_the_run(rollout_of):
    with pytest.raises(ValueError, match=r"could not be prepared: RuntimeError: no weights"):
        oracle(Unready())(rollout_of(["C", "CC"]))


def test_a_full_disk_and_a_held_ledger_end_the_run_with_the_real_cause(
    tmp_path, rollout_of, monkeypatch
):
    reward = oracle(DrugLikeness(), tmp_path / "calls.db")
    reward(rollout_of(["CCO"]))
    reward.ledger._connection.execute("PRAGMA max_page_count = 8")
    long = rollout_of([f"{'C' * n}{'N' * 50}" for n in range(1, 200)])
    with pytest.raises(LedgerError, match=r"calls\.db.*database or disk is full.*Free some space"):
        reward(long)
    reward.close()
    monkeypatch.setattr("triptych.objectives.rewards.molecules.oracle_ledger._PATIENCE_S", 0.05)
    held = oracle(DrugLikeness(), tmp_path / "held.db")
    held(rollout_of(["CCO"]))
    other = sqlite3.connect(tmp_path / "held.db", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(LedgerError, match="nother process has held it"):
        held(rollout_of(["CCN"]))
    with pytest.raises(LedgerError, match="nother process has held it"):
        OracleLedger(tmp_path / "held.db", {})
    other.execute("ROLLBACK")
    assert held(rollout_of(["CCN"])).errors == {}
    held.close()
    other.close()


def test_the_file_alone_holds_the_calls(tmp_path, rollout_of):
    reward = oracle(DrugLikeness(), tmp_path / "calls.db")
    for number, finish in enumerate((reward.checkpoint, reward.close)):
        reward(rollout_of(CHAINS[number : number + 2]))
        finish()
        copy = tmp_path / f"copy_{number}.db"
        copy.write_bytes((tmp_path / "calls.db").read_bytes())
        rows = sqlite3.connect(copy).execute("SELECT smiles FROM calls").fetchall()
        assert [text for (text,) in rows] == CHAINS[: number + 2]


def test_a_ledger_of_an_earlier_version_goes_on(tmp_path, rollout_of):
    """Its failures, which were scores of 0, are made again."""
    path = tmp_path / "calls.db"
    objective = MoleculeObjective([DrugLikeness()])
    old = sqlite3.connect(path)
    old.execute("CREATE TABLE objective (description TEXT NOT NULL)")
    old.execute(
        "CREATE TABLE calls (call INTEGER PRIMARY KEY, smiles TEXT NOT NULL UNIQUE, seed INTEGER "
        "NOT NULL, score REAL, components TEXT, error TEXT)"
    )
    import rdkit

    described = {
        "keep_stereo": True,
        "rdkit": rdkit.__version__,
        "class_path": "objectives.rewards.molecules.objective.MoleculeObjective",
        "components": [
            {
                "class_path": "objectives.rewards.molecules.properties.DrugLikeness",
                "transform": {"class_path": "objectives.rewards.molecules.transforms.Identity"},
            }
        ],
        "weights": [1.0],
        "mean": "geometric",
    }
    text = json.dumps(described, indent=1, sort_keys=True)
    old.execute("INSERT INTO objective VALUES (?)", (text,))
    old.execute("INSERT INTO calls VALUES (1, 'CC', 3, 0.25, '{\"drug_likeness\": 0.25}', NULL)")
    old.execute("INSERT INTO calls VALUES (2, 'CCC', 3, 0.0, '{}', 'it took over 10 s')")
    old.commit()
    old.close()
    reward = OracleReward(objective, 10, str(path))
    scores = reward(rollout_of(["CC", "CCC"]))
    assert scores.reward_B[0] == 0.25
    assert scores.reward_B[1] > 0.3
    first, second = reward.ledger.calls()
    assert (first.raw, second.raw) == ({}, {"drug_likeness": second.score})
    reward.close()


def test_preliminary_filters_and_refusals_cost_no_call(rollout_of):
    from triptych.objectives.rewards.molecules.properties import FormalCharge
    from triptych.objectives.rewards.molecules.transforms import Step

    objective = MoleculeObjective([DrugLikeness()], preliminary=[FormalCharge(Step(0, 0))])
    reward = OracleReward(objective, 10, largest_fragment=True)
    scores = reward(rollout_of(["CC[NH3+]", "CN1CCCC1c1cccnc1.Cl", "CN1CCCC1c1cccnc1", "C1"]))
    assert scores.reward_B[[0, 3]].tolist() == [0, 0]
    assert scores.reward_B[1] == scores.reward_B[2] > 0
    assert scores.components["oracle_call"].nan_to_num(-1).tolist() == [-1, 1, 1, 0]
    assert scores.components["ruled_out"].nan_to_num(-1).tolist() == [1, 0, 0, -1]
    assert reward.num_calls == 1
    strict = OracleReward(MoleculeObjective([DrugLikeness()]), 10, keep_mixtures=False)
    assert strict(rollout_of(["CC.O"])).reward_B.tolist() == [0]
    assert strict.num_calls == 0


@pytest.fixture
def own_module(tmp_path, monkeypatch):
    """Writes a module of one's own anew, as another process would find it."""
    import sys

    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)

    def write(text: str) -> str:
        (tmp_path / "own_scores.py").write_text(text)
        sys.modules.pop("own_scores", None)
        import importlib
        import linecache

        importlib.invalidate_caches()
        linecache.clearcache()
        return "own_scores:f"

    yield write
    sys.modules.pop("own_scores", None)


def test_a_changed_function_is_refused_with_what_changed(tmp_path, rollout_of, own_module):
    from triptych.objectives.rewards.molecules.python_component import PythonComponent

    path = tmp_path / "calls.db"
    text = (
        "LEVEL = 0.25\ndef half(x):\n    return x / 2\ndef f(molecule):\n    return half(LEVEL)\n"
    )
    first = oracle(PythonComponent(own_module(text)), path)
    assert first(rollout_of(["CCO"])).reward_B.tolist() == [0.125]
    first.close()
    # What has nothing to do with it, is no change.
    same = oracle(PythonComponent(own_module("# a comment\n" + text + "\nOTHER = 2\n")), path)
    assert same(rollout_of(["CCN"])).components["oracle_call"].tolist() == [2]
    same.close()
    for old, new in (("x / 2", "x / 4"), ("0.25", "0.99"), ("half(LEVEL)", "half(LEVEL) + 0")):
        changed = oracle(PythonComponent(own_module(text.replace(old, new))), path)
        with pytest.raises(ValueError, match="another objective") as caught:
            changed(rollout_of(["CCC"]))
        assert old in str(caught.value)
        assert new in str(caught.value)


def test_changed_files_are_refused(tmp_path, rollout_of, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("weights").mkdir()
    Path("weights/a.bin").write_bytes(b"1")
    Path("oracle.sh").write_text("sed s/.*/0.25/\n")

    def ask():
        reward = oracle(ExternalProcess("sh ./oracle.sh", inputs=["weights/"]), "calls.db")
        try:
            return reward(rollout_of(["C", "CC"])).reward_B.tolist()
        finally:
            reward.close()

    assert ask() == [0.25, 0.25]
    assert ask() == [0.25, 0.25]
    Path("weights/a.bin").write_bytes(b"2")
    with pytest.raises(ValueError, match='sha256 of weights/"'):
        ask()
    Path("weights/a.bin").write_bytes(b"1")
    Path("oracle.sh").write_text("sed s/.*/0.5/\n")
    with pytest.raises(ValueError, match=r'sha256 of \./oracle\.sh"'):
        ask()


def test_failures_reach_the_tables_as_nan(rollout_of):
    reward = oracle(Moody(["CC"]))
    scores = reward(rollout_of(["C", "CC"]))
    assert torch.isnan(scores.components["moody"][1])
    assert torch.isnan(scores.components["oracle_call"][1])
