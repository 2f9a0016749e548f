"""Checks of a recovered structure, each with an explanation."""

from dataclasses import dataclass
from typing import Literal

from triptych.objectives.commune.structure.identifiability import IdentifiableGroups, RankCheck
from triptych.objectives.commune.structure.sharing import Sharing
from triptych.objectives.commune.structure.stability import Stability
from triptych.objectives.commune.structure.state_evidence import StateEvidence
from triptych.objectives.commune.structure.support import Support

LEAST_GAP, LEAST_CONDITIONING, LEAST_JACCARD = 1.5, 1e-3, 0.8
# Below the first share of predicted variance agents' states tell nothing of each other.
INDEPENDENT_SHARE, LEAST_SAMPLES_PER_LATENT = 0.02, 2


@dataclass(frozen=True)
class Training:
    """What a codec was trained with, so that a finding can name the remedy.

    Attributes:
        norm: Norm of the penalty on the Jacobian; None: no penalty.
        num_samples: Number of states that it was trained on.
        decorrelation_weight: Weight of the decorrelation term; 0: not in use.
        num_batch: Samples of a batch, which the decorrelation term sees.
    """

    norm: Literal["l1", "group"] | None
    num_samples: int
    decorrelation_weight: float
    num_batch: int


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
    evidence: StateEvidence | None = None,
    training: Training | None = None,
) -> list[Finding]:
    """Run all checks for which there are inputs; one finding each, in this order.

    Args:
        sharing: Relevance of latents to agents.
        support: The support from which the relevance was derived.
        groups: Blocks of latents that the theory can tell apart.
        ranks: Whether the theory's assumptions hold.
        stability: Agreement over seeds or bootstraps.
        evidence: What the states tell by themselves.
        training: What the codec was trained with; without it remedies are general.
    """
    findings = [_dead(sharing), _all_shared(sharing, training), _gap(support)]
    if groups is not None:
        findings.append(_groups(groups))
    if ranks is not None:
        findings += [_invertible(ranks), _spanning(ranks)]
    if stability is not None:
        findings.append(_stable(stability))
    num_latents = sharing.relevant_KZ.shape[1]
    if evidence is not None:
        findings.append(_room(evidence, num_latents))
        if sharing.relevant_KZ.shape[0] > 1:
            findings.append(_agreeing(evidence, sharing))
    if training is not None:
        findings.append(_enough(training, num_latents))
        if training.decorrelation_weight:
            findings.append(_met(training, evidence, num_latents))
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


def _all_shared(sharing: Sharing, training: Training | None) -> Finding:
    num_agents = sharing.relevant_KZ.shape[0]
    live = sharing.agreement[sharing.agreement > 0]
    if num_agents > 1 and len(live) and bool((live == num_agents).all()):
        return Finding(
            "sharing",
            True,
            f"every live latent matters to all {num_agents} agents: there is no structure to route "
            f"by. {_REMEDIES[None if training is None else training.norm]}",
        )
    private = [len(latents) for latents in sharing.private]
    return Finding(
        "sharing", False, f"{len(sharing.shared)} latents are shared, {private} private by agent"
    )


_THRESHOLD = "raise the threshold if the gap is elsewhere"
_REMEDIES = {
    "l1": "The l1 norm of elements seldom clears an agent's block of a column: set penalty.norm to "
    f"group, raise penalty_weight, or {_THRESHOLD}",
    "group": "The group norm is in use: raise penalty_weight, lower codec.num_latents to the rank "
    f"of the states, train longer, or {_THRESHOLD}",
    None: "No penalty on the Jacobian is in use: set penalty {norm: group, reduction: sum}, or "
    f"{_THRESHOLD}",
}


def _gap(support: Support) -> Finding:
    if not support.separates:
        side = "below" if bool(support.mask.any()) else "above"
        return Finding(
            "gap",
            True,
            f"no magnitude lies {side} the threshold {support.threshold:.3g}: no gap was found, "
            "and the threshold decides nothing. If nothing is private this is right; otherwise "
            "train longer, raise the penalty's weight, or set structure.threshold from the figure",
        )
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


def _room(evidence: StateEvidence, num_latents: int) -> Finding:
    what = (
        f"the states vary in {evidence.rank} directions (by agent {evidence.agent_ranks}; "
        f"{evidence.entropy_rank:.1f} carry most of it)"
    )
    if num_latents <= evidence.rank:
        return Finding("rank of the states", False, f"{what}, for {num_latents} latents")
    return Finding(
        "rank of the states",
        True,
        f"{what}, and there are {num_latents} latents: many decoders fit equally well, and which "
        "latents are shared is not determined. Lower codec.num_latents, or give more questions",
    )


def _agreeing(evidence: StateEvidence, sharing: Sharing) -> Finding:
    shares = evidence.predicted_shares
    shown = ", ".join(f"{max(0.0, share):.0%}" for share in shares)
    what = f"a linear map predicts {shown} of each agent's state from the others' states"
    is_independent = max(shares) < INDEPENDENT_SHARE
    live = int((sharing.agreement > 0).sum())
    if is_independent and len(sharing.shared) > 0.1 * live:
        return Finding(
            "agreement with the states",
            True,
            f"{what}, so the agents' states are independent as far as that shows; still "
            f"{len(sharing.shared)} of {live} live latents are called shared. Do not read the "
            "structure: it is the codec's, not the states'. With the group norm, raise "
            "penalty_weight until they part",
        )
    if not is_independent and not sharing.shared:
        return Finding(
            "agreement with the states",
            True,
            f"{what}, so the agents share evidence; still no latent is called shared. Lower "
            "penalty_weight or structure.threshold",
        )
    return Finding("agreement with the states", False, what)


def _enough(training: Training, num_latents: int) -> Finding:
    what = f"{training.num_samples} states were learned from, for {num_latents} latents"
    if training.num_samples >= LEAST_SAMPLES_PER_LATENT * num_latents:
        return Finding("samples", False, what)
    return Finding(
        "samples",
        True,
        f"{what}: with so few the latents can memorise samples. Give at least "
        f"{LEAST_SAMPLES_PER_LATENT * num_latents} questions (task.num_train), or lower "
        "codec.num_latents",
    )


def _met(training: Training, evidence: StateEvidence | None, num_latents: int) -> Finding:
    limits = {"samples of a batch minus one": training.num_batch - 1}
    if evidence is not None:
        limits["directions of the states"] = evidence.rank
    what, limit = min(limits.items(), key=lambda item: item[1])
    if num_latents <= limit:
        return Finding("decorrelation", False, f"{num_latents} latents can be uncorrelated")
    floor = num_latents**2 / max(1, limit) - num_latents
    return Finding(
        "decorrelation",
        True,
        f"{num_latents} latents and {limit} {what}: the term cannot fall below about {floor:.0f}, "
        "and mixes agents' evidence on the way there. Set decorrelation_weight to 0 (or null, "
        "which decides by the states), raise data.batch_size, or lower codec.num_latents",
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
