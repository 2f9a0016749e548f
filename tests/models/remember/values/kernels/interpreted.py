"""Run by test_programs.py: each program against torch, in triton's interpreter."""

import os

os.environ["TRITON_INTERPRET"] = "1"

import tempfile
from pathlib import Path

import torch

from triptych.models.remember.values import weighted_gather as seam
from triptych.models.remember.values.kernels import launches

FLOAT = {"rtol": 1e-5, "atol": 1e-5}
HALF = {"rtol": 2e-2, "atol": 2e-2}


def case(num_bags, num_reads, num_slots, width, dtype, seed=0):
    draw = torch.Generator().manual_seed(seed)
    values = torch.randn(num_slots, width, generator=draw).to(dtype)
    ids = torch.randint(num_slots, (num_bags, num_reads), generator=draw)
    weights = torch.rand(num_bags, num_reads, generator=draw)
    return values, ids, weights, torch.randn(num_bags, width, generator=draw).to(dtype)


def expected_of(values, ids, weights, grad):
    """Output, gradient of the table and of the weights in float64, by einsum and index_add."""
    exact, wide, slopes = values.double(), weights.double(), grad.double()
    rounded = weights.to(values.dtype).double()  # the forward pass rounds weights to the table
    out = torch.einsum("bk,bkd->bd", rounded, exact[ids])
    table = torch.zeros_like(exact)
    uses = (wide.unsqueeze(-1) * slopes.unsqueeze(1)).flatten(0, 1)
    table.index_add_(0, ids.flatten(), uses)
    return out, table, torch.einsum("bd,bkd->bk", slopes, exact[ids])


def check(values, ids, weights, grad):
    tolerance = FLOAT if values.dtype == torch.float32 else HALF
    out, table, dots = expected_of(values, ids, weights, grad)
    runs = []
    for _ in range(3):
        both = seam.gather_gradients(grad, values, ids, weights)
        runs.append((seam.weighted_gather(values, ids, weights), *both))
    for run in runs[1:]:
        assert all(torch.equal(a, b) for a, b in zip(runs[0], run, strict=True))
    assert [t.dtype for t in runs[0]] == [values.dtype, values.dtype, torch.float32]
    for ours, other in zip(runs[0], (out, table, dots), strict=True):
        torch.testing.assert_close(ours.double(), other, **tolerance)
    alone = seam.weight_gradient(grad, values, ids)
    assert alone.dtype == values.dtype
    torch.testing.assert_close(alone.double(), dots, **tolerance)
    bags = torch.arange(len(ids)).repeat_interleave(ids.shape[1])
    uses = (ids.flatten(), bags, weights.flatten(), grad.float())
    rows, sums = seam.transposed_gather(*uses, len(values))
    assert rows.tolist() == sorted(set(ids.flatten().tolist()))
    torch.testing.assert_close(sums.double(), table[rows], **FLOAT)


seam.use_kernels = lambda *_: True
for number, width in enumerate((64, 96, 576, 1024, 5)):
    for dtype in (torch.float32, torch.bfloat16):
        check(*case(3, 9, 6, width, dtype, number))

# Ties: every read is of one row, in pieces that are added in order; unread rows stay zero.
values, ids, weights, grad = case(9, 5, 3, 20, torch.float32)
whole, launches.LONGEST_PIECE = launches.LONGEST_PIECE, 4
check(values, torch.ones_like(ids), weights, grad)
check(values, ids, weights, grad)
launches.LONGEST_PIECE = whole

# Nothing to read.
none = torch.empty(0, 4, dtype=torch.int64)
assert seam.weighted_gather(values, none, torch.empty(0, 4)).shape == (0, 20)
table, dots = seam.gather_gradients(torch.empty(0, 20), values, none, torch.empty(0, 4))
assert table.shape == (3, 20)
assert not table.any()
assert dots.shape == (0, 4)

# A table of more than 2^31 elements, in a sparse file that takes no space.
width, rows = 1024, 2**21 + 3
with tempfile.TemporaryDirectory() as folder:
    file = Path(folder) / "table"
    with file.open("wb") as out:
        out.truncate(rows * width * 2)
    large = torch.from_file(str(file), shared=True, size=rows * width, dtype=torch.bfloat16)
    large = large.view(rows, width)
    ids = torch.tensor([[0, rows - 1], [rows - 2, 2**20 + 7]])
    large[ids.flatten()] = torch.randn(4, width).bfloat16()
    weights, grad = torch.rand(2, 2), torch.randn(2, width).bfloat16()
    ours = seam.weighted_gather(large, ids, weights), seam.weight_gradient(grad, large, ids)
    found, sums = seam.transposed_gather(
        ids.flatten(), torch.tensor([0, 0, 1, 1]), weights.flatten(), grad.float(), rows
    )
    assert found.tolist() == [0, 2**20 + 7, rows - 2, rows - 1]
    small = large[ids.flatten()].clone()
    local = torch.tensor([[0, 1], [2, 3]])
    out, table, dots = expected_of(small, local, weights, grad)
    torch.testing.assert_close(ours[0].double(), out, **HALF)
    torch.testing.assert_close(ours[1].double(), dots, **HALF)
    torch.testing.assert_close(sums.double(), table[[0, 3, 2, 1]], **FLOAT)
    del large
print("all equal")
