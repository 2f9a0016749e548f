"""The value table: forward, dense gradient and selected rows against references."""

import copy
import pickle

import pytest
import torch
import torch.utils.checkpoint
from torch import Tensor, nn

from triptych.models.remember.index.product_keys import ProductKeyIndex
from triptych.models.remember.memory_layer import MemoryLayer
from triptych.models.remember.values.value_table import ValueTable

WIDTHS = [1, 37, 64, 896]


def reads(
    num_slots: int, num_bags: int = 9, num_reads: int = 6, dtype: torch.dtype = torch.float32
) -> tuple[Tensor, Tensor, Tensor]:
    """Make slots with repeats, weights, and a function of the output to differentiate."""
    ids = torch.randint(num_slots, (num_bags, num_reads))
    ids[:, 0] = 2
    return ids, torch.rand(num_bags, num_reads, dtype=dtype), torch.randn(num_bags, 1, dtype=dtype)


def run(table: ValueTable, ids: Tensor, weights: Tensor, factor: Tensor) -> Tensor:
    """Run forward and backward of a loss with a different gradient for every output."""
    out = table(ids, weights)
    (out.square() * factor).sum().backward()
    return out.detach()


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_forward_is_a_weighted_sum_of_rows(width, dtype):
    table = ValueTable(20, width, dtype=dtype)
    ids, weights, _ = reads(20, dtype=dtype)
    expected = torch.einsum("bk,bkd->bd", weights, table.weight[ids])
    torch.testing.assert_close(table(ids, weights), expected)


def test_by_hand():
    table = ValueTable(3, 2, gradient="selected_rows")
    table.weight.data = torch.tensor([[1.0, 0.0], [0.0, 2.0], [4.0, 4.0]])
    weights = torch.tensor([[0.5, 0.25]], requires_grad=True)
    out = table(torch.tensor([[0, 2]]), weights)
    assert out.tolist() == [[1.5, 1.0]]
    out.backward(torch.tensor([[1.0, 10.0]]))
    assert weights.grad.tolist() == [[1.0, 44.0]]
    gradient = table.row_gradient()
    assert gradient.rows_U.tolist() == [0, 2]
    assert gradient.grad_UD.tolist() == [[0.5, 5.0], [0.25, 2.5]]


@pytest.mark.parametrize("width", WIDTHS)
def test_dense_gradient_is_that_of_embedding_bag(width):
    table = ValueTable(20, width)
    peer = nn.EmbeddingBag.from_pretrained(table.weight.detach().clone(), freeze=False, mode="sum")
    ids, weights, factor = reads(20)
    ours, theirs = (weights.clone().requires_grad_() for _ in range(2))
    out = run(table, ids, ours, factor)
    expected = peer(ids, per_sample_weights=theirs)
    (expected.square() * factor).sum().backward()
    torch.testing.assert_close(out, expected.detach())
    torch.testing.assert_close(table.weight.grad, peer.weight.grad)
    torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("gradient", ["dense", "selected_rows"])
def test_gradcheck_of_the_weights(gradient):
    table = ValueTable(7, 5, gradient, dtype=torch.float64)
    ids = torch.randint(7, (3, 4))
    weights = torch.rand(3, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda w: table(ids, w), (weights,))


def test_gradcheck_of_the_values():
    table = ValueTable(7, 5, dtype=torch.float64)
    ids, weights = torch.randint(7, (3, 4)), torch.rand(3, 4, dtype=torch.float64)

    def gather(values: Tensor) -> Tensor:
        return torch.func.functional_call(table, {"weight": values}, (ids, weights))

    assert torch.autograd.gradcheck(gather, (table.weight,))


def twins(num_slots: int, width: int, **settings) -> tuple[ValueTable, ValueTable]:
    """Make the same table in both modes."""
    dense = ValueTable(num_slots, width, **settings)
    selected = copy.deepcopy(dense)
    selected.set_gradient("selected_rows")
    return dense, selected


