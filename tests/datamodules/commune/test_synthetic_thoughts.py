"""Synthetic thoughts: their distributions, and the structure that they name."""

import pickle

import pytest
import torch
from torch import Tensor

from triptych.datamodules.commune.synthetic_thoughts import SyntheticThoughtsData, make_thoughts
from triptych.objectives.commune.structure.identifiability import identifiable_groups

SPARSE = ["row_sparse_linear", "row_sparse_nonlinear"]


def responses(kind: str) -> tuple[Tensor, Tensor]:
    """The named support, and how strongly each dimension moves with each latent.

    By least squares: latents are independent and bends monotone, so other latents have slope 0.
    """
    thoughts = make_thoughts(kind, (3, 2, 3), 10, 40_000, seed=0, latents_per_row=2)
    slopes = torch.linalg.lstsq(thoughts.latents_NZ, thoughts.states_NH).solution.mT
    return thoughts.support_HZ, slopes.abs() / slopes.abs().amax(1, keepdim=True)


@pytest.mark.parametrize("kind", SPARSE)
def test_states_depend_on_the_latents_that_are_named(kind):
    support, strength = responses(kind)
    assert (support.sum(1) == 2).all()
    assert strength[~support].max() < 0.05
    if kind == "row_sparse_linear":
        assert strength[~support].max() < 1e-4


def test_a_linear_map_leaves_no_remainder_and_a_bent_one_does():
    for kind, is_linear in (("row_sparse_linear", True), ("row_sparse_nonlinear", False)):
        thoughts = make_thoughts(kind, (3, 2, 3), 10, 2000, seed=1)
        fit = torch.linalg.lstsq(thoughts.latents_NZ, thoughts.states_NH).solution
        error = (thoughts.latents_NZ @ fit - thoughts.states_NH).abs().max()
        assert (error < 1e-4) == is_linear


@pytest.mark.parametrize("kind", SPARSE)
def test_sparse_maps_tell_all_latents_apart(kind):
    thoughts = make_thoughts(kind, (3, 2, 3), 10, 5, seed=2)
    assert identifiable_groups(thoughts.support_HZ).identified == list(range(8))
    # Agent 0 has the first five latents, agent 1 the last five.
    assert thoughts.relevant.tolist() == [[True] * 5 + [False] * 3, [False] * 3 + [True] * 5]
    assert thoughts.groups_Z == [0, 0, 0, 1, 1, 2, 2, 2]
    assert thoughts.state_sizes == [10, 10]


def test_dense_blocks_can_be_told_apart_as_blocks_alone():
    thoughts = make_thoughts("block_dense_nonlinear", (2, 2, 2), 6, 3000, seed=0)
    groups = identifiable_groups(thoughts.support_HZ)
    assert [block.members for block in groups.blocks] == [[0, 1], [2, 3], [4, 5]]
    fit = torch.linalg.lstsq(thoughts.latents_NZ[:, :4], thoughts.states_NH[:, :6])
    error = thoughts.latents_NZ[:, :4] @ fit.solution - thoughts.states_NH[:, :6]
    assert error.abs().max() > 0.1  # it is bent
    # Agent 0's state has nothing of agent 1's private latents.
    both = torch.cat([thoughts.latents_NZ[:, 4:], thoughts.states_NH[:, :6]], 1)
    assert torch.corrcoef(both.mT)[:2, 2:].abs().max() < 0.08


def test_latents_are_laplace_of_unit_variance():
    latents = make_thoughts("row_sparse_linear", (3, 2, 3), 10, 50_000, seed=3).latents_NZ
    torch.testing.assert_close(latents.mean(0), torch.zeros(8), rtol=0, atol=0.03)
    torch.testing.assert_close(latents.var(0), torch.ones(8), rtol=0, atol=0.06)
    # E |z| is 1 / sqrt(2) for Laplace (.798 for a normal distribution), and the kurtosis 6.
    torch.testing.assert_close(
        latents.abs().mean(0), torch.full((8,), 0.5**0.5), rtol=0, atol=0.015
    )
    assert latents.square().square().mean().item() == pytest.approx(6.0, abs=0.7)


def test_normal_latents_go_through_the_same_map():
    normal, laplace = (
        make_thoughts(f"row_sparse_{kind}", (3, 2, 3), 10, 50_000, seed=3)
        for kind in ("gaussian", "linear")
    )
    assert torch.equal(normal.support_HZ, laplace.support_HZ)
    assert normal.latents_NZ.square().square().mean().item() == pytest.approx(3.0, abs=0.1)


def test_seeds_make_the_map_and_the_samples():
    one, same = (make_thoughts("row_sparse_linear", (3, 2, 3), 10, 6, seed=4) for _ in range(2))
    assert torch.equal(one.states_NH, same.states_NH)
    more = make_thoughts("row_sparse_linear", (3, 2, 3), 10, 9, seed=4)
    assert torch.equal(more.support_HZ, one.support_HZ)
    assert torch.equal(more.latents_NZ[:6], one.latents_NZ)
    other = make_thoughts("row_sparse_linear", (3, 2, 3), 10, 6, seed=5)
    assert not torch.equal(other.support_HZ, one.support_HZ)


def test_the_datamodule_serves_both_parts_of_one_map():
    data = SyntheticThoughtsData(
        group_sizes=[3, 2, 3], state_size=10, num_samples=12, num_val_samples=5, batch_size=4
    )
    data = pickle.loads(pickle.dumps(data))  # as spawned processes get it
    data.setup()
    assert [len(batch["states"]) for batch in data.train_dataloader()] == [4, 4, 4]
    held_out = torch.cat([batch["latents"] for batch in data.val_dataloader()])
    whole = make_thoughts("row_sparse_linear", (3, 2, 3), 10, 17, seed=0)
    assert torch.equal(held_out, whole.latents_NZ[12:])
    seen = torch.cat([batch["states"] for batch in data.train_dataloader()])
    assert sorted(seen[:, 0].tolist()) == sorted(whole.states_NH[:12, 0].tolist())


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("dense", (2, 2, 2), 6), "kind is 'dense'"),
        (("row_sparse_linear", (2, 2), 6), "give three numbers"),
        (("row_sparse_linear", (2, 0, 2), 6), "give three numbers"),
        (("row_sparse_linear", (4, 4, 2), 6), "an agent has 8 latents"),
        (("row_sparse_linear", (2, 2, 2), 6, 5, 0, 9), "latents_per_row is 9"),
        (("row_sparse_linear", (2, 2, 2), 4, 5, 0, 4), "200 drawn maps of 4 latents a row"),
    ],
)
def test_sizes_that_cannot_be(arguments, words):
    with pytest.raises(ValueError, match=words):
        make_thoughts(*arguments, *((5, 0) if len(arguments) == 3 else ()))
