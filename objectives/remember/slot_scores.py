"""Scores of a memory's slots by their accesses in a batch, and the selection of the best.

A slot that a batch reads often and other text rarely is specific to that batch: it can learn
without disturbing other knowledge. All scores are functions of counts, so they do not depend on the
slot index, and equal counts give equal scores on every rank.

    counts_S = count_accesses(layer.last_ids, keep_mask, num_slots)
    rows_U = top_slots(slot_scores("tfidf", counts_S, background), num_slots=500)
"""

# Shapes: S slots, U selected slots, (B, T, H, K) batch, tokens, heads, slots read by a head

from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

Ranking = Literal["tfidf", "tf", "kl", "all"]
# Number of blocks per selected slot in which a table is searched.
_BLOCKS_A_SLOT = 8


@dataclass(frozen=True, eq=False)
class TableStatistics:
    """Accesses of background text to one value table, as a baseline for those of a batch.

    Attributes:
        document_frequency_S: int64 in [0, num_documents]; number of documents that read a slot.
        counts_S: int64; accesses of a slot in all documents.
        num_documents: |B|. A document is a whole batch of rows, as in the paper.
    """

    document_frequency_S: Tensor
    counts_S: Tensor
    num_documents: int
    _idf: dict[float, Tensor] = field(default_factory=dict, init=False, repr=False)

    def idf(self, exponent: float) -> Tensor:
        """Return ln((|B| + 1) / (df + 1))^exponent of each slot, float32 (S,), cached."""
        if exponent not in self._idf:
            self._idf[exponent] = inverse_document_frequency(
                self.document_frequency_S, self.num_documents, exponent
            )
        return self._idf[exponent]

    def to(self, device: torch.device | str) -> "TableStatistics":
        """Return the same statistics on another device."""
        return TableStatistics(
            self.document_frequency_S.to(device), self.counts_S.to(device), self.num_documents
        )


def count_accesses(slot_ids: Tensor, keep_mask: Tensor | None, num_slots: int) -> Tensor:
    """Count how often each slot is read.

    An access is one slot id: a token that reads k slots through each of H heads makes H k accesses,
    independent of their softmax weights.

    Args:
        slot_ids: Slots read, integers in [0, S), of any shape, say (B, T, H, k).
        keep_mask: True where an access counts; None: all count. As many dimensions as `slot_ids`,
            each of the same size or 1: (B, T, 1, 1) drops padding tokens.
        num_slots: S.

    Returns:
        counts_S: int64.

    Raises:
        ValueError: If an id is out of range, or the mask does not fit the ids. A GPU stops the
            process for an id out of range: looking for one would make the host wait.

    Source: 2510.15103, section 4: c(i).

    >>> count_accesses(torch.tensor([[0, 2], [0, 3]]), torch.tensor([[True], [False]]), 4)
    tensor([1, 0, 1, 0])
    """
    if slot_ids.is_floating_point() or slot_ids.dtype == torch.bool:
        raise ValueError(f"slot_ids must be integers, got {slot_ids.dtype}.")
    if slot_ids.device.type != "cpu":
        return _count_on_device(slot_ids, keep_mask, num_slots)
    kept_ids = (slot_ids if keep_mask is None else _keep(slot_ids, keep_mask)).flatten()
    if kept_ids.numel() == 0:
        return torch.zeros(num_slots, dtype=torch.int64, device=slot_ids.device)
    lowest, highest = torch.stack(kept_ids.aminmax()).tolist()
    if lowest < 0 or highest >= num_slots:
        raise ValueError(
            f"slot_ids must lie in [0, {num_slots}), got ids from {lowest} to {highest}: "
            "num_slots must be that of the memory that is read."
        )
    return kept_ids.bincount(minlength=num_slots)