@pytest.mark.parametrize("width", WIDTHS)
def test_every_row_read_gets_its_dense_gradient(width):
    dense, selected = twins(50, width)
    batch = reads(50)
    torch.testing.assert_close(run(dense, *batch), run(selected, *batch), rtol=0, atol=0)
    assert selected.weight.grad is None
    rows, grad = selected.row_gradient()
    assert torch.equal(rows, batch[0].unique())
    assert torch.equal(grad, dense.weight.grad[rows])
    untouched = torch.ones(50, dtype=torch.bool)
    untouched[rows] = False
    assert not dense.weight.grad[untouched].any()


def test_named_rows_only_and_zero_where_nothing_was_read():
    dense, selected = twins(50, 37)
    batch = reads(20)  # slots 20 to 49 are never read
    run(dense, *batch)
    run(selected, *batch)
    rows, grad = selected.row_gradient(torch.tensor([45, 2, 7, 30]))
    assert rows.tolist() == [2, 7, 30, 45]
    torch.testing.assert_close(grad, dense.weight.grad[rows])
    assert grad[0].any()
    assert not grad[2:].any()


def test_micro_batches_and_sharing_layers_add_up_to_one_batch():
    dense, selected = twins(50, 8, dtype=torch.float64)
    whole = reads(50, num_bags=12, dtype=torch.float64)
    run(dense, *whole)
    for start in range(0, 12, 4):
        first, second = (
            [part[start + offset : start + offset + 2] for part in whole] for offset in (0, 2)
        )
        # Two layers read the same table in one forward.
        loss = sum((selected(i, w).square() * f).sum() for i, w, f in (first, second))
        loss.backward()
    assert selected.weight.grad is None
    assert len(selected.reads) == 6
    rows, grad = selected.row_gradient()
    torch.testing.assert_close(grad, dense.weight.grad[rows])
    assert torch.equal(rows, whole[0].unique())
    some = rows[::3].flip(0)
    named, grad = selected.row_gradient(some)
    assert torch.equal(named, some.flip(0))
    torch.testing.assert_close(grad, dense.weight.grad[named])
    selected.clear_reads()
    assert selected.row_gradient().rows_U.numel() == 0


def test_no_reads_at_all():
    table = ValueTable(9, 5, "selected_rows")
    rows, grad = table.row_gradient()
    assert rows.shape == (0,)
    assert grad.shape == (0, 5)
    rows, grad = table.row_gradient(torch.tensor([4, 1]))
    assert rows.tolist() == [1, 4]
    assert not grad.any()


@pytest.mark.parametrize("gradient", ["dense", "selected_rows"])
def test_an_empty_batch(gradient):
    table = ValueTable(9, 5, gradient)
    weights = torch.empty(0, 3, requires_grad=True)
    out = table(torch.empty(0, 3, dtype=torch.int64), weights)
    assert out.shape == (0, 5)
    out.sum().backward()
    assert weights.grad.shape == (0, 3)


def test_bfloat16_table_sums_its_gradient_in_float32():
    dense, selected = twins(30, 37, dtype=torch.bfloat16)
    ids, weights, _ = reads(30)
    grad_out = torch.randn(9, 37).bfloat16()
    for table in (dense, selected):
        out = table(ids, weights)
        assert out.dtype == torch.bfloat16
        out.backward(grad_out)
    exact = torch.zeros(30, 37, dtype=torch.float64)
    parts = weights.double().unsqueeze(-1) * grad_out.double().unsqueeze(1)
    exact.index_put_((ids,), parts, accumulate=True)
    rows, grad = selected.row_gradient()
    assert grad.dtype == torch.float32
    torch.testing.assert_close(grad.double(), exact[rows], rtol=1e-6, atol=1e-6)
    assert dense.weight.grad.dtype == torch.bfloat16
    assert torch.equal(dense.weight.grad[rows], grad.bfloat16())


