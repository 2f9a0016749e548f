"""The memory layer against a reference that scores every slot."""

import copy
import pickle

import pytest
import torch
from torch import Tensor, nn

from triptych.models.remember.index.product_keys import ProductKeyIndex
from triptych.models.remember.memory_layer import (
    FFNWithMemory,
    MemoryLayer,
    OutputProjection,
    SwiluGate,
)
from triptych.models.remember.values.value_table import ValueTable

HIDDEN, VALUE = 12, 7


def make_layer(
    gated: bool = True, value_dim: int = VALUE, gradient: str = "dense", qk_norm: bool = False
) -> MemoryLayer:
    index = ProductKeyIndex(num_keys=9, num_heads=3, query_dim=8, qk_norm=qk_norm)
    gate = SwiluGate(HIDDEN, value_dim) if gated else None
    return MemoryLayer(HIDDEN, 5, index, ValueTable(81, value_dim, gradient), gate)


def reference(layer: MemoryLayer, x: Tensor) -> Tensor:
    """Compute 2412.09764, section 3.1, over all slots: softmax over the top k, values, swilu."""
    q = (x @ layer.query.weight.T + layer.query.bias).unflatten(-1, (3, 2, 4))
    rows = torch.einsum("...hd,hnd->...hn", q[..., 0, :], layer.index.keys[:, 0])
    columns = torch.einsum("...hd,hnd->...hn", q[..., 1, :], layer.index.keys[:, 1])
    scores = (rows.unsqueeze(-1) + columns.unsqueeze(-2)).flatten(-2)
    limit = scores.topk(layer.top_k).values[..., -1:]
    p = scores.masked_fill(scores < limit, -torch.inf).softmax(-1)
    y = torch.einsum("...hs,sv->...v", p, layer.values.weight)
    if layer.gate is None:
        return y
    gate = x @ layer.gate.gate.weight.T + layer.gate.gate.bias
    return (y * gate * gate.sigmoid()) @ layer.gate.output.weight.T + layer.gate.output.bias


def leaves(layer: MemoryLayer) -> list[Tensor]:
    return [*layer.parameters(), layer.values.weight]


@pytest.mark.parametrize("gated", [True, False])
def test_output_and_gradients_equal_the_reference_over_all_slots(gated):
    layer = make_layer(gated, VALUE if gated else HIDDEN).double()
    layer.values.double()
    for parameter in layer.parameters():  # biases too, which start at zero
        nn.init.normal_(parameter)
    x = torch.randn(2, 5, HIDDEN, dtype=torch.float64, requires_grad=True)
    out, expected = layer(x), reference(layer, x)
    torch.testing.assert_close(out, expected)
    factor = torch.randn_like(out)
    ours = torch.autograd.grad((out * factor).sum(), [x, *leaves(layer)])
    theirs = torch.autograd.grad((expected * factor).sum(), [x, *leaves(layer)])
    torch.testing.assert_close(ours, theirs)


def test_any_leading_dimensions():
    layer = make_layer()
    x = torch.randn(2, 3, 4, HIDDEN)
    out = layer(x)
    assert out.shape == (2, 3, 4, HIDDEN)
    torch.testing.assert_close(layer(x[1, 2, 3]), out[1, 2, 3])
    assert layer(x[:0]).shape == (0, 3, 4, HIDDEN)


def test_selected_rows_learn_what_dense_learns():
    dense = make_layer()
    selected = copy.deepcopy(dense)
    selected.values.set_gradient("selected_rows")
    x = torch.randn(2, 5, HIDDEN)
    for layer in (dense, selected):
        layer(x).square().sum().backward()
    rows, grad = selected.values.row_gradient()
    assert selected.values.weight.grad is None
    assert torch.equal(grad, dense.values.weight.grad[rows])
    for one, two in zip(dense.parameters(), selected.parameters(), strict=True):
        assert torch.equal(one.grad, two.grad)


def test_recording_keeps_the_slots_read():
    layer = make_layer()
    x = torch.randn(2, 5, HIDDEN)
    layer(x)
    assert layer.last_ids is None
    layer.recording = True
    layer(x)
    assert layer.last_ids.shape == (2, 5, 3, 5)
    query = layer.query(x[1, 4]).view(1, 3, 8)
    assert torch.equal(layer.last_ids[1, 4], layer.index.search(query, 5)[0])


@pytest.mark.parametrize("qk_norm", [False, True])
def test_autocast_rounds_the_query_and_nothing_after_it(qk_norm):
    layer = make_layer(qk_norm=qk_norm)
    x = torch.randn(64, HIDDEN)
    layer.recording = True
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = layer(x)
        query = layer.query(x)
    assert query.dtype == torch.bfloat16
    expected = layer.index.search(query.float().view(64, 3, 8), 5)
    assert torch.equal(layer.last_ids, expected)
    assert out.dtype == torch.bfloat16
    plain = layer(x)
    # Rounding the query may only change which of nearly equal slots is read.
    same = [
        len(set(one) & set(two))
        for one, two in zip(
            expected.flatten(0, 1).tolist(), layer.last_ids.flatten(0, 1).tolist(), strict=True
        )
    ]
    assert sum(same) / (5 * len(same)) > 0.9
    torch.testing.assert_close(out.float(), plain, rtol=0.1, atol=0.1)


