"""Deltas: applied and reverted to the bit, compared, and saved as files."""

import os
import signal
import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from tests.conftest import ROOT
from triptych.models.base_lm import BaseLMConfig
from triptych.models.remember.ledger.base_fingerprint import (
    BaseFingerprint,
    RowValues,
    values_fingerprint,
)
from triptych.models.remember.ledger.row_changes import RowChange
from triptych.models.remember.ledger.slot_deltas import SlotDelta, diff
from triptych.models.remember.memory_config import MemoryConfig
from triptych.models.remember.memory_lm import build_memory_lm, load_memory_lm
from triptych.models.remember.values.value_table import ValueTable

DTYPES = [torch.float32, torch.bfloat16, torch.float64]


class TwoTables(nn.Module):
    """Two value tables and another parameter."""

    def __init__(self, dtype: torch.dtype = torch.float32, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.around = nn.Linear(2, 2)
        self.tables = nn.ModuleList([ValueTable(12, 3, dtype=dtype), ValueTable(5, 4, dtype=dtype)])

    def snapshot(self) -> list[Tensor]:
        return [table.weight.detach().clone() for table in self.tables]

    def restore(self, snapshot: list[Tensor]) -> "TwoTables":
        for table, values in zip(self.tables, snapshot, strict=True):
            table.weight.data.copy_(values)
        return self


def bits(values: list[Tensor]) -> list[list[int]]:
    """Return every byte, so that NaN equals NaN and 0.0 differs from -0.0."""
    return [value.contiguous().view(torch.uint8).flatten().tolist() for value in values]


def learn(model: TwoTables, written: list[list[int]], **fields) -> SlotDelta:
    """Write random numbers into rows of each table, and return the delta."""
    before = model.snapshot()
    base = fields.pop("base", None) or BaseFingerprint.of(model)
    tables = []
    for table, rows, old in zip(model.tables, written, before, strict=True):
        for row in rows:
            table.weight.data[row] = torch.randn(table.value_dim).to(table.weight.dtype)
        rows = torch.tensor(sorted(rows), dtype=torch.int64)
        tables.append(RowChange(rows, old[rows], table.weight.detach()[rows].clone()))
    return SlotDelta(tuple(tables), base, **fields)


# -- apply and revert -----------------------------------------------------------------------------


@settings(deadline=None, max_examples=60)
@given(
    rows=st.sets(st.integers(0, 11), max_size=12),
    other_rows=st.sets(st.integers(0, 4), max_size=5),
    dtype=st.sampled_from(DTYPES),
    seed=st.integers(0, 2**31),
    shared_rows=st.sampled_from(["subtract", "keep"]),
    any_bits=st.booleans(),
)
def test_apply_then_revert_is_the_identity_to_the_bit(
    rows, other_rows, dtype, seed, shared_rows, any_bits
):
    model = TwoTables(dtype, seed)
    if any_bits:  # NaN, infinities, denormals, negative zeros
        for table in model.tables:
            words = torch.randint(0, 256, (table.weight.numel() * table.weight.element_size(),))
            table.weight.data = words.to(torch.uint8).view(dtype).reshape(table.weight.shape)
            table.weight.data[0] = -0.0
    base = model.snapshot()
    delta = learn(model, [list(rows), list(other_rows)])
    taught = model.snapshot()

    outcome = delta.apply(model.restore(base))
    assert bits(model.snapshot()) == bits(taught)
    assert (outcome.num_exact, outcome.num_shared) == (len(rows) + len(other_rows), 0)
    if rows or other_rows:
        outcome = delta.revert(model, shared_rows)
        assert bits(model.snapshot()) == bits(base)
        assert [exact.tolist() for exact in outcome.exact] == [sorted(rows), sorted(other_rows)]


def test_rows_that_others_wrote_by_hand():
    model = TwoTables()
    weight = model.tables[0].weight.data
    weight[:4] = torch.tensor([[1.0, 2.0, 3.0]])
    base = model.snapshot()
    delta = learn(model, [[1, 2], []])
    weight[1] = torch.tensor([1.5, 0.0, 3.0])
    delta = SlotDelta(
        (
            RowChange(torch.tensor([1, 2]), base[0][1:3], weight[1:3].clone()),
            RowChange.none(4, torch.float32),
        ),
        delta.base,
    )
    weight[1] += torch.tensor([0.0, 0.25, -1.0])  # somebody else
    taught = model.snapshot()

    outcome = delta.revert(model, "subtract")
    assert weight[1].tolist() == [1.0, 2.25, 2.0]  # 1.5 - 0.5, 0.25 + 2, 2 - 0
    assert weight[2].tolist() == [1.0, 2.0, 3.0]
    assert ([r.tolist() for r in outcome.exact], [r.tolist() for r in outcome.shared]) == (
        [[2], []],
        [[1], []],
    )
    assert str(outcome) == (
        "1 rows set to the bit, 1 rows that others wrote since shifted by the difference, inexact"
    )

    model.restore(taught)
    outcome = delta.revert(model, "keep")
    assert weight[1].tolist() == [1.5, 0.25, 2.0]
    assert weight[2].tolist() == [1.0, 2.0, 3.0]
    assert "left as they are" in str(outcome)


def test_the_difference_is_rounded_once():
    """256 - 0.5 is 256 in bfloat16, so 258 would become 2."""
    model = TwoTables(torch.bfloat16)
    base = BaseFingerprint.of(model)
    old, new = torch.full((2, 1, 3), 0.5).bfloat16()
    new.fill_(256.0)
    change = RowChange(torch.tensor([0]), old, new)
    delta = SlotDelta((change, RowChange.none(4, torch.bfloat16)), base)
    model.tables[0].weight.data[0] = 258.0
    delta.revert(model, "subtract")
    assert model.tables[0].weight[0].tolist() == [2.5, 2.5, 2.5]


def test_apply_refuses_another_base():
    base = TwoTables()
    delta = learn(TwoTables(), [[1, 4], [0]], facts=("capital of Peru",))

    other = TwoTables(seed=1)
    with pytest.raises(ValueError, match=r"delta of capital of Peru was made on another base.*exp"):
        delta.apply(other)
    with pytest.raises(ValueError, match="another base"):
        delta.revert(other)

    bigger = TwoTables()
    bigger.tables[0] = ValueTable(13, 3)
    with pytest.raises(ValueError, match="another base"):
        delta.apply(bigger)

    written = TwoTables()
    written.tables[0].weight.data[4] += 1
    before = written.snapshot()
    with pytest.raises(ValueError, match=r"1 of the 3 rows .* do not hold.*merge the two ledgers"):
        delta.apply(written)
    assert bits(written.snapshot()) == bits(before)

    delta.apply(base)
    with pytest.raises(ValueError, match=r"3 of the 3 rows .* in the model already"):
        delta.apply(base)


def test_revert_refuses_a_model_that_never_learned():
    delta = learn(TwoTables(), [[1, 4], [0]])
    with pytest.raises(ValueError, match=r"not in the model.*Give the model that learned it"):
        delta.revert(TwoTables())


def test_delta_of_the_middle_of_a_chain_adds_its_difference_to_the_base():
    model = TwoTables()
    weight = model.tables[0].weight.data
    weight[0] = torch.tensor([1.0, 1.0, 1.0])
    base, start = BaseFingerprint.of(model), model.snapshot()
    weight[0] = torch.tensor([2.0, 2.0, 2.0])
    old = weight[:1].clone()
    weight[0] = torch.tensor([2.0, 2.5, 4.0])
    change = RowChange(torch.tensor([0]), old, weight[:1].clone())
    second = SlotDelta((change, RowChange.none(4, torch.float32)), base)
    outcome = second.apply(model.restore(start))
    assert weight[0].tolist() == [1.0, 1.5, 3.0]
    assert (outcome.num_exact, outcome.num_shared) == (0, 1)


# -- fingerprints ---------------------------------------------------------------------------------


def test_fingerprint_tells_values_from_what_is_around():
    base = BaseFingerprint.of(TwoTables())
    assert BaseFingerprint.of(TwoTables()) == base

    moved = TwoTables()
    moved.tables[1].weight.data[4, 3] += 1e-3
    assert BaseFingerprint.of(moved).around == base.around
    assert BaseFingerprint.of(moved).values != base.values

    trained = TwoTables()
    trained.around.bias.data[1] += 1e-3
    assert BaseFingerprint.of(trained).around != base.around
    assert BaseFingerprint.of(trained).values == base.values

    buffered = TwoTables()
    buffered.register_buffer("keys", torch.zeros(1))
    assert BaseFingerprint.of(buffered).around != base.around
    with pytest.raises(ValueError, match="no value table"):
        BaseFingerprint.of(nn.Linear(2, 2))


@pytest.mark.parametrize("bytes_per_chunk", [24, 40, 1 << 20])
def test_fingerprint_does_not_depend_on_chunks_and_puts_rows_back(monkeypatch, bytes_per_chunk):
    model = TwoTables()
    whole = BaseFingerprint.of(model)
    monkeypatch.setattr(
        "triptych.models.remember.ledger.base_fingerprint.BYTES_PER_CHUNK", bytes_per_chunk
    )
    assert BaseFingerprint.of(model) == whole

    start = model.snapshot()
    rows = [torch.tensor([0, 5, 11]), torch.tensor([], dtype=torch.int64)]
    put_back = [RowValues(r, values[r]) for r, values in zip(rows, start, strict=True)]
    model.tables[0].weight.data[[0, 5, 11]] = 7.0
    assert values_fingerprint(model, put_back) == whole.values
    assert values_fingerprint(model) != whole.values
    assert model.tables[0].weight[5].tolist() == [7.0, 7.0, 7.0]
    model.tables[0].weight.data[6] = 7.0
    assert values_fingerprint(model, put_back) != whole.values


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize("share_values", [True, False])
@pytest.mark.parametrize("value_dtype", [None, "bfloat16"])
def test_an_exported_model_has_the_fingerprint_of_the_trained_one(
    family, share_values, value_dtype, tmp_path
):
    base = BaseLMConfig(family=family, hidden_size=16, num_layers=2, num_heads=2)
    memory = MemoryConfig(
        layers=[0, 1],
        num_keys=4,
        num_heads=2,
        top_k=2,
        share_values=share_values,
        value_dtype=value_dtype,
    )
    model = build_memory_lm(base, memory, 29).train()
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    model.save_pretrained(tmp_path)
    assert BaseFingerprint.of(load_memory_lm(tmp_path)) == BaseFingerprint.of(model)


# -- differences ----------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("bytes_per_chunk", [30, 1 << 20])
def test_difference_of_two_models_takes_one_to_the_other(dtype, bytes_per_chunk, monkeypatch):
    monkeypatch.setattr(
        "triptych.models.remember.ledger.slot_deltas.BYTES_PER_CHUNK", bytes_per_chunk
    )
    a, b = TwoTables(dtype), TwoTables(dtype)
    b.tables[0].weight.data[[1, 7, 11]] += 1
    b.tables[1].weight.data[2] *= -1
    a.tables[0].weight.data[3], b.tables[0].weight.data[3] = 0.0, -0.0
    delta = diff(a, b, label="a to b")
    assert [table.rows_U.tolist() for table in delta.tables] == [[1, 3, 7, 11], [2]]
    assert delta.label == "a to b"
    delta.apply(a)
    assert bits(a.snapshot()) == bits(b.snapshot())


def test_difference_refuses_models_that_differ_elsewhere():
    with pytest.raises(ValueError, match="another base"):
        diff(TwoTables(), TwoTables(seed=1))
    with pytest.raises(ValueError, match="two models or two deltas"):
        diff(TwoTables(), learn(TwoTables(), [[1], []]))


@settings(deadline=None, max_examples=40)
@given(
    a_rows=st.sets(st.integers(0, 11)),
    b_rows=st.sets(st.integers(0, 11)),
    dtype=st.sampled_from(DTYPES),
)
def test_difference_of_two_deltas_takes_one_to_the_other(a_rows, b_rows, dtype):
    model = TwoTables(dtype)
    base = model.snapshot()
    a = learn(model, [list(a_rows), [0]])
    taught_a = model.snapshot()
    b = learn(model.restore(base), [list(b_rows), [1]])
    taught_b = model.snapshot()
    diff(a, b).apply(model.restore(taught_a))
    assert bits(model.snapshot()) == bits(taught_b)
    assert diff(a, a).num_rows == 0


def test_difference_refuses_deltas_of_different_bases():
    a = learn(TwoTables(), [[1], []])
    with pytest.raises(ValueError, match="parameters around the value tables differ"):
        diff(a, learn(TwoTables(seed=1), [[1], []]))
    model = TwoTables()
    model.tables[0].weight.data[0] += 1
    with pytest.raises(ValueError, match=r"bases \(values differ\)"):
        diff(a, learn(model, [[1], []]))
    model = TwoTables()
    model.tables[0].weight.data[1] += 1
    in_the_middle = learn(model, [[1], []], base=a.base)
    with pytest.raises(ValueError, match="made on different values"):
        diff(a, in_the_middle)


# -- row changes ----------------------------------------------------------------------------------


def test_rows_must_be_ascending_and_fit():
    values = torch.zeros(2, 3)
    for rows in ([1, 1], [2, 1], [-1, 1]):
        with pytest.raises(ValueError, match="ascending"):
            RowChange(torch.tensor(rows), values, values)
    with pytest.raises(ValueError, match="int64"):
        RowChange(torch.tensor([1, 2], dtype=torch.int32), values, values)
    with pytest.raises(ValueError, match=r"shape \(2, D\)"):
        RowChange(torch.tensor([1, 2]), values[:1], values)
    with pytest.raises(ValueError, match=r"float32, but new values torch.bfloat16"):
        RowChange(torch.tensor([1, 2]), values, values.bfloat16())


def test_between_sorts_and_drops_rows_that_did_not_change():
    old = torch.tensor([[1.0], [2.0], [0.0], [float("nan")]])
    new = torch.tensor([[5.0], [2.0], [-0.0], [float("nan")]])
    change = RowChange.between(torch.tensor([9, 4, 2, 1]), old, new)
    assert change.rows_U.tolist() == [2, 9]
    assert change.old_UD.tolist() == [[0.0], [1.0]]


# -- files ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
def test_files_keep_everything_and_are_equal_for_equal_deltas(dtype, tmp_path):
    delta = learn(
        TwoTables(dtype), [[1, 4], []], facts=("Zürich", "b"), label="x", step=12, visit=3
    )
    delta.save(tmp_path / "a" / "one.safetensors")
    loaded = SlotDelta.load(tmp_path / "a" / "one.safetensors")
    loaded.save(tmp_path / "a" / "two.safetensors")
    one, two = sorted((tmp_path / "a").iterdir())  # and nothing besides them
    assert one.read_bytes() == two.read_bytes()

    for name in ("base", "facts", "label", "step", "visit", "reverted"):
        assert getattr(loaded, name) == getattr(delta, name)
    for own, other in zip(loaded.tables, delta.tables, strict=True):
        assert own.old_UD.dtype == dtype
        for part in ("rows_U", "old_UD", "new_UD"):
            assert bits([getattr(own, part)]) == bits([getattr(other, part)])


def test_a_fact_of_the_papers_size_takes_two_megabytes(tmp_path):
    old = torch.zeros(500, 1024, dtype=torch.bfloat16)
    change = RowChange(torch.arange(500) * 2000, old, old + 1)
    SlotDelta((change,), BaseFingerprint("0" * 64, "1" * 64), facts=("a",)).save(tmp_path / "f")
    assert 2.0e6 < (tmp_path / "f").stat().st_size < 2.1e6


def test_a_file_cut_short_or_damaged_is_named(tmp_path):
    path = tmp_path / "entry_000003.safetensors"
    delta = learn(TwoTables(), [[1, 4], [2]])
    delta.save(path)
    content = path.read_bytes()
    for length in range(0, len(content), 7):
        path.write_bytes(content[:length])
        with pytest.raises(
            ValueError, match=r"entry_000003.*(cut short|damaged).*[Cc]opy it again"
        ):
            SlotDelta.load(path)
    path.write_bytes(content[:-5] + bytes([content[-5] ^ 1]) + content[-4:])
    with pytest.raises(ValueError, match=r"entry_000003.* is damaged"):
        SlotDelta.load(path)
    with pytest.raises(FileNotFoundError, match="nowhere"):
        SlotDelta.load(tmp_path / "nowhere.safetensors")


def test_another_kind_of_file_is_refused(tmp_path):
    from safetensors.torch import save_file

    from triptych.models.tensor_file import save_tensors

    save_file({"weight": torch.zeros(2)}, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=r"model.safetensors is another kind of safetensors file"):
        SlotDelta.load(tmp_path / "model.safetensors")
    save_tensors(tmp_path / "counts.safetensors", {"counts": torch.zeros(2)}, {"format": "other"})
    with pytest.raises(ValueError, match=r"counts.safetensors is not a slot delta"):
        SlotDelta.load(tmp_path / "counts.safetensors")


def test_killed_while_writing_leaves_the_old_file(tmp_path):
    path = tmp_path / "entry_000000.safetensors"
    delta = learn(TwoTables(), [[1, 4], [2]])
    delta.save(path)
    before = path.read_bytes()
    program = (
        "import os, signal, sys, pathlib, torch\n"
        "from models import tensor_file\n"
        "def die(*_): os.kill(os.getpid(), signal.SIGKILL)\n"
        "os.fsync = die\n"
        "tensor_file.save_tensors(sys.argv[1], {'a': torch.ones(9)}, {})\n"
    )
    ended = subprocess.run(
        [sys.executable, "-c", program, str(path)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        check=False,
    )
    assert ended.returncode == -signal.SIGKILL
    assert path.read_bytes() == before
