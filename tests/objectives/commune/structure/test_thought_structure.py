"""Supports, sharing, identifiability, stability and alarms, on structures worked out by hand."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from triptych.models.commune.perceptron import Perceptron
from triptych.objectives.commune.structure.findings import Training, examine
from triptych.objectives.commune.structure.identifiability import (
    LatentBlock,
    allowed_latents,
    block_ranks,
    check_ranks,
    identifiable_groups,
)
from triptych.objectives.commune.structure.matching import correlations, match_latents
from triptych.objectives.commune.structure.sharing import Sharing, routing_accuracy
from triptych.objectives.commune.structure.stability import (
    stability_over_bootstraps,
    stability_over_seeds,
)
from triptych.objectives.commune.structure.state_evidence import state_evidence
from triptych.objectives.commune.structure.support import (
    agent_magnitude,
    binarize,
    element_magnitude,
    sample_agent_squares,
    widest_gap,
)


def mask(*rows: str) -> Tensor:
    return torch.tensor([[mark == "x" for mark in row] for row in rows])


def squared(latents: Tensor) -> Tensor:
    """Three outputs z0^2, 2 z1, z0 z1: Jacobian [[2 z0, 0], [0, 2], [z1, z0]]."""
    first, second = latents[:, 0], latents[:, 1]
    return torch.stack([first**2, 2 * second, first * second], 1)


LATENTS = torch.tensor([[1.0, 0.0], [-2.0, 4.0]])


@pytest.mark.parametrize("batch_size", [1, 64])
@pytest.mark.parametrize(
    ("statistic", "expected", "by_agent"),
    [
        ("max", [[4, 0], [0, 2], [4, 2]], [[4, 0], [4, 2]]),
        ("mean", [[3, 0], [0, 2], [2, 1.5]], [[3, 0], [1, 1.75]]),
        (
            "rms",
            [[math.sqrt(10), 0], [0, 2], [math.sqrt(8), math.sqrt(2.5)]],
            [[math.sqrt(10), 0], [2, math.sqrt(3.25)]],
        ),
    ],
)
def test_magnitudes_by_hand(statistic, expected, by_agent, batch_size):
    found = element_magnitude(squared, LATENTS, statistic, batch_size)
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float32))
    agents = agent_magnitude(found, [1, 2], statistic)
    torch.testing.assert_close(agents, torch.tensor(by_agent, dtype=torch.float32))
    if statistic == "rms":
        squares = sample_agent_squares(squared, LATENTS, [1, 2], batch_size)
        torch.testing.assert_close(squares.mean(0).sqrt(), agents)


def test_thresholds_and_gaps():
    magnitude = torch.tensor([[4.0, 0.1], [1.0, 0.2]])
    support = binarize(magnitude, 0.1, relative=True)
    assert support.mask.tolist() == [[True, False], [True, False]]
    assert support.threshold == pytest.approx(0.4)
    assert support.gap == pytest.approx(5.0)
    assert binarize(magnitude, 0.1, relative=False).mask.tolist() == [[True, False], [True, True]]
    assert binarize(torch.tensor([1.0, 0.0]), 0.0, relative=False).gap == math.inf
    for threshold in (0.0, 9.0):  # everything is kept, or nothing: there is no gap
        support = binarize(magnitude, threshold, relative=False)
        assert (support.separates, support.gap) == (False, 1.0)
    # Shares 1, .25, .05, .025 of the largest: the widest ratio within [.02, .5] is .25 over .05.
    assert widest_gap(magnitude) == pytest.approx(math.sqrt(0.25 * 0.05))
    with pytest.raises(ValueError, match="at least 0 and below 1"):
        binarize(magnitude, 1.0, relative=True)
    with pytest.raises(ValueError, match="choose max, mean or rms"):
        element_magnitude(squared, LATENTS, "sum")
    with pytest.raises(ValueError, match="at least one"):
        element_magnitude(squared, LATENTS[:0], "max")


def test_sharing_of_three_agents_by_hand():
    sharing = Sharing.of_support(mask("xx...", ".x...", "..xx.", ".x.x."), [2, 1, 1])
    assert sharing.relevant_KZ.tolist() == mask("xx...", "..xx.", ".x.x.").tolist()
    assert sharing.agreement.tolist() == [1, 2, 1, 2, 0]
    assert sharing.relevant == [[0, 1], [2, 3], [1, 3]]
    assert sharing.shared == [1, 3]
    assert sharing.private == [[0], [2], []]
    assert sharing.dead == [4]
    assert sharing.owners() == [0, -1, 1, -1, -1]
    swapped = sharing.relevant_KZ[:, [1, 0, 2, 3, 4]]
    assert routing_accuracy(swapped, sharing.relevant_KZ, [1, 0, 2, 3, 4]) == 1.0
    assert routing_accuracy(swapped, sharing.relevant_KZ, [0, 1, 2, 3, 4]) == 1 - 2 / 15


def test_dense_blocks_are_identified_as_blocks():
    # Agent 0 depends on 0 to 3 in every row, agent 1 on 2 to 5; 2 and 3 are shared.
    groups = identifiable_groups(mask("xxxx..", "xxxx..", "..xxxx"))
    assert groups.blocks == [
        LatentBlock([0, 1], [2, 3]),
        LatentBlock([2, 3], []),
        LatentBlock([4, 5], [2, 3]),
    ]
    assert groups.identified == []


def test_sparse_rows_identify_single_latents():
    groups = identifiable_groups(mask("xx..", ".xx.", "x.x.", "...."))
    assert groups.identified == [0, 1, 2]
    assert groups.dead == [3]
    # One row less, and the latent that appears nowhere alone may contain its neighbour.
    groups = identifiable_groups(mask("xx.", ".xx"))
    assert groups.blocks == [LatentBlock([0], [1]), LatentBlock([1], []), LatentBlock([2], [1])]


@settings(max_examples=60, deadline=None)
@given(
    rows=st.lists(st.lists(st.booleans(), min_size=5, max_size=5), min_size=1, max_size=6),
    order=st.permutations(range(5)),
)
def test_allowed_is_the_intersection_and_an_order(rows, order):
    support = torch.tensor(rows)
    allowed = allowed_latents(support)
    for latent in range(5):
        expected = set(range(5))
        for row in rows:
            if row[latent]:
                expected &= {k for k, kept in enumerate(row) if kept}
        assert set(allowed[latent].nonzero().flatten().tolist()) == expected
    reached = (allowed.int() @ allowed.int()) > 0
    assert torch.equal(reached, allowed)  # transitive, and reflexive
    groups = identifiable_groups(support)
    members = [latent for block in groups.blocks for latent in block.members]
    assert sorted(members + groups.dead) == list(range(5))
    permuted = identifiable_groups(support[:, list(order)])
    assert len(permuted.identified) == len(groups.identified)


def test_matching_by_hand():
    samples = torch.tensor([[1.0, 0.0, 4.0], [2.0, 1.0, 4.0], [3.0, 0.0, 4.0]])
    other = torch.tensor([[0.0, -1.0], [3.0, -2.0], [0.0, -3.0]])
    found = correlations(samples[:, :2], other)
    torch.testing.assert_close(found, torch.tensor([[0.0, -1.0], [1.0, 0.0]], dtype=torch.float64))
    assert match_latents(found) == [1, 0]
    assert correlations(samples, other)[2].tolist() == [0.0, 0.0]  # it never moves
    with pytest.raises(ValueError, match="3 latents cannot be matched one to one with 2"):
        match_latents(correlations(samples, other))
    with pytest.raises(ValueError, match="nan or infinity"):
        match_latents(torch.tensor([[math.nan]]))
    with pytest.raises(ValueError, match="same two or more"):
        correlations(samples, other[:2])


def test_stability_over_seeds_matches_first():
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(50, 3, generator=generator)
    relevant = mask("xx.", ".xx")
    order = [2, 0, 1]
    same = stability_over_seeds([latents, -2 * latents[:, order]], [relevant, relevant[:, order]])
    assert same.jaccard == 1.0
    assert same.matched_correlation == pytest.approx(1.0)
    assert same.share_KZ.tolist() == relevant.double().tolist()
    other = stability_over_seeds([latents, latents], [relevant, mask("x..", ".xx")])
    assert other.jaccard == 3 / 4
    assert other.settled_share == 5 / 6
    with pytest.raises(ValueError, match="two recoveries or more"):
        stability_over_seeds([latents], [relevant])


def test_bootstraps_see_what_hangs_on_one_sample():
    # Of four samples one alone has the second latent: it is missed with probability (3/4)^4 = .32.
    squares = torch.zeros(4, 1, 2)
    squares[:, 0, 0] = 1
    squares[0, 0, 1] = 1
    outcome = stability_over_bootstraps(
        squares,
        0.1,
        relative=False,
        num_bootstraps=400,
        generator=torch.Generator().manual_seed(0),
    )
    assert outcome.share_KZ[0, 0] == 1.0
    assert outcome.share_KZ[0, 1].item() == pytest.approx(1 - 0.75**4, abs=3 * 0.0233)
    with pytest.raises(ValueError, match="num_bootstraps is 1"):
        stability_over_bootstraps(squares, 0.1, relative=False, num_bootstraps=1)


def test_ranks_by_hand():
    support = mask("x.", ".x", "xx")
    jacobians = torch.tensor([[[2.0, 0.0], [0.0, 2.0], [0.0, 1.0]], [[-4.0, 0], [0, 2], [4, -2]]])
    ranks = check_ranks(jacobians, support)
    assert ranks.row_ranks_H.tolist() == ranks.row_sizes_H.tolist() == [1, 1, 2]
    assert ranks.spanning_share == 1.0
    # The first has squared singular values 4 and 5.
    assert ranks.smallest_singular_N[0].item() == pytest.approx(2.0)
    assert ranks.largest_singular_N[0].item() == pytest.approx(math.sqrt(5))
    # A linear decoder has one Jacobian: the third row does not span its two latents.
    linear = check_ranks(jacobians[:1].expand(4, 3, 2), support)
    assert linear.row_ranks_H.tolist() == [1, 1, 1]
    assert linear.spanning_share == pytest.approx(2 / 3)
    assert check_ranks(torch.ones(2, 1, 2), mask("xx")).conditioning == 0.0
    with pytest.raises(ValueError, match="of the same decoder"):
        check_ranks(jacobians, mask("xx"))


def alarms(*arguments: object, **more: object) -> dict[str, bool]:
    return {finding.name: finding.is_alarm for finding in examine(*arguments, **more)}


def test_nothing_is_wrong_with_a_clean_structure():
    support = binarize(torch.tensor([[1.0, 0.9, 0.0], [0.0, 0.8, 1.0]]), 0.1, relative=True)
    rows = mask("xx.", ".x.", ".xx", "x..", "..x")
    jacobians = torch.randn(20, 5, 3, generator=torch.Generator().manual_seed(0)) * rows
    found = alarms(
        Sharing(support.mask),
        support,
        identifiable_groups(rows),
        check_ranks(jacobians, rows),
        stability_over_bootstraps(
            torch.ones(3, 2, 3) * support.mask, 0.1, relative=False, num_bootstraps=3
        ),
    )
    assert found == dict.fromkeys(
        ["dead latents", "sharing", "gap", "identifiability", "invertibility", "spanning",
         "stability"],
        False,
    )  # fmt: skip


def test_every_alarm_can_ring_and_says_why():
    collapsed = binarize(torch.tensor([[1.0, 0.11, 0.0], [0.9, 0.5, 0.09]]), 0.1, relative=True)
    rows = mask("xx.", "xx.")
    findings = examine(
        Sharing(collapsed.mask),
        collapsed,
        identifiable_groups(rows),
        check_ranks(torch.ones(2, 2, 3), rows),
        stability_over_seeds(
            [torch.eye(3), torch.eye(3)], [mask("x..", "..."), mask(".x.", "...")]
        ),
    )
    assert all(finding.is_alarm for finding in findings)
    texts = {finding.name: finding.explanation for finding in findings}
    assert "1 of 3 latents matter to no agent (2)" in texts["dead latents"]
    assert "matters to all 2 agents" in texts["sharing"]
    assert "1.22 times the largest dropped one" in texts["gap"]
    assert "0 of 2 live latents can be named one by one; 1 blocks" in texts["identifiability"]
    assert "not one to one" in texts["invertibility"]
    assert "0% of the rows" in texts["spanning"]
    assert "overlap by 0.00" in texts["stability"]


def test_a_trained_decoders_structure_is_read_off_its_jacobian():
    # Two agents of two rows; the second hidden unit feeds agent 1 alone.
    decoder = Perceptron(2, 4, (2,), "gelu")
    with torch.no_grad():
        decoder.layers[0].weight.copy_(torch.tensor([[1.0, 0.0], [0.0, 1.0]]))
        decoder.layers[1].weight.copy_(
            torch.tensor([[1.0, 0.0], [-1.0, 0.0], [1.0, 1.0], [0.0, 2.0]])
        )
    latents = torch.randn(100, 2, generator=torch.Generator().manual_seed(0))
    magnitude = element_magnitude(decoder, latents, "max")
    support = binarize(magnitude, 0.05, relative=True)
    assert support.gap == math.inf
    assert Sharing.of_support(support.mask, [2, 2]).private == [[], [1]]
    assert identifiable_groups(support.mask).identified == [0, 1]


def test_block_ranks_count_shared_directions_in_any_basis():
    torch.manual_seed(0)
    private = torch.zeros(3, 6, 4)  # two agents of three rows; latents 0, 1 and 2, 3
    private[:, :3, :2], private[:, 3:, 2:] = torch.randn(3, 3, 2), torch.randn(3, 3, 2)
    basis = torch.linalg.qr(torch.randn(4, 4)).Q
    assert block_ranks(private @ basis, [3, 3]) == ([2, 2], 4)
    shared = private.clone()
    shared[:, 3:, 2:] = 0.0
    shared[:, 3:, :2] = torch.randn(3, 3, 2)
    assert block_ranks(shared @ basis, [3, 3]) == ([2, 2], 2)


def states_of_two_agents(num=200, common=0):
    generator = torch.Generator().manual_seed(0)
    facts = torch.randn(num, 4, generator=generator)
    other = torch.randn(num, 4, generator=generator)
    other[:, :common] = facts[:, :common]
    mix = torch.randn(2, 4, 16, generator=generator)
    states = torch.cat([facts @ mix[0], other @ mix[1]], 1)
    return (states - states.mean(0)) / states.std(0)


def test_states_tell_their_rank_and_whether_agents_share():
    apart = state_evidence(states_of_two_agents(), [16, 16])
    assert (apart.rank, apart.agent_ranks, apart.num_samples) == (8, [4, 4], 200)
    assert 6 < apart.entropy_rank <= 8
    assert max(apart.predicted_shares) < 0.02
    together = state_evidence(states_of_two_agents(common=2), [16, 16])
    assert together.rank == 6
    assert min(together.predicted_shares) > 0.3
    with pytest.raises(ValueError, match="at least 4"):
        state_evidence(torch.zeros(3, 2), [1, 1])


def told(relevant, **more):
    support = binarize(relevant.float() + 0.01, 0.5, relative=True)
    findings = examine(Sharing(relevant), support, **more)
    return {finding.name: (finding.is_alarm, finding.explanation) for finding in findings}


@pytest.mark.parametrize(
    ("norm", "remedy"),
    [
        ("l1", "set penalty.norm to group"),
        ("group", "The group norm is in use: raise penalty_weight"),
        (None, "No penalty on the Jacobian is in use"),
    ],
)
def test_advice_depends_on_what_is_in_use(norm, remedy):
    everything = torch.ones(2, 3, dtype=torch.bool)
    is_alarm, text = told(everything, training=Training(norm, 500, 0.0, 64))["sharing"]
    assert is_alarm
    assert remedy in text


def test_a_structure_that_contradicts_the_states_is_an_alarm():
    everything, owned = torch.ones(2, 8, dtype=torch.bool), torch.eye(2).repeat(1, 4).bool()
    apart = state_evidence(states_of_two_agents(), [16, 16])
    together = state_evidence(states_of_two_agents(common=2), [16, 16])
    for evidence, relevant, alarm in (
        (apart, everything, True),
        (apart, owned, False),
        (together, owned, True),
        (together, everything, False),
    ):
        assert told(relevant, evidence=evidence)["agreement with the states"][0] == alarm
    assert told(everything, evidence=apart)["rank of the states"][0] is False
    is_alarm, text = told(torch.ones(2, 9).bool(), evidence=apart)["rank of the states"]
    assert is_alarm
    assert "vary in 8 directions" in text
    assert "there are 9 latents" in text


def test_too_few_samples_and_a_term_that_cannot_be_met():
    everything = torch.ones(2, 64, dtype=torch.bool)
    found = told(everything, training=Training("group", 100, 1.0, 33))
    assert found["samples"][0]
    assert "at least 128 questions" in found["samples"][1]
    assert found["decorrelation"][0]
    assert "cannot fall below about 64" in found["decorrelation"][1]  # 64^2 / 32 - 64
    enough = told(everything, training=Training("group", 128, 1.0, 65))
    assert not enough["samples"][0]
    assert not enough["decorrelation"][0]
    assert "decorrelation" not in told(everything, training=Training("group", 128, 0.0, 33))


def test_a_threshold_below_every_magnitude_is_no_gap():
    found = examine(
        Sharing(torch.ones(2, 3).bool()), binarize(torch.ones(2, 3), 0.05, relative=True)
    )
    gap = next(finding for finding in found if finding.name == "gap")
    assert gap.is_alarm
    assert "no magnitude lies below the threshold" in gap.explanation
