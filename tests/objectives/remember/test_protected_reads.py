"""Protected reads: the change that is left, against the dense formula and by hand."""

import pytest
import torch

from triptych.objectives.remember.protected_reads import ProtectedReads

SLOTS, WIDTH, READS = 40, 5, 6


def reads_of(seed, positions=9):
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(SLOTS, (positions, READS), generator=generator)
    weights = torch.rand(positions, READS, generator=generator)
    return ids, weights / weights.sum(-1, keepdim=True)


def dense(ids, weights):
    """The weights of a position on every slot of the table, (P, S)."""
    return torch.zeros(len(ids), SLOTS, dtype=torch.float32).scatter_add_(1, ids, weights)


def test_one_position_by_hand():
    """W = (1/2, 1/2), strength 2: I + 2 W'W has 3/2 and 1/2, its inverse 3/4 and -1/4."""
    reads = ProtectedReads(SLOTS)
    reads.add(torch.tensor([[3, 7, 9]]), torch.tensor([[0.5, 0.5, 0.1]]))
    change = torch.tensor([[1.0], [0.0]])
    left = reads.constrained(torch.tensor([3, 7]), change, strength=2.0)
    torch.testing.assert_close(left, torch.tensor([[0.75], [-0.25]]))


@pytest.mark.parametrize("strength", [0.3, 10.0])
def test_the_change_is_the_minimum_of_its_definition(strength):
    reads = ProtectedReads(SLOTS)
    for seed in range(3):
        reads.add(*reads_of(seed))
    rows = torch.tensor([2, 30, 11, 5, 17, 39])
    change = torch.randn(6, WIDTH, generator=torch.Generator().manual_seed(5), dtype=torch.float32)
    left = reads.constrained(rows, change, strength)
    weights = torch.cat([dense(*reads_of(seed)) for seed in range(3)])[:, rows].double()
    wanted = torch.linalg.solve(
        torch.eye(6, dtype=torch.float64) + strength * weights.T @ weights, change.double()
    )
    torch.testing.assert_close(left.double(), wanted, rtol=1e-5, atol=1e-6)
    assert (weights @ wanted).norm() < (weights @ change.double()).norm()


def test_a_large_strength_leaves_what_no_protected_position_sees():
    reads = ProtectedReads(SLOTS)
    ids, weights = reads_of(0, positions=4)
    reads.add(ids, weights)
    rows = torch.arange(SLOTS)
    change = torch.ones(SLOTS, WIDTH, dtype=torch.float32)
    left = reads.constrained(rows, change, strength=1e5)
    assert (dense(ids, weights) @ left).abs().max() < 1e-3
    unread = [slot for slot in range(SLOTS) if slot not in ids]
    assert torch.equal(left[unread], change[unread])
    assert left.norm() > 0.8 * change.norm()


def test_rows_that_no_position_reads_change_as_asked():
    reads = ProtectedReads(SLOTS)
    change = torch.randn(2, WIDTH, dtype=torch.float32)
    rows = torch.tensor([1, 2])
    assert reads.constrained(rows, change, 10.0) is change
    reads.add(torch.tensor([[5, 6]]), torch.tensor([[0.5, 0.5]]))
    assert reads.constrained(rows, change, 10.0) is change
    assert reads.constrained(torch.tensor([5, 1]), change, 0.0) is change


def test_reads_added_later_count_for_rows_known_before():
    reads, rows, change = ProtectedReads(SLOTS), torch.tensor([4, 8]), torch.ones(2, 1)
    reads.add(torch.tensor([[4]]), torch.tensor([[1.0]]))
    assert reads.constrained(rows, change, 1.0).flatten().tolist() == [0.5, 1.0]
    reads.add(torch.tensor([[8]]), torch.tensor([[1.0]]))
    assert reads.constrained(rows, change, 1.0).flatten().tolist() == [0.5, 0.5]
    assert reads.constrained(rows, change, 3.0).flatten().tolist() == [0.25, 0.25]


def test_reads_are_restored():
    reads, other = ProtectedReads(SLOTS), ProtectedReads(SLOTS)
    assert other.tensors()["ids"].numel() == 0
    other.load(other.tensors())
    reads.add(*reads_of(1))
    reads.add(*reads_of(2))
    other.load(reads.tensors())
    assert len(other) == len(reads) == 18
    rows, change = torch.arange(20), torch.ones(20, 2, dtype=torch.float32)
    assert torch.equal(other.constrained(rows, change, 5.0), reads.constrained(rows, change, 5.0))


def test_reads_that_do_not_fit_are_refused():
    reads = ProtectedReads(SLOTS)
    reads.add(*reads_of(0))
    with pytest.raises(ValueError, match="do not fit together or to earlier ones"):
        reads.add(torch.zeros(2, 3, dtype=torch.int64), torch.zeros(2, 3, dtype=torch.float32))