def tf_idf_scores(
    counts_S: Tensor,
    document_frequency_S: Tensor,
    num_documents: int,
    idf_exponent: float = 1.0,
) -> Tensor:
    """Score slots highest that this batch reads often and few background documents read.

    score(i) = c(i) / sum_j c(j) * ln((|B| + 1) / (df(i) + 1))^p

    A slot that every background document reads scores exactly 0. With p = 1 a slot that none of a
    thousand documents reads has the factor ln 1001 = 6.91.

    Args:
        counts_S: Accesses of this batch, c; int64.
        document_frequency_S: Number of background documents that read a slot, df; int64.
        num_documents: |B|.
        idf_exponent: p. The paper's is 1. A larger one (ours) avoids slots that other text reads
            more strongly.

    Returns:
        scores_S: float32, at least 0, and 0 where `counts_S` is 0. With p of 8 or more it can
            underflow to 0 for slots that nearly all of many documents read.

    Raises:
        ValueError: If the shapes differ, or `idf_exponent` is not positive.

    Source: 2510.15103, section 4. Deviation: the exponent p.

    >>> tf_idf_scores(torch.tensor([3, 1, 0]), torch.tensor([1, 3, 0]), num_documents=3)
    tensor([0.5199, 0.0000, 0.0000])
    """
    _same_shape(counts_S, document_frequency_S, "document_frequency_S")
    idf_S = inverse_document_frequency(document_frequency_S, num_documents, idf_exponent)
    return tf_scores(counts_S).mul_(idf_S)


def inverse_document_frequency(
    document_frequency_S: Tensor, num_documents: int, exponent: float = 1.0
) -> Tensor:
    """Compute the factor of `tf_idf_scores` that favours rarely read slots; same arguments.

    Returns:
        idf_S: float32.
    """
    if not exponent > 0:
        raise ValueError(
            f"idf_exponent is {exponent}: set it above 0 (1 is the paper's), or "
            "ranking: tf to rank without document frequencies"
        )
    # One entry for each document frequency, so that equal counts give bit-equal scores.
    device = document_frequency_S.device
    smoothed = torch.arange(1, num_documents + 2, dtype=torch.float64, device=device)
    idf_by_frequency = ((num_documents + 1) / smoothed).log() ** exponent
    return idf_by_frequency.float().index_select(0, document_frequency_S)


def tf_scores(counts_S: Tensor, out: Tensor | None = None) -> Tensor:
    """Score slots by their frequency in this batch: score(i) = c(i) / sum_j c(j).

    Args:
        counts_S: Accesses of this batch; int64.
        out: float32 (S,), overwritten and returned. Without it every step allocates new memory; for
            a large table its page faults cost as much as the scoring.

    Returns:
        scores_S: float32 in [0, 1] with sum 1, unless nothing is read. It takes half the memory of
            float64, and equal counts still give equal scores.

    Source: 2510.15103, figure 6 (the ablation "TF only").

    >>> tf_scores(torch.tensor([3, 0, 1]))
    tensor([0.7500, 0.0000, 0.2500])
    """
    scores_S = torch.empty_like(counts_S, dtype=torch.float32) if out is None else out
    return scores_S.copy_(counts_S).div_(counts_S.sum().clamp_(min=1))


def kl_scores(counts_S: Tensor, background_counts_S: Tensor, smoothing: float = 1.0) -> Tensor:
    """Score slots by their terms in the divergence of this batch's accesses from the background.

    score(i) = p(i) ln(p(i) / q(i)), with p(i) = c(i) / sum_j c(j) and, over the S slots,
    q(i) = (b(i) + a) / (sum_j b(j) + a S). The sum of the scores is KL(p || q). A slot that is read
    less often than in the background scores below 0.

    Args:
        counts_S: Accesses of this batch, c; int64.
        background_counts_S: Accesses of the background, b; int64.
        smoothing: a, added to each background count, so that q is never 0.

    Returns:
        scores_S: float64, to separate similar background counts; 0 where `counts_S` is 0.

    Raises:
        ValueError: If the shapes differ, or `smoothing` is not positive.

    Source: 2604.05248 proposes to rank slots by KL divergence but gives no formula; this one is
    ours.

    >>> kl_scores(torch.tensor([3, 1, 0]), torch.tensor([0, 4, 2]))
    tensor([ 1.4322, -0.1996,  0.0000], dtype=torch.float64)
    """
    _same_shape(counts_S, background_counts_S, "background_counts_S")
    if not smoothing > 0:
        raise ValueError(f"smoothing is {smoothing}: it must be above 0")
    total = background_counts_S.sum().double() + smoothing * background_counts_S.numel()
    read_U = counts_S.nonzero().squeeze(1)
    frequency_U = counts_S[read_U].double() / counts_S.sum()
    expected_U = (background_counts_S[read_U].double() + smoothing) / total
    scores_S = torch.zeros(counts_S.shape, dtype=torch.float64, device=counts_S.device)
    scores_S[read_U] = frequency_U * (frequency_U / expected_U).log()
    return scores_S


