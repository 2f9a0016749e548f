"""Ledgers: removing any fact, merging, looking up rows."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.models.remember.ledger.test_slot_deltas import DTYPES, TwoTables, bits, learn
from triptych.models.remember.ledger.base_fingerprint import BaseFingerprint
from triptych.models.remember.ledger.ledger import Ledger
from triptych.models.remember.ledger.ledger_merge import merge
from triptych.models.remember.ledger.ledger_overlap import overlap, shared_with_later
from triptych.models.remember.ledger.row_changes import RowChange
from triptych.models.remember.ledger.slot_deltas import SlotDelta

ROWS = st.sets(st.integers(0, 11), min_size=1, max_size=4)
CHAINS = st.lists(st.tuples(ROWS, st.sets(st.integers(0, 4), max_size=2)), min_size=1, max_size=6)


def teach(model: TwoTables, chain, prefix: str = "fact") -> tuple[Ledger, list]:
    """Learn facts in turn; returns the ledger, and the values before each fact and at the end."""
    base = BaseFingerprint.of(model)
    entries, states = [], [model.snapshot()]
    for number, rows in enumerate(chain):
        fields = {"facts": (f"{prefix}{number}",), "step": number + 1}
        entries.append(learn(model, [list(own) for own in rows], base=base, **fields))
        states.append(model.snapshot())
    return Ledger(entries), states


def by_hand() -> tuple[TwoTables, Ledger]:
    """Learn facts that add 1, 2 and 4 to zeros; the first two share row 1, all share row 2."""
    model = TwoTables()
    weight = model.tables[0].weight.data
    weight[:] = 0
    base, entries = BaseFingerprint.of(model), []
    for number, rows in enumerate([[0, 1, 2], [1, 2, 3], [2, 4]]):
        old = weight[rows].clone()
        weight[rows] += 2.0**number
        change = RowChange(torch.tensor(rows), old, weight[rows].clone())
        entries.append(
            SlotDelta((change, RowChange.none(4, torch.float32)), base, (f"fact{number}",))
        )
    assert first_column(model) == [1, 3, 7, 2, 4]
    return model, Ledger(entries)


def first_column(model: TwoTables) -> list[float]:
    return model.tables[0].weight[:5, 0].tolist()


def assert_chain(ledger: Ledger, base: list) -> None:
    """Check that each entry starts, to the bit, from the result of those before it."""
    values = [table.clone() for table in base]
    for entry in ledger:
        for change, table in zip(entry.tables, values, strict=True):
            assert bits([table[change.rows_U]]) == bits([change.old_UD])
            table[change.rows_U] = change.new_UD


# -- taking facts out -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shared_rows", "without_first", "without_first_two"),
    [
        # 0 alone had row 0; rows 1 and 2 were written later, row 3 is of fact 1 alone
        ("keep", [0, 3, 7, 2, 4], [0, 0, 7, 0, 4]),
        ("subtract", [0, 2, 6, 2, 4], [0, 0, 4, 0, 4]),
    ],
)
def test_by_hand(shared_rows, without_first, without_first_two):
    model, ledger = by_hand()
    reverted = ledger.revert_fact(model, "fact0", shared_rows)
    assert first_column(model) == without_first
    assert [rows.tolist() for rows in reverted.outcome.exact] == [[0], []]
    assert [rows.tolist() for rows in reverted.outcome.shared] == [[1, 2], []]
    assert reverted.outcome.kept == (shared_rows == "keep")
    assert reverted.ledger.facts == ["fact1", "fact2"]
    assert reverted.ledger.entries_of("fact0") == ([0] if shared_rows == "keep" else [])

    again = reverted.ledger.revert_fact(model, "fact1", shared_rows)
    assert first_column(model) == without_first_two
    assert [rows.tolist() for rows in again.outcome.exact] == [[1, 3], []]
    # What is left of the first two facts lies in row 2 alone, which the third has written.
    left = [again.ledger.entries[n].tables[0].rows_U.tolist() for n in range(len(again.ledger))]
    assert left == ([[2], [2], [2, 4]] if shared_rows == "keep" else [[2, 4]])
    last = again.ledger.revert_fact(model, "fact2", shared_rows)
    assert first_column(model) == [0, 0, 0, 0, 0]
    assert len(last.ledger) == 0


@settings(deadline=None, max_examples=80)
@given(chain=CHAINS, dtype=st.sampled_from(DTYPES), data=st.data())
def test_all_facts_taken_out_in_any_order_leave_the_base_to_the_bit(chain, dtype, data):
    model = TwoTables(dtype)
    ledger, states = teach(model, chain)
    order = data.draw(st.permutations(range(len(chain))))
    for number in order:
        shared_rows = data.draw(st.sampled_from(["keep", "subtract"]))
        ledger = ledger.revert_fact(model, f"fact{number}", shared_rows).ledger
        assert_chain(ledger, states[0])
    assert bits(model.snapshot()) == bits(states[0])
    assert len(ledger) == 0


@settings(deadline=None, max_examples=80)
@given(chain=CHAINS, dtype=st.sampled_from(DTYPES), data=st.data())
def test_one_fact_of_many(chain, dtype, data):
    model = TwoTables(dtype)
    ledger, states = teach(model, chain)
    number = data.draw(st.integers(0, len(chain) - 1))
    shared_rows = data.draw(st.sampled_from(["keep", "subtract"]))
    taught = states[-1]
    reverted = ledger.revert_fact(model, f"fact{number}", shared_rows)
    now = model.snapshot()
    if len(reverted.ledger):
        assert reverted.ledger.held_by(model) == len(reverted.ledger)
    for table in range(2):
        later = set().union(*(rows[table] for rows in chain[number + 1 :]))
        own = chain[number][table]
        assert set(reverted.outcome.exact[table].tolist()) == own - later
        assert set(reverted.outcome.shared[table].tolist()) == own & later
        for row in range(now[table].shape[0]):
            if row not in own:
                expected = taught[table][row]
            elif row not in later:
                expected = states[number][table][row]
            elif shared_rows == "keep":
                expected = taught[table][row]
            else:
                wide = torch.float64 if dtype == torch.float64 else torch.float32
                before, after = (states[n][table][row].to(wide) for n in (number, number + 1))
                expected = (taught[table][row].to(wide) - (after - before)).to(dtype)
            assert bits([now[table][row]]) == bits([expected])


def test_facts_taken_out_in_reverse_order_pass_through_every_state():
    model = TwoTables(torch.bfloat16)
    ledger, states = teach(model, [([0, 1], [0]), ([1, 2], [0]), ([1], [3]), ([2, 5], [])])
    for number in (3, 2, 1, 0):
        ledger = ledger.revert_fact(model, f"fact{number}").ledger
        assert bits(model.snapshot()) == bits(states[number])


def test_several_facts_at_once_equal_one_after_another():
    chain = [([0, 1], [0]), ([1, 2], [0]), ([1, 4], [3]), ([2, 1], [])]
    for shared_rows in ("keep", "subtract"):
        one, other = TwoTables(), TwoTables()
        ledger, _ = teach(one, chain)
        ledger.move(other)
        ledger.revert_facts(one, ["fact0", "fact2"], shared_rows)
        after = ledger.revert_fact(other, "fact2", shared_rows).ledger
        after.revert_fact(other, "fact0", shared_rows)
        assert bits(one.snapshot()) == bits(other.snapshot())


def test_a_fact_learned_twice_goes_with_both_entries():
    model = TwoTables()
    base = BaseFingerprint.of(model)
    start = model.snapshot()
    entries = [
        learn(model, [[0, 1], []], base=base, facts=("a",)),
        learn(model, [[5], []], base=base, facts=("b",)),
        learn(model, [[1, 2], []], base=base, facts=("a",)),
    ]
    taught = model.snapshot()
    ledger = Ledger(entries)
    assert ledger.entries_of("a") == [0, 2]
    assert [rows.tolist() for rows in ledger.rows_of("a")] == [[0, 1, 2], []]
    reverted = ledger.revert_fact(model, "a")
    assert [rows.tolist() for rows in reverted.outcome.exact] == [[0, 1, 2], []]
    start[0][5] = taught[0][5]
    assert bits(model.snapshot()) == bits(start)


def test_facts_taught_together_cannot_be_told_apart():
    model = TwoTables()
    ledger = Ledger([learn(model, [[0, 1], []], facts=("a", "b"))])
    with pytest.raises(ValueError, match=r"a was taught together with b.*facts_per_batch: 1"):
        ledger.revert_fact(model, "a")
    assert len(ledger.revert_facts(model, ["b", "a"]).ledger) == 0


def test_unknown_facts_are_named_with_those_there_are():
    model, ledger = by_hand()
    with pytest.raises(ValueError, match=r"no fact nobody.*3 facts, such as fact0, fact1, fact2"):
        ledger.revert_fact(model, "nobody")
    with pytest.raises(ValueError, match="no fact nobody"):
        ledger.rows_of("nobody")


# -- which model is it ----------------------------------------------------------------------------


def test_states_of_the_ledger_are_recognised_and_reached():
    chain = [([0, 1], [0]), ([1, 2], [0]), ([1, 4], [3])]
    model = TwoTables(torch.bfloat16)
    ledger, states = teach(model, chain)
    for start in range(4):
        for end in range(4):
            model.restore(states[start])
            assert ledger.held_by(model) == start
            ledger.move(model, to=end)
            assert bits(model.snapshot()) == bits(states[end])
    ledger.move(model.restore(states[0]))
    assert bits(model.snapshot()) == bits(states[3])
    with pytest.raises(ValueError, match="choose 0 to 3"):
        ledger.move(model, to=4)


def test_an_entry_that_the_model_does_not_hold_is_not_taken_out():
    model = TwoTables()
    ledger, states = teach(model, [([0, 1], [0]), ([1, 2], [0]), ([1, 4], [3])])
    model.restore(states[2])
    with pytest.raises(ValueError, match=r"holds the first 2 of the ledger's 3 entries, and not 2"):
        ledger.revert_fact(model, "fact2")
    ledger.revert_fact(model, "fact1")
    assert bits(model.snapshot()) == bits(states[1])


@pytest.mark.parametrize(
    ("row", "message"), [(4, "in 1 rows of the ledger"), (9, "in rows outside of the ledger")]
)
def test_a_model_changed_elsewhere_is_refused(row, message):
    model, ledger = by_hand()
    model.tables[0].weight.data[row, 1] += 1
    before = model.snapshot()
    for act in (ledger.held_by, ledger.move, lambda m: ledger.revert_fact(m, "fact1")):
        with pytest.raises(ValueError, match=message):
            act(model)
    assert bits(model.snapshot()) == bits(before)
    with pytest.raises(ValueError, match="this ledger was made on another base"):
        ledger.held_by(TwoTables(seed=1))


# -- merging --------------------------------------------------------------------------------------


def two_runs() -> tuple[TwoTables, Ledger, Ledger, list]:
    """Make ledgers from zeros that write 1, 2 to rows 0, 1 and 10, 20 to rows 1, 2."""
    model = TwoTables()
    weight = model.tables[0].weight.data
    weight[:] = 0
    base, start = BaseFingerprint.of(model), model.snapshot()
    ledgers = []
    for name, rows, values in (("first", [0, 1], [1.0, 2.0]), ("second", [1, 2], [10.0, 20.0])):
        new = torch.tensor(values)[:, None].expand(2, 3).contiguous()
        change = RowChange(torch.tensor(rows), torch.zeros(2, 3), new)
        none = RowChange.none(4, torch.float32)
        ledgers.append(Ledger([SlotDelta((change, none), base, (name,))]))
    return model, *ledgers, start


@pytest.mark.parametrize(
    ("on_conflict", "merged", "without_first"),
    [
        ("sum", [1, 12, 20], [0, 10, 20]),
        ("first", [1, 2, 20], [0, 0, 20]),
        ("last", [1, 10, 20], [0, 8, 20]),  # 10 was written over 2: 8 of it
    ],
)
def test_merge_by_hand(on_conflict, merged, without_first):
    model, first, second, start = two_runs()
    result = merge(first, second, on_conflict)
    assert [rows.tolist() for rows in result.conflicts.rows] == [[1], []]
    assert (result.conflicts.of_first, result.conflicts.of_second) == ({0: 1}, {0: 1})
    assert_chain(result.ledger, start)
    result.ledger.move(model)
    assert first_column(model)[:3] == merged
    result.ledger.revert_fact(model, "first", "subtract")
    assert first_column(model)[:3] == without_first


def test_merge_refuses_by_default_and_names_the_facts():
    _, first, second, _ = two_runs()
    with pytest.raises(ValueError, match=r"1 of the same rows: first \(1 rows\) of the first and "):
        merge(first, second)


@settings(deadline=None, max_examples=60)
@given(
    chain=CHAINS,
    other=CHAINS,
    dtype=st.sampled_from(DTYPES),
    on_conflict=st.sampled_from(["sum", "first", "last"]),
    data=st.data(),
)
def test_merged_ledgers(chain, other, dtype, on_conflict, data):
    model = TwoTables(dtype)
    first, first_states = teach(model, chain, "a")
    second, second_states = teach(model.restore(first_states[0]), other, "b")
    merged = merge(first, second, on_conflict)
    assert_chain(merged.ledger, first_states[0])
    merged.ledger.move(model.restore(first_states[0]))
    now, wide = model.snapshot(), torch.promote_types(dtype, torch.float32)
    for table in range(2):
        one, two = (set().union(*(rows[table] for rows in run)) for run in (chain, other))
        assert set(merged.conflicts.rows[table].tolist()) == one & two
        start, a, b = (s[table] for s in (first_states[0], first_states[-1], second_states[-1]))
        for row in range(start.shape[0]):
            if row in one and (row not in two or on_conflict == "first"):
                expected = a[row]
            elif row in two and (row not in one or on_conflict == "last"):
                expected = b[row]
            elif row in one and row in two:
                shift = a[row].to(wide) - start[row].to(wide)
                expected = (b[row].to(wide) + shift).to(dtype)
            else:
                expected = start[row]
            assert bits([now[table][row]]) == bits([expected])
    ledger = merged.ledger
    for fact in data.draw(st.permutations(ledger.facts)):
        ledger = ledger.revert_fact(model, fact, "subtract").ledger
    assert bits(model.snapshot()) == bits(first_states[0])


def test_merge_of_two_deltas_and_of_disjoint_ledgers():
    model, first, second, _ = two_runs()
    summed = merge(first.entries[0], second.entries[0], "sum").ledger.squashed()
    summed.apply(model)
    assert first_column(model)[:3] == [1, 12, 20]
    assert summed.facts == ("first", "second")

    one = TwoTables()
    a, states = teach(one, [([0], []), ([1], [])], "a")
    b, _ = teach(one.restore(states[0]), [([2], [])], "b")
    joined = merge(a, b)
    assert joined.conflicts.num_rows == 0
    assert joined.ledger.facts == ["a0", "a1", "b0"]


def test_merge_refuses_other_bases_and_says_which_facts_are_in_both():
    a, _ = teach(TwoTables(), [([0], [])])
    with pytest.raises(ValueError, match="different bases"):
        merge(a, teach(TwoTables(seed=1), [([0], [])])[0])
    other, _ = teach(TwoTables(), [([1], [])])
    assert merge(a, other).conflicts.facts_in_both == ("fact0",)
    same = merge(a, a)
    assert same.conflicts.num_common == len(same.ledger) == 1
    _, ledger = by_hand()
    with pytest.raises(ValueError, match="only be merged together with those before it"):
        merge(ledger.entries[0], ledger.entries[1], "sum")


# -- questions and files --------------------------------------------------------------------------


def test_rows_and_facts_are_found():
    _, ledger = by_hand()
    assert [rows.tolist() for rows in ledger.rows_of("fact1")] == [[1, 2, 3], []]
    assert ledger.facts_of(2) == ["fact0", "fact1", "fact2"]
    assert ledger.facts_of(3) == ["fact1"]
    assert ledger.facts_of(11) == ledger.facts_of(2, table=1) == []
    assert ledger.squashed().tables[0].rows_U.tolist() == [0, 1, 2, 3, 4]
    assert ledger.squashed().tables[0].new_UD[:, 0].tolist() == [1, 3, 7, 2, 4]


def test_overlap_names_the_entries_that_share_most():
    _, ledger = by_hand()
    none = torch.tensor([], dtype=torch.int64)
    found = overlap([torch.tensor([9, 3, 1, 8]), none], ledger)
    assert (found.num_rows, found.num_shared, found.share) == (4, 2, 0.5)
    assert found.rows_of_entry == {1: 2, 0: 1}
    assert list(found.rows_of_entry) == [1, 0]
    assert overlap(ledger.entries[2], ledger).rows_of_entry == {2: 2, 0: 1, 1: 1}
    assert overlap([torch.tensor([9]), none], Ledger([])).num_shared == 0


def test_rows_shared_with_later_entries_are_counted():
    assert shared_with_later(by_hand()[1]) == [2, 1, 0]
    assert shared_with_later(Ledger([])) == []


def test_folder_round_trip(tmp_path):
    model, ledger = by_hand()
    ledger.save(tmp_path / "ledger")
    assert [p.name for p in sorted((tmp_path / "ledger").iterdir())] == [
        f"entry_00000{n}.safetensors" for n in range(3)
    ]
    opened = Ledger.open(tmp_path / "ledger")
    opened.revert_fact(model, "fact0")
    assert first_column(model) == [0, 3, 7, 2, 4]
    with pytest.raises(ValueError, match="holds a ledger already"):
        opened.save(tmp_path / "ledger")


def test_broken_folders_are_named(tmp_path):
    _, ledger = by_hand()
    with pytest.raises(FileNotFoundError, match=r"no ledger .*nowhere.*SlotLedger"):
        Ledger.open(tmp_path / "nowhere")
    ledger.save(tmp_path)
    middle = tmp_path / "entry_000001.safetensors"
    content = middle.read_bytes()
    middle.write_bytes(content[:100])
    with pytest.raises(ValueError, match=r"entry_000001.safetensors is cut short or damaged"):
        Ledger.open(tmp_path)
    middle.unlink()
    with pytest.raises(ValueError, match=r"entry_000001.safetensors is missing"):
        Ledger.open(tmp_path)


def test_an_empty_ledger_says_so(tmp_path):
    with pytest.raises(ValueError, match="the ledger is empty"):
        Ledger.open(tmp_path).held_by(TwoTables())