def test_autocast_trains():
    layer = make_layer()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        layer(torch.randn(4, HIDDEN)).square().mean().backward()
    assert all(leaf.grad is not None and leaf.grad.isfinite().all() for leaf in leaves(layer))


def test_bfloat16_layer():
    layer = make_layer().bfloat16()
    layer.values.bfloat16()
    out = layer(torch.randn(4, HIDDEN).bfloat16())
    assert out.dtype == torch.bfloat16
    out.float().square().mean().backward()
    assert all(leaf.grad is not None and leaf.grad.isfinite().all() for leaf in leaves(layer))


def test_bfloat16_table_in_a_float32_layer():
    layer = make_layer()
    x = torch.randn(4, HIDDEN)
    expected = layer(x)
    layer.values.bfloat16()
    out = layer(x)
    assert out.dtype == torch.float32
    torch.testing.assert_close(out, expected, rtol=5e-2, atol=5e-2)


def test_the_table_is_not_the_layers_child():
    layer = make_layer()
    assert not [name for name, _ in layer.named_parameters() if "values" in name]
    assert not [name for name in layer.state_dict() if "values" in name]


def test_a_copied_root_has_layers_that_read_the_copied_table():
    layer = make_layer()
    root = nn.ModuleList([layer, layer.values])
    for again in (copy.deepcopy(root), pickle.loads(pickle.dumps(root))):
        assert again[0].values is again[1]
        assert again[1] is not root[1]
        again[1].weight.data.zero_()
        assert root[1].weight.any()


def test_beside_starts_as_the_ffn_to_the_bit_and_can_learn():
    ffn = nn.Sequential(nn.Linear(HIDDEN, 20), nn.GELU(), nn.Linear(20, HIDDEN))
    block = FFNWithMemory(ffn, make_layer())
    x = torch.randn(6, HIDDEN)
    assert torch.equal(block(x), ffn(x))
    block(x).square().sum().backward()
    assert block.memory_gate.grad.abs() > 0
    block.memory_gate.data.fill_(0.5)
    torch.testing.assert_close(block(x), ffn(x) + 0.5 * block.memory(x))


def test_the_relevance_gate_starts_at_a_half_and_weighs_each_token():
    ffn = nn.Linear(HIDDEN, HIDDEN)
    block = FFNWithMemory(ffn, make_layer(), relevance_gate=True)
    x = torch.randn(6, HIDDEN)
    assert torch.equal(block(x), ffn(x))
    block.memory_gate.data.fill_(0.8)
    torch.testing.assert_close(block(x), ffn(x) + 0.8 * 0.5 * block.memory(x))
    # sigmoid(ln 3 * x_0 - ln 3): 3/4 where x_0 is 2, 1/2 at 1, 1/4 at 0.
    block.relevance.weight.data[0, 0] = torch.log(torch.tensor(3.0))
    block.relevance.bias.data[0] = -torch.log(torch.tensor(3.0))
    x[:3, 0] = torch.tensor([2.0, 1.0, 0.0])
    weights = torch.tensor([[0.75], [0.5], [0.25]])
    torch.testing.assert_close(block(x[:3]), ffn(x[:3]) + 0.8 * weights * block.memory(x[:3]))
    block(x).square().sum().backward()
    assert block.relevance.weight.grad.any()
    assert block.relevance.bias.grad.any()


def test_output_projection_without_gate():
    gate = OutputProjection(HIDDEN, VALUE)
    index = ProductKeyIndex(num_keys=9, num_heads=3, query_dim=8)
    layer = MemoryLayer(HIDDEN, 5, index, ValueTable(81, VALUE), gate)
    x = torch.randn(4, HIDDEN)
    layer.gate = None
    values = layer(x)
    layer.gate = gate
    torch.testing.assert_close(layer(x), values @ gate.output.weight.T + gate.output.bias)


def test_initialisation():
    gate = SwiluGate(64, 400)
    for linear in (gate.gate, gate.output):  # N(0, 64^-1/2)
        assert linear.weight.std().item() == pytest.approx(1 / 8, rel=0.02)
        assert not linear.bias.any()
    layer = make_layer()
    # Xavier-uniform of 12 inputs and 24 outputs: +- sqrt(6 / 36).
    assert 0.3 < layer.query.weight.abs().max().item() <= (6 / 36) ** 0.5
    assert not layer.query.bias.any()


def test_slots_must_agree():
    index = ProductKeyIndex(num_keys=9, num_heads=3, query_dim=8)
    with pytest.raises(ValueError, match="addresses 81 slots but the table has 80"):
        MemoryLayer(HIDDEN, 5, index, ValueTable(80, HIDDEN))


def test_without_a_gate_the_widths_must_agree():
    index = ProductKeyIndex(num_keys=9, num_heads=3, query_dim=8)
    with pytest.raises(ValueError, match=r"width 7.*hidden size 12"):
        MemoryLayer(HIDDEN, 5, index, ValueTable(81, VALUE))
