"""The oracle: workers that survive anything, books that are never paid twice."""

import logging
import math
import pickle
import time

import pytest
import torch

from tests.objectives.rewards.molecule_components import Breaking, Counting, NotANumber
from triptych.models.diversify.molecules.molecule import canonical_smiles
from triptych.objectives.rewards.molecules.objective import MoleculeObjective
from triptych.objectives.rewards.molecules.oracle_ledger import OracleLedger
from triptych.objectives.rewards.molecules.oracle_reward import OracleReward
from triptych.objectives.rewards.molecules.properties import DrugLikeness
from triptych.objectives.rewards.molecules.scoring_pool import ScoringPool
from triptych.objectives.rewards.molecules.transforms import Sigmoid, Step


@pytest.fixture
def counted(tmp_path):
    """Makes a reward that writes down its calls, and reads them back."""

    def make(budget=10, name="calls.db", **settings):
        own = {key: settings.pop(key) for key in ("value", "interrupt") if key in settings}
        objective = MoleculeObjective([Counting(tmp_path / "asked.txt", **own)])
        return OracleReward(objective, budget, str(tmp_path / name), **settings)

    def asked():
        file = tmp_path / "asked.txt"
        return file.read_text().split() if file.exists() else []

    make.asked = asked
    return make


def test_workers_that_die_or_hang_cost_one_molecule_each():
    pool = ScoringPool(MoleculeObjective([Breaking()]), num_workers=2, time_limit_s=2.0)
    smiles = ["C", "CCC", "CCCC", "CCCCC", "CO", "CN"]
    found = {smiles[index]: result for index, result in pool.score(smiles)}
    errors = {text: result.error for text, result in found.items() if result.error}
    assert errors == {
        "CCC": "its worker process died",
        "CCCC": "it took over 2 s",
        "CCCCC": "RuntimeError: no pentane",
    }
    assert [math.isnan(found[text].score) for text in smiles] == [text in errors for text in smiles]
    assert {found[text].score for text in ("C", "CO", "CN")} == {0.5}
    # The pool lives on, with workers it has.
    processes = {worker.process.pid for worker in pool._workers}
    assert [result.score for _, result in pool.score(["CC"])] == [0.5]
    assert {worker.process.pid for worker in pool._workers} == processes
    pool.close()
    assert pool._workers == []


def test_molecules_that_wait_behind_a_bad_one_are_scored_by_others():
    pool = ScoringPool(MoleculeObjective([Breaking()]), num_workers=2, time_limit_s=2.0)
    smiles = ["C" * length + "O" for length in range(1, 41)]
    assert len(dict(pool.score(smiles))) == 40
    pool._seconds = 1e-3  # as on an idle machine: they hold many at a time
    results = pool.score([*smiles[:20], "CCC", *smiles[20:30], "CCCC", *smiles[30:]])
    assert sum(len(worker.held) for worker in pool._workers) == 42  # none was asked for yet
    found = dict(results)
    assert sorted(found) == list(range(42))
    assert [index for index, result in sorted(found.items()) if result.score != 0.5] == [20, 31]
    assert (found[20].error, found[31].error) == ("its worker process died", "it took over 2 s")
    # A batch that dies or hangs is cut in two until it is found.
    found = {index: result.error for index, result in pool.score(["CO", "CN", "CCC", "CF"], 4)}
    assert found == {0: None, 1: None, 2: "its worker process died", 3: None}
    pool.close()


def test_slow_molecules_and_long_ones_are_not_hoarded():
    pool = ScoringPool(MoleculeObjective([Breaking()]), num_workers=2, time_limit_s=2.0)
    pool.start()
    pool._note(1e-3)
    results = pool.score(["C" * 9000, "CO", "C" * 9001, "C" * 9002, "CCO"])
    assert [len(worker.held) for worker in pool._workers] == [1, 2]  # or their pipes could fill
    assert len(dict(results)) == 5
    pool._note(0.2)
    results = pool.score(["CO"] * 9)
    assert [len(worker.held) for worker in pool._workers] == [2, 2]
    pool.close()


def test_workers_begin_before_scores_are_asked_for(counted, rollout_of):
    reward, alone = counted(num_workers=1), counted(name="alone.db")
    rollout, other = rollout_of(["C", "CC", "no", "C"]), rollout_of(["CO", "CC"])
    reward.begin(rollout)
    for _ in range(1000):
        if counted.asked():
            break
        time.sleep(0.05)
    assert counted.asked()[0] == "C"
    expected = alone(rollout)
    scores = reward(rollout)
    assert torch.equal(scores.reward_B, expected.reward_B)
    assert torch.equal(scores.components["oracle_call"], expected.components["oracle_call"])
    # What was begun for others is given up, and keeps its numbers.
    reward.begin(rollout_of(["N", "O"]))
    assert reward(other).components["oracle_call"].tolist() == [5, 2]
    assert reward(rollout_of(["O", "N"])).components["oracle_call"].tolist() == [4, 3]
    assert [call.number for call in reward.ledger.calls()] == [1, 2, 3, 4, 5]
    reward.close()


