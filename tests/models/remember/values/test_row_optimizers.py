"""Row optimizers against torch's on one parameter per row; no other row changes."""

import copy
import pickle

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from triptych.models.remember.values.row_optimizers import (
    RowAdagrad,
    RowAdamW,
    RowOptimizer,
    RowSGD,
    build_row_optimizer,
)
from triptych.models.remember.values.row_positions import RowPositions

ADAMW = {"lr": 0.1, "betas": (0.8, 0.95), "eps": 1e-6, "weight_decay": 0.3}
CASES = {
    "sgd": (lambda: RowSGD(0.1), lambda p: torch.optim.SGD(p, lr=0.1)),
    "sgd with momentum and decay": (
        lambda: RowSGD(0.1, momentum=0.9, weight_decay=0.2),
        lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=0.2),
    ),
    "adagrad": (
        lambda: RowAdagrad(0.1, weight_decay=0.2),
        lambda p: torch.optim.Adagrad(p, lr=0.1, weight_decay=0.2),
    ),
    "adamw": (
        lambda: RowAdamW(0.1, (0.8, 0.95), 1e-6, 0.3),
        lambda p: torch.optim.AdamW(p, **ADAMW),
    ),
}
every_optimizer = pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())


def selections(
    num_steps: int = 12, num_slots: int = 40, width: int = 5
) -> list[tuple[Tensor, Tensor]]:
    """Make rows in random order, some in many steps, and their gradients."""
    steps = []
    for _ in range(num_steps):
        rows = torch.randperm(num_slots // 2)[: int(torch.randint(1, 9, ()))] * 2
        steps.append((rows, torch.randn(rows.numel(), width)))
    return steps


@every_optimizer
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_each_row_moves_as_a_parameter_of_its_own(case, dtype):
    build, build_torch = case
    table = torch.randn(40, 5, dtype=dtype)
    parameters = [nn.Parameter(row.clone()) for row in table]
    peers = [build_torch([parameter]) for parameter in parameters]
    optimizer = build()
    for rows, grad in selections():
        optimizer.step(table, rows, grad)
        for row, its_grad in zip(rows.tolist(), grad, strict=True):
            parameters[row].grad = its_grad.to(dtype)
            peers[row].step()
    expected = torch.stack([parameter.detach() for parameter in parameters])
    tolerance = {torch.float32: 2e-6, torch.float64: 1e-12}[dtype]
    torch.testing.assert_close(table, expected, rtol=tolerance, atol=tolerance)


def test_adamw_by_hand():
    # After n equal gradients the corrected moments are the gradient and its square, so each step
    # is -rate * sign, after the decay of 1 - 0.5 * 0.2 = 0.9.
    table = torch.tensor([[10.0], [10.0], [10.0]])
    optimizer = RowAdamW(0.5, eps=0.0, weight_decay=0.2)
    optimizer.step(table, torch.tensor([0]), torch.tensor([[4.0]]))
    assert table.flatten().tolist() == [8.5, 10.0, 10.0]
    optimizer.step(table, torch.tensor([2, 0]), torch.tensor([[-1.0], [4.0]]))
    assert table.flatten().tolist() == pytest.approx([8.5 * 0.9 - 0.5, 10.0, 9.5])


def test_sgd_and_adagrad_by_hand():
    table = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    RowSGD(0.5).step(table, torch.tensor([1]), torch.tensor([[2.0, -2.0]]))
    assert table.tolist() == [[1.0, 2.0], [2.0, 5.0]]
    optimizer = RowAdagrad(0.5, eps=0.0)
    for _ in range(2):
        optimizer.step(table, torch.tensor([0]), torch.tensor([[3.0, 3.0]]))
    # 0.5 * (3 / 3 + 3 / sqrt(18)) = 0.5 * (1 + 1 / sqrt(2))
    expected = [1 - 0.8535534, 2 - 0.8535534]
    assert table[0].tolist() == pytest.approx(expected, rel=1e-6)


@every_optimizer
@given(data=st.data())
@settings(max_examples=25, deadline=None)
def test_no_other_row_moves_by_a_bit(case, data):
    build, _ = case
    num_slots = data.draw(st.integers(1, 30))
    dtype = data.draw(st.sampled_from([torch.float32, torch.bfloat16]))
    width = data.draw(st.integers(1, 4))
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 2**16)))
    table = torch.randn(num_slots, width, generator=generator).to(dtype)
    table[0] = torch.tensor(float("nan"))  # whatever a row holds
    before, optimizer, ever = table.clone(), build(), set()
    for _ in range(data.draw(st.integers(1, 5))):
        rows = data.draw(st.lists(st.integers(0, num_slots - 1), unique=True))
        ever |= set(rows)
        grad = torch.randn(len(rows), width, generator=generator)
        optimizer.step(table, torch.tensor(rows, dtype=torch.int64), grad)
    others = [row for row in range(num_slots) if row not in ever]
    bits = {torch.float32: torch.int32, torch.bfloat16: torch.int16}[dtype]
    assert torch.equal(table[others].view(bits), before[others].view(bits))
    if optimizer.state_names:
        assert sorted(optimizer.rows.tolist()) == sorted(ever)