def test_bfloat16_weights_gradient():
    table = ValueTable(30, 37, dtype=torch.bfloat16)
    ids, weights, _ = reads(30)
    weights.requires_grad_()
    grad_out = torch.randn(9, 37).bfloat16()
    table(ids, weights).backward(grad_out)
    expected = torch.einsum("bd,bkd->bk", grad_out.double(), table.weight.detach()[ids].double())
    assert weights.grad.dtype == torch.float32
    torch.testing.assert_close(weights.grad.double(), expected, rtol=2e-2, atol=5e-2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_repeats_to_the_bit(dtype):
    results = []
    for _ in range(2):
        torch.manual_seed(3)
        dense, selected = twins(300, 37, dtype=dtype)
        ids, weights, factor = reads(300, num_bags=64, num_reads=32)
        weights.requires_grad_()
        out = run(dense, ids, weights, factor)
        run(selected, ids, weights, factor)
        results.append((out, weights.grad, dense.weight.grad, *selected.row_gradient()))
    assert all(torch.equal(one, two) for one, two in zip(*results, strict=True))


def test_gradient_checkpointing_counts_reads_once():
    table = ValueTable(30, 8, "selected_rows")
    ids, weights, _ = reads(30)
    weights.requires_grad_()
    out = torch.utils.checkpoint.checkpoint(
        lambda w: table(ids, w.softmax(-1)), weights, use_reentrant=False
    )
    out.sum().backward()
    assert len(table.reads) == 1
    checkpointed = table.row_gradient()
    table.clear_reads()
    table(ids, weights.softmax(-1)).sum().backward()
    assert torch.equal(checkpointed.grad_UD, table.row_gradient().grad_UD)


def test_reading_without_gradient_leaves_no_reads():
    table = ValueTable(30, 8, "selected_rows")
    ids, weights, factor = reads(30)
    with torch.no_grad():
        table(ids, weights)
    assert table.reads == []
    table.weight.requires_grad_(False)
    weights.requires_grad_()
    run(table, ids, weights, factor)
    assert table.reads == []
    assert weights.grad is not None


def test_frozen_weights_form_no_weight_gradient():
    table = ValueTable(30, 8)
    ids, weights, factor = reads(30)
    run(table, ids, weights, factor)
    assert table.weight.grad is not None
    assert weights.grad is None


def anchored(num_slots: int, width: int, **settings) -> tuple[ValueTable, nn.Parameter]:
    """Make a frozen table with an anchor, so that it records reads."""
    table = ValueTable(num_slots, width, "selected_rows", **settings)
    table.weight.requires_grad_(False)
    anchor = nn.Parameter(torch.zeros(()))
    table.set_anchor(anchor)
    return table, anchor


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_anchor_records_the_reads_of_a_frozen_table(dtype):
    table, anchor = anchored(50, 37, dtype=dtype)
    learning = copy.deepcopy(table)
    learning.weight.requires_grad_(True)
    learning.set_anchor(None)
    batch = reads(50)
    assert torch.equal(run(table, *batch), run(learning, *batch))
    assert len(table.reads) == 1
    ours, theirs = table.row_gradient(), learning.row_gradient()
    assert torch.equal(ours.rows_U, theirs.rows_U)
    assert torch.equal(ours.grad_UD, theirs.grad_UD)
    assert ours.grad_UD.any()
    assert table.weight.grad is None
    assert anchor.grad.shape == ()
    assert anchor.grad.item() == 0.0


def test_an_anchor_needs_no_gradient_of_the_softmax_weights(monkeypatch):
    def refuse(*_):
        raise AssertionError("no gradient of the weights is needed")

    monkeypatch.setattr("triptych.models.remember.values.value_table.weight_gradient", refuse)
    table, _ = anchored(50, 8)
    ids, weights, factor = reads(50)
    run(table, ids, weights, factor)
    assert weights.grad is None
    with pytest.raises(AssertionError, match="no gradient of the weights"):
        run(table, ids, weights.requires_grad_(), factor)


def test_with_an_anchor_nothing_below_the_memory_layer_is_differentiated():
    table, anchor = anchored(64, 6)
    below, above = nn.Linear(5, 6), nn.Linear(6, 2)
    layer = MemoryLayer(6, 3, ProductKeyIndex(8, 2, 4), table)
    for module in (below, layer, above):
        module.requires_grad_(False)
    entering = []
    layer.register_forward_pre_hook(lambda _, inputs: entering.append(inputs[0]))
    above(layer(below(torch.randn(4, 7, 5)))).square().sum().backward()
    assert entering[0].grad_fn is None
    assert not entering[0].requires_grad
    everything = [*below.parameters(), *layer.parameters(), *above.parameters(), table.weight]
    assert all(parameter.grad is None for parameter in everything)
    assert anchor.grad is not None
    assert table.row_gradient().grad_UD.any()


def test_an_anchor_is_no_parameter_of_the_table_and_is_copied_with_its_owner():
    table, anchor = anchored(5, 3)
    assert [name for name, _ in table.named_parameters()] == ["weight"]
    assert list(table.state_dict()) == ["weight"]
    owner = nn.Module()
    owner.anchor, owner.table = anchor, table
    again = copy.deepcopy(owner)
    assert again.table.anchor is again.anchor
    assert again.anchor is not anchor
    table.set_anchor(None)
    run_ids, weights, _ = reads(5)
    assert not table(run_ids, weights).requires_grad


def test_an_anchor_tells_a_gradient_that_is_not_finite():
    table, anchor = anchored(9, 4)
    ids, weights, factor = reads(9)
    factor[3] = float("inf")
    run(table, ids, weights, factor)
    assert anchor.grad.isnan()


def test_an_anchor_counts_only_while_rows_are_selected():
    table, _ = anchored(9, 4)
    ids, weights, _ = reads(9)
    table.set_gradient("dense")
    assert not table(ids, weights).requires_grad
    table.set_gradient("selected_rows")
    with torch.no_grad():
        table(ids, weights)
    table(ids, weights)  # no backward follows
    assert table.reads == []


def test_rows_may_change_between_an_anchored_forward_and_its_backward():
    table, _ = anchored(9, 4)
    ids, weights, _ = reads(9)
    out = table(ids, weights)
    with torch.no_grad():
        table.weight[2] += 1
    out.sum().backward()
    assert len(table.reads) == 1


def test_an_anchor_that_is_no_scalar():
    with pytest.raises(ValueError, match=r"must be a scalar, got the shape \(3,\)"):
        ValueTable(4, 4).set_anchor(torch.zeros(3))


def test_copies_and_pickles():
    table = ValueTable(5, 3, "selected_rows")
    ids, weights, factor = reads(5)
    run(table, ids, weights, factor)
    expected = table.row_gradient()
    for again in (copy.deepcopy(table), pickle.loads(pickle.dumps(table))):
        assert again.gradient == "selected_rows"
        assert torch.equal(again.weight, table.weight)
        assert torch.equal(again.row_gradient().grad_UD, expected.grad_UD)


def test_changing_the_mode_drops_reads():
    table = ValueTable(5, 3, "selected_rows")
    run(table, *reads(5))
    table.set_gradient("dense")
    assert table.reads == []
    with pytest.raises(RuntimeError, match=r"row_gradient needs .*selected_rows"):
        table.row_gradient()


def test_initial_scale():
    # N(0, D^-1/2): 1/8 at width 64.
    assert ValueTable(2000, 64).weight.std().item() == pytest.approx(1 / 8, rel=0.02)


@pytest.mark.parametrize(("num_slots", "width"), [(0, 4), (4, 0), (-1, 4)])
def test_sizes_that_cannot_work(num_slots, width):
    with pytest.raises(ValueError, match=f"num_slots={num_slots}, value_dim={width}"):
        ValueTable(num_slots, width)


def test_unknown_gradient_mode():
    with pytest.raises(ValueError, match="must be 'dense' or 'selected_rows', got 'sparse'"):
        ValueTable(4, 4, "sparse")


@pytest.mark.parametrize("bad", [-1, 30, 10**6])
def test_a_slot_outside_the_table_is_an_error_not_a_crash(bad):
    table = ValueTable(30, 8)
    with pytest.raises((IndexError, RuntimeError)):
        table(torch.tensor([[bad]]), torch.ones(1, 1))