@pytest.mark.parametrize("transform", [None, Step(0, 3), Sigmoid(0, 1)])
def test_a_component_that_gives_nan_costs_one_call(rollout_of, caplog, transform):
    reward = OracleReward(MoleculeObjective([NotANumber(transform), DrugLikeness()]), budget=5)
    with caplog.at_level(logging.WARNING):
        scores = reward(rollout_of(["CC", "CCO"]))
    assert scores.reward_B[0].isnan()
    assert scores.reward_B[1] > 0
    assert scores.components["oracle_call"].nan_to_num(-1).tolist() == [-1, 2]
    assert "CC has no score: ValueError: not_a_number gives nan" in caplog.text
    assert reward.ledger.failures() == {"CC": "ValueError: not_a_number gives nan"}


@pytest.mark.parametrize(
    "text", ["C" * 200_000, "C(" * 20_000 + "C" + ")" * 20_000, "(" * 10**6, "c1ccccc1" * 2000]
)
def test_an_enormous_string_is_no_molecule_and_ends_nothing(counted, rollout_of, text):
    """RDKit ends the process on the first two."""
    reward = counted(budget=2)
    scores = reward(rollout_of([text, "CCO"]))
    assert scores.reward_B.tolist() == [0, 0.5]
    assert scores.components["oracle_call"].tolist() == [0, 1]
    assert canonical_smiles("C" * 2000) == "C" * 2000  # the longest that is read


def test_each_molecule_is_scored_once_and_invalid_ones_cost_nothing(counted, rollout_of):
    reward = counted()
    scores = reward(rollout_of(["OCC", "C1CC", "CCO", "CN", ""]))
    assert scores.reward_B.tolist() == [0.5, 0, 0.5, 0.5, 0]
    assert scores.components["oracle_call"].tolist() == [1, 0, 1, 2, 0]
    assert scores.errors == {}
    again = reward(rollout_of(["NC", "CC"]))
    assert again.components["oracle_call"].tolist() == [2, 3]
    assert counted.asked() == ["CCO", "CN", "CC"]
    assert (reward.num_calls, reward.is_spent) == (3, False)
    calls = reward.ledger.calls()
    assert [(call.number, call.smiles, call.score) for call in calls] == [
        (1, "CCO", 0.5), (2, "CN", 0.5), (3, "CC", 0.5),
    ]  # fmt: skip
    assert calls[0].components == {"counting": 0.5}


def test_a_spent_budget_scores_what_it_knows_and_nothing_else(counted, rollout_of):
    reward = counted(budget=2)
    scores = reward(rollout_of(["C", "CC", "CCC", "C"]))
    assert scores.reward_B.isnan().tolist() == [False, False, True, False]
    assert scores.errors == {2: "the budget of 2 oracle calls is spent"}
    assert scores.over_budget == {2}
    assert reward.is_spent
    assert reward(rollout_of(["CC"])).reward_B.tolist() == [0.5]
    assert counted.asked() == ["C", "CC"]


def test_a_killed_run_goes_on_and_pays_nothing_twice(counted, rollout_of):
    texts = ["C", "CC", "CCC", "CCCC"]
    with pytest.raises(KeyboardInterrupt):
        counted(budget=4, interrupt=True, seed=1)(rollout_of(texts))
    resumed = counted(budget=4, seed=2)
    assert resumed.num_calls == 4  # reserved
    scores = resumed(rollout_of(["CCCC", "N", "C"]))
    assert scores.components["oracle_call"].nan_to_num(-1).tolist() == [4, -1, 1]
    assert resumed(rollout_of(texts)).components["oracle_call"].tolist() == [1, 2, 3, 4]
    assert counted.asked() == ["C", "CC", "CCCC", "CCC"]
    assert [call.seed for call in resumed.ledger.calls()] == [1, 1, 1, 1]


def test_another_run_shares_the_ledger_of_the_same_objective_only(counted, rollout_of):
    counted(seed=1)(rollout_of(["C", "CC"]))
    other = counted(seed=2)
    assert other(rollout_of(["CC", "CCC"])).components["oracle_call"].tolist() == [2, 3]
    assert [call.seed for call in other.ledger.calls()] == [1, 1, 2]
    changed = counted(value=0.75)
    with pytest.raises(ValueError, match="another objective") as caught:
        changed(rollout_of(["C"]))
    assert '-   "constant": 0.5' in str(caught.value)
    assert '+   "constant": 0.75' in str(caught.value)
    assert "transform" not in str(caught.value)  # only what differs is shown