def accessed_scores(counts_S: Tensor) -> Tensor:
    """Score every slot that was read with 1, and all others with 0.

    All scores are equal, so select all slots by `top_slots(scores_S, None)`.

    Args:
        counts_S: Accesses of this batch; int64.

    Returns:
        scores_S: float32.

    Source: 2510.15103, figure 6 (the ablation that finetunes all accessed slots).
    """
    return (counts_S > 0).float()


def slot_scores(
    ranking: Ranking,
    counts_S: Tensor,
    background: TableStatistics | None = None,
    idf_exponent: float = 1.0,
    out: Tensor | None = None,
) -> Tensor:
    """Score slots by the named ranking.

    Args:
        ranking: `tfidf` (the paper's), `tf`, `kl` or `all`.
        counts_S: Accesses of this batch; int64.
        background: Accesses of other text, on the same device; `tfidf` and `kl` need it.
        idf_exponent: See `tf_idf_scores`.
        out: See `tf_scores`; `tfidf` and `tf` write to it.

    Returns:
        scores_S: float32, for `kl` float64. Only slots that score above 0 should learn.

    Raises:
        ValueError: If the ranking is unknown, or its background is missing or of another table
            size.
    """
    if ranking == "tf":
        return tf_scores(counts_S, out)
    if ranking == "all":
        return accessed_scores(counts_S)
    if ranking not in ("tfidf", "kl"):
        raise ValueError(f"ranking is {ranking!r}: choose tfidf, tf, kl or all")
    if background is None:
        raise ValueError(
            f"ranking: {ranking} needs background statistics: collect them with "
            "configs/remember/background_statistics.yaml, or set ranking: tf"
        )
    if ranking == "kl":
        return kl_scores(counts_S, background.counts_S)
    _same_shape(counts_S, background.document_frequency_S, "document_frequency_S")
    return tf_scores(counts_S, out).mul_(background.idf(idf_exponent))


def top_slots(scores_S: Tensor, num_slots: int | None) -> Tensor:
    """Select the slots with the highest scores, all above 0.

    Args:
        scores_S: From one of the functions above, where a slot that was not read scores 0.
        num_slots: t, the maximum number; None: all that score above 0. Of equal scores at the
            border the lower ids are taken.

    Returns:
        rows_U: int64, ascending; fewer than t where fewer score above 0.

    Raises:
        ValueError: If `num_slots` is below 1.

    Source: 2510.15103, section 4.

    >>> top_slots(torch.tensor([0.1, 0.5, 0.0, 0.5, 0.1, -1.0]), 3)
    tensor([0, 1, 3])
    """
    if num_slots is not None and num_slots < 1:
        raise ValueError(f"num_slots is {num_slots}: select at least 1 slot, or null for all")
    if num_slots is None or num_slots >= scores_S.numel():
        return _scoring(scores_S)
    if scores_S.device.type != "cpu":
        return _first_by_sorting(scores_S, num_slots)
    # Each block's best is one of the scores, so the t best scores are at least the t-th of these.
    # One pass therefore leaves a small part of a large table to choose from.
    num_blocks = min(_BLOCKS_A_SLOT * num_slots, scores_S.numel())
    size = scores_S.numel() // num_blocks
    blocks = scores_S[: size * num_blocks].view(num_blocks, size)
    rest = scores_S[size * num_blocks :]
    best = blocks.amax(1)
    lowest = best.topk(num_slots).values[-1]
    if not lowest > 0 or best.isnan().any():  # fewer slots score, or there is a nan
        return _first(_scoring(scores_S), scores_S, num_slots)
    searched = (best >= lowest).nonzero().squeeze(1)
    number, place = (blocks[searched] >= lowest).nonzero().unbind(1)
    in_rest = (rest >= lowest).nonzero().squeeze(1) + size * num_blocks
    candidates_U = torch.cat([searched[number] * size + place, in_rest])
    return _first(candidates_U, scores_S, num_slots)