@every_optimizer
def test_a_bfloat16_table_is_rounded_once_from_float32(case):
    build, _ = case
    exact, rounded = (torch.randn(40, 5).bfloat16() for _ in range(2))
    rounded.copy_(exact)
    exact = exact.float()
    ours, reference = build(), build()
    for rows, grad in selections():
        exact[rows] = rounded[rows].float()
        reference.step(exact, rows, grad)
        ours.step(rounded, rows, grad)
        # Up or down, to one of the two nearest numbers.
        assert ((rounded[rows].float() - exact[rows]).abs() < exact[rows].abs() * 2**-7).all()
    state = ours.state_dict()["state"]
    assert all(state[name].dtype == torch.float32 for name in ours.state_names)


@every_optimizer
@pytest.mark.parametrize("stop", [0, 1, 7])
def test_going_on_from_a_saved_state_changes_nothing(case, stop, tmp_path):
    build, _ = case
    steps = selections()
    whole, table = build(), torch.randn(40, 5)
    stopped_table = table.clone()
    first = build()
    for number, (rows, grad) in enumerate(steps):
        whole.step(table, rows, grad)
        if number < stop:
            first.step(stopped_table, rows, grad)
    torch.save(first.state_dict(), tmp_path / "state.pt")
    second = build()
    second.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    for rows, grad in steps[stop:]:
        second.step(stopped_table, rows, grad)
    assert torch.equal(stopped_table, table)
    assert torch.equal(second.rows, whole.rows)


def test_a_saved_state_is_a_copy():
    optimizer, table = RowAdamW(0.1), torch.randn(9, 3)
    rows = torch.tensor([2, 5])
    optimizer.step(table, rows, torch.ones(2, 3))
    saved = optimizer.state_dict()
    kept = copy.deepcopy(saved)
    optimizer.step(table, rows, torch.ones(2, 3))
    assert torch.equal(saved["state"]["first_moment"], kept["state"]["first_moment"])
    assert saved["state"]["steps"].tolist() == [1, 1]
    assert optimizer.state_dict()["state"]["steps"].tolist() == [2, 2]


def test_steps_are_counted_for_each_row():
    optimizer, table = RowAdamW(0.1), torch.randn(9, 3)
    for rows in ([4, 1], [1], [8, 1]):
        optimizer.step(table, torch.tensor(rows), torch.ones(len(rows), 3))
    saved = optimizer.state_dict()
    assert saved["rows"].tolist() == [4, 1, 8]
    assert saved["state"]["steps"].tolist() == [1, 3, 1]


def test_state_is_as_large_as_the_rows_ever_given_and_not_as_the_table():
    optimizer = RowAdamW(0.1)
    table = torch.zeros(100_000, 16)
    for start in range(0, 200, 20):
        rows = torch.arange(start, start + 20) * 450
        for _ in range(2):
            optimizer.step(table, rows, torch.ones(20, 16))
    # Two moments, a step count, and the row's id and position.
    needed = 200 * (2 * 16 * 4 + 8 + 16)
    assert needed <= optimizer.num_bytes() <= 1.5 * needed
    assert RowSGD(0.1).num_bytes() == 0


def test_sgd_without_momentum_keeps_nothing():
    optimizer, table = RowSGD(0.1), torch.zeros(9, 3)
    optimizer.step(table, torch.tensor([3]), torch.ones(1, 3))
    assert optimizer.num_bytes() == 0
    assert optimizer.state_dict()["state"] == {}
    assert optimizer.rows.numel() == 0