def test_two_open_ledgers_never_give_one_number_twice(tmp_path):
    ledgers = [OracleLedger(tmp_path / "calls.db", {"a": 1}) for _ in range(2)]
    assert ledgers[0].reserve(["C", "CC"], budget=4, seed=0) == {"C": 1, "CC": 2}
    assert ledgers[1].reserve(["CC", "N", "O", "F"], budget=4, seed=0) == {"CC": 2, "N": 3, "O": 4}
    ledgers[0].fail({"C": "broke", "CC": "broke"})
    assert ledgers[1].failures() == {"C": "broke", "CC": "broke"}
    ledgers[0].record("C", 0.1, {}, {"weight": 16.0}, {"docking": "a pose"})
    assert ledgers[1].look_up(["C", "CC"])["C"].raw == {"weight": 16.0}
    assert ledgers[1].poses("C") == {"docking": "a pose"}
    assert ledgers[1].failures() == {"CC": "broke"}
    assert list(ledgers[1].look_up(["C", "CC"])) == ["C"]
    assert len(ledgers[1]) == 4
    for ledger in ledgers:
        ledger.close()


def test_a_ledger_takes_over_the_calls_of_another(tmp_path):
    first = OracleLedger(tmp_path / "first.db", {"a": 1})
    first.reserve(["C", "CC"], budget=3, seed=5)
    first.record("C", 0.25, {"part": 0.5}, {"part": -3.0}, {"part": "a pose"})
    second = OracleLedger(tmp_path / "second.db", {"a": 1})
    second.copy_from(tmp_path / "first.db")
    assert second.calls() == first.calls()
    assert second.poses("C") == {"part": "a pose"}
    assert second.reserve(["N", "CC", "O"], budget=3, seed=6) == {"CC": 2, "N": 3}
    assert len(first) == 2  # which is left as it was
    with pytest.raises(ValueError, match="has calls of its own"):
        second.copy_from(tmp_path / "first.db")
    with pytest.raises(ValueError, match="another objective"):
        OracleLedger(tmp_path / "third.db", {"a": 2}).copy_from(tmp_path / "first.db")


def test_mistakes(tmp_path, counted):
    with pytest.raises(ValueError, match="budget is 0"):
        counted(budget=0)
    with pytest.raises(ValueError, match="num_workers is -1"):
        counted(num_workers=-1)
    with pytest.raises(ValueError, match="time_limit_s is 0"):
        counted(time_limit_s=0)
    (tmp_path / "text.db").write_text("no ledger " * 500)
    with pytest.raises(ValueError, match=r"text\.db is no ledger of oracle calls"):
        OracleLedger(tmp_path / "text.db", {})
    ledger = OracleLedger(None, {})
    ledger.reserve(["C"], 1, 0)
    with pytest.raises(ValueError, match="which is no number"):
        ledger.record("C", float("nan"), {})


def test_it_keeps_the_contract_of_rewards(rollout_of):
    reward = OracleReward.example()
    rollout = rollout_of(["", "apple", "CCO", "c1ccccc1", "\ufffd\x00"])
    scores = reward(rollout)
    assert scores.reward_B.dtype == torch.float32
    assert scores.reward_B.tolist()[:2] == [0, 0]
    assert 0 < scores.reward_B[2] < 1
    again = pickle.loads(pickle.dumps(reward))
    torch.testing.assert_close(again(rollout).reward_B, scores.reward_B)
    assert reward(rollout_of([])).reward_B.shape == (0,)
    assert reward.name == "oracle_reward"
    assert isinstance(reward.objective.components[0], DrugLikeness)


def test_isotopes_are_an_option(counted, rollout_of):
    texts = ["[2H]C([2H])[2H]", "C", "[13CH4]", "[Na+].[2H]CC(=O)[O-]"]
    plain = counted(name="plain.db", keep_isotopes=False, largest_fragment=True)
    assert plain(rollout_of(texts)).components["oracle_call"].tolist() == [1, 1, 1, 2]
    assert plain.canonical(texts[3]) == "CC(=O)[O-]"
    kept = counted(name="kept.db")
    assert kept(rollout_of(texts)).components["oracle_call"].tolist() == [1, 2, 3, 4]
    plain.close()
    with pytest.raises(ValueError, match="keep_isotopes"):
        counted(name="plain.db")(rollout_of(texts))
    kept.close()


def test_an_emptied_ledger_is_no_new_one(counted, rollout_of, tmp_path):
    (tmp_path / "calls.db").touch()
    with pytest.raises(ValueError, match=r"calls\.db is empty \(0 bytes\)"):
        counted()(rollout_of(["C"]))
    (tmp_path / "calls.db").unlink()
    assert counted()(rollout_of(["C"])).components["oracle_call"].tolist() == [1]