def slots_by_share(scores_S: Tensor, share: float) -> Tensor:
    """Select the fewest slots that hold a share of the total positive score.

    Args:
        scores_S: As in `top_slots`.
        share: Above 0 and at most 1; 1 selects all slots that score above 0.

    Returns:
        rows_U: int64, ascending. Of equal scores at the border the lower ids are taken.

    Raises:
        ValueError: If `share` is not in (0, 1].

    Source: ours; the paper (2510.15103) leaves a t that adapts to future work.

    >>> slots_by_share(torch.tensor([0.2, 0.5, 0.0, 0.3]), 0.8)
    tensor([1, 3])
    """
    if not 0 < share <= 1:
        raise ValueError(f"the share of the score is {share}: set it above 0 and to at most 1")
    candidates_U = _scoring(scores_S)
    if share == 1 or candidates_U.numel() == 0:
        return candidates_U
    found_U, order_U = scores_S[candidates_U].double().sort(descending=True, stable=True)
    held_U = found_U.cumsum(0)
    wanted = held_U[-1] * share * (1 - 1e-12)  # tolerance for rounding of the sum
    num_selected = int((held_U < wanted).sum()) + 1
    return candidates_U[order_U[:num_selected]].sort().values


def _first_by_sorting(scores_S: Tensor, num_slots: int) -> Tensor:
    """Return what `top_slots` does; a GPU sorts quickly, and waits only for the number found."""
    scores_S = torch.where(scores_S > 0, scores_S, 0)  # nan does not score
    best_U, order_U = scores_S.sort(descending=True, stable=True)  # of equal ones the lower first
    return order_U[:num_slots][best_U[:num_slots] > 0].sort().values


def _first(candidates_U: Tensor, scores_S: Tensor, num_slots: int) -> Tensor:
    """Return the best of some slots, ascending; of equal scores the lower ids."""
    if candidates_U.numel() <= num_slots:
        return candidates_U
    found_U = scores_S[candidates_U]
    lowest = found_U.topk(num_slots).values[-1]
    selected_U = found_U > lowest
    tied = (found_U == lowest).nonzero().squeeze(1)
    selected_U[tied[: num_slots - int(selected_U.sum())]] = True
    return candidates_U[selected_U]


def _scoring(scores_S: Tensor) -> Tensor:
    """Return the slots that score above 0 (nan does not), ascending."""
    return (scores_S > 0).nonzero().squeeze(1)


def _same_shape(counts_S: Tensor, other_S: Tensor, name: str) -> None:
    if counts_S.shape != other_S.shape:
        raise ValueError(
            f"counts_S has shape {tuple(counts_S.shape)}, {name} {tuple(other_S.shape)}: they must "
            "be those of the same table"
        )


def _count_on_device(slot_ids: Tensor, keep_mask: Tensor | None, num_slots: int) -> Tensor:
    """Count without a size that depends on the mask, for which the host would wait."""
    counts_S = torch.zeros(num_slots, dtype=torch.int64, device=slot_ids.device)
    if keep_mask is None:
        counted = torch.ones_like(slot_ids, dtype=torch.int64)
    else:
        _check_mask(slot_ids, keep_mask)
        counted = keep_mask.long().expand_as(slot_ids)
    return counts_S.scatter_add_(0, slot_ids.flatten().long(), counted.flatten())


def _keep(slot_ids: Tensor, keep_mask: Tensor) -> Tensor:
    """Select the accesses that count, as a flat tensor."""
    _check_mask(slot_ids, keep_mask)
    return slot_ids[keep_mask.expand_as(slot_ids)]


def _check_mask(slot_ids: Tensor, keep_mask: Tensor) -> None:
    if keep_mask.dtype != torch.bool:
        raise ValueError(f"keep_mask must be boolean (True: counts), got {keep_mask.dtype}.")
    sizes = zip(keep_mask.shape, slot_ids.shape, strict=False)
    if keep_mask.ndim != slot_ids.ndim or any(mask not in (1, full) for mask, full in sizes):
        raise ValueError(
            f"keep_mask of shape {tuple(keep_mask.shape)} does not fit slot_ids of shape "
            f"{tuple(slot_ids.shape)}: give it as many dimensions, each of the same size or 1 "
            "(keep_mask_BT[:, :, None, None] for ids of shape (B, T, H, k))."
        )