def test_no_rows_at_all():
    optimizer, table = RowAdamW(0.1), torch.zeros(9, 3)
    optimizer.step(table, torch.empty(0, dtype=torch.int64), torch.empty(0, 3))
    assert not table.any()
    assert optimizer.rows.numel() == 0


def test_a_parameter_is_updated_in_place_without_autograd():
    weight = nn.Parameter(torch.zeros(4, 2))
    RowSGD(1.0).step(weight, torch.tensor([3]), torch.ones(1, 2))
    assert weight[3].tolist() == [-1.0, -1.0]
    assert weight.grad is None
    assert weight.is_leaf


def test_the_learning_rate_may_change():
    table, optimizer = torch.zeros(2, 1), RowSGD(1.0)
    optimizer.learning_rate = 0.25
    optimizer.step(table, torch.tensor([0]), torch.ones(1, 1))
    assert table.flatten().tolist() == [-0.25, 0.0]


def test_copies_and_pickles():
    optimizer, table = RowAdamW(0.1), torch.randn(9, 3)
    optimizer.step(table, torch.tensor([4]), torch.ones(1, 3))
    for again in (copy.deepcopy(optimizer), pickle.loads(pickle.dumps(optimizer))):
        assert again.rows.tolist() == [4]


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (lambda: RowSGD(-1.0), "learning_rate is -1.0"),
        (lambda: RowSGD(float("nan")), "learning_rate is nan"),
        (lambda: RowSGD(1.0, momentum=-0.5), "momentum is -0.5"),
        (lambda: RowAdagrad(1.0, weight_decay=-1), "weight_decay is -1"),
        (lambda: RowAdamW(1.0, (0.9, 1.0)), "betas are"),
        (lambda: RowAdamW(1.0, eps=-1.0), "eps is -1.0"),
    ],
)
def test_settings_that_cannot_work(build, words):
    with pytest.raises(ValueError, match=words):
        build()


def test_an_optimizer_by_its_name():
    sgd = build_row_optimizer("sgd", 2.0, 0.1, momentum=0.5)
    assert (type(sgd), sgd.learning_rate, sgd.weight_decay, sgd.momentum) == (RowSGD, 2, 0.1, 0.5)
    adamw = build_row_optimizer("adamw", 2.0, 0.1, (0.5, 0.6))
    assert (type(adamw), adamw.weight_decay, adamw.betas) == (RowAdamW, 0.1, (0.5, 0.6))
    adagrad = build_row_optimizer("adagrad", 2.0, 0.1)
    assert (type(adagrad), adagrad.weight_decay) == (RowAdagrad, 0.1)
    with pytest.raises(ValueError, match="optimizer is 'lion': choose sgd, adagrad or adamw"):
        build_row_optimizer("lion", 1.0)


def test_rows_and_gradients_that_do_not_fit():
    with pytest.raises(ValueError, match=r"\(2,\) rows with a gradient of shape \(1, 3\)"):
        RowSGD(0.1).step(torch.zeros(9, 3), torch.tensor([1, 2]), torch.ones(1, 3))


@pytest.mark.parametrize(
    ("ours", "other"),
    [(RowSGD(0.1), RowAdamW(0.1)), (RowSGD(0.1), RowSGD(0.1, momentum=0.9))],
)
def test_the_state_of_another_optimizer(ours: RowOptimizer, other: RowOptimizer):
    other.step(torch.zeros(9, 3), torch.tensor([1]), torch.ones(1, 3))
    with pytest.raises(ValueError, match="resume with the optimizer and the momentum"):
        ours.load_state_dict(other.state_dict())


@given(st.lists(st.lists(st.integers(0, 50), unique=True), max_size=6))
@settings(max_examples=100, deadline=None)
def test_positions_are_those_of_a_dictionary(batches):
    positions, expected = RowPositions(), {}
    for batch in batches:
        rows = torch.tensor(batch, dtype=torch.int64)
        for row in batch:
            expected.setdefault(row, len(expected))
        assert positions.add(rows).tolist() == [expected[row] for row in batch]
    assert positions.rows.tolist() == list(expected)
    assert positions.sorted_rows.tolist() == sorted(expected)
    again = RowPositions()
    again.load(positions.rows)
    assert again.add(positions.sorted_rows).tolist() == [expected[row] for row in sorted(expected)]
    assert len(again) == len(expected)
