"""The gather as an operation of torch."""

import pytest
import torch

from triptych.models.remember.values.gather_op import gather_op
from triptych.models.remember.values.value_table import ValueTable


def drawn(dtype=torch.float64):
    values = torch.randn(7, 5, dtype=dtype, requires_grad=True)
    return values, torch.randint(7, (4, 3)), torch.rand(4, 3, dtype=dtype, requires_grad=True)


def test_operation_keeps_torchs_rules():
    torch.library.opcheck(gather_op, drawn())
    values, ids, weights = drawn()
    assert torch.autograd.gradcheck(lambda v, w: gather_op(v, ids, w), (values, weights))


@pytest.mark.parametrize("learns", [(True, True), (True, False), (False, True)])
def test_compiled_table_has_no_graph_break_and_equal_gradients(learns):
    table = ValueTable(7, 5)
    table.weight.requires_grad_(learns[0])
    ids, weights = torch.randint(7, (4, 3)), torch.rand(4, 3, requires_grad=learns[1])
    runs = []
    for call in (table, torch.compile(table, fullgraph=True, backend="aot_eager")):
        table.weight.grad = weights.grad = None
        out = call(ids, weights)
        out.square().sum().backward()
        runs.append((out, table.weight.grad, weights.grad))
    for plain, compiled, wanted in zip(*runs, (True, *learns), strict=True):
        assert (plain is not None) == wanted
        assert torch.equal(plain, compiled) if wanted else compiled is None
