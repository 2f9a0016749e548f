"""Checks of a recovered structure, each with an explanation."""

from dataclasses import dataclass

from triptych.objectives.commune.structure.identifiability import IdentifiableGroups, RankCheck
from triptych.objectives.commune.structure.sharing import Sharing
from triptych.objectives.commune.structure.stability import Stability
from triptych.objectives.commune.structure.support import Support

LEAST_GAP, LEAST_CONDITIONING, LEAST_JACCARD = 1.5, 1e-3, 0.8


@dataclass(frozen=True)
class Finding:
    """The outcome of one check.

    Attributes:
        name: Name of the check.
        is_alarm: Whether the structure is not reliable until this is resolved.
        explanation: The result, its meaning and possible remedies.
    """

    name: str
    is_alarm: bool
    explanation: str


def examine(
    sharing: Sharing,
    support: Support,
    groups: IdentifiableGroups | None = None,
    ranks: RankCheck | None = None,
    stability: Stability | None = None,
) -> list[Finding]:
    """Run all checks for which there are inputs; one finding each, in this order.

    Args:
        sharing: Relevance of latents to agents.
        support: The support from which the relevance was derived.
        groups: Blocks of latents that the theory can tell apart.
        ranks: Whether the theory's assumptions hold.
        stability: Agreement over seeds or bootstraps.
    """
    findings = [_dead(sharing), _all_shared(sharing), _gap(support)]
    if groups is not None:
        findings.append(_groups(groups))
    if ranks is not None:
        findings += [_invertible(ranks), _spanning(ranks)]
    if stability is not None:
        findings.append(_stable(stability))
    return findings


def _dead(sharing: Sharing) -> Finding:
    dead, total = sharing.dead, sharing.relevant_KZ.shape[1]
    if not dead:
        return Finding("dead latents", False, f"all {total} latents matter to some agent")
    return Finding(
        "dead latents",
        True,
        f"{len(dead)} of {total} latents matter to no agent ({_some(dead)}): there are more "
        "latents than the states have room for, or the penalty is too strong. Lower one of them",
    )


def _all_shared(sharing: Sharing) -> Finding:
    num_agents = sharing.relevant_KZ.shape[0]
    live = sharing.agreement[sharing.agreement > 0]
    if num_agents > 1 and len(live) and bool((live == num_agents).all()):
        return Finding(
            "sharing",
            True,
            f"every live latent matters to all {num_agents} agents: there is no structure to route "
            "by. An l1 norm of elements seldom clears an agent's block of a column: use the group "
            "norm, raise its weight, or raise the threshold if the gap is elsewhere",
        )
    private = [len(latents) for latents in sharing.private]
    return Finding(
        "sharing", False, f"{len(sharing.shared)} latents are shared, {private} private by agent"
    )


def _gap(support: Support) -> Finding:
    what = (
        f"the smallest kept magnitude is {support.gap:.3g} times the largest dropped one "
        f"(threshold {support.threshold:.3g})"
    )
    if support.gap >= LEAST_GAP:
        return Finding("gap", False, what)
    return Finding(
        "gap",
        True,
        f"{what}: a slightly different threshold gives another structure. Train longer, raise the "
        "penalty, or put the threshold into the widest gap",
    )


def _groups(groups: IdentifiableGroups) -> Finding:
    identified, live = len(groups.identified), sum(len(block.members) for block in groups.blocks)
    if identified == live:
        return Finding("identifiability", False, f"all {live} live latents can be told apart")
    mixed = [block for block in groups.blocks if not block.is_identified]
    first = mixed[0]
    leak = f", which may contain {_some(first.may_contain)}" if first.may_contain else ""
    return Finding(
        "identifiability",
        True,
        f"{identified} of {live} live latents can be named one by one; {len(mixed)} blocks cannot, "
        f"such as {_some(first.members)}{leak}: every row that depends on the one depends on the "
        "other. Read them as blocks; decorrelation or more rows may tell them apart, the penalty "
        "alone cannot",
    )


def _invertible(ranks: RankCheck) -> Finding:
    what = (
        "the smallest singular value of the decoder's Jacobian is "
        f"{ranks.conditioning:.2g} of its largest"
    )
    if ranks.conditioning >= LEAST_CONDITIONING:
        return Finding("invertibility", False, what)
    return Finding(
        "invertibility",
        True,
        f"{what}: the decoder is not one to one, which the theory assumes. Use fewer latents",
    )


def _spanning(ranks: RankCheck) -> Finding:
    share = ranks.spanning_share
    what = f"{share:.0%} of the rows have Jacobian samples that span their support"
    if share == 1:
        return Finding("spanning", False, what)
    return Finding(
        "spanning",
        True,
        f"{what}: the theorems assume it of all. A linear decoder never spans more than one latent "
        "a row; with another, look at more samples",
    )


def _stable(stability: Stability) -> Finding:
    what = f"structures overlap by {stability.jaccard:.2f} (Jaccard)"
    if stability.jaccard >= LEAST_JACCARD:
        return Finding("stability", False, what)
    return Finding(
        "stability",
        True,
        f"{what}: another seed or sample gives another structure. Use more samples, or take the "
        "best of several restarts",
    )


def _some(latents: list[int]) -> str:
    shown = ", ".join(str(latent) for latent in latents[:8])
    return f"{shown}, ..." if len(latents) > 8 else shown
