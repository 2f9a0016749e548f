"""A slot index of independent full keys, searched through compressed codes.

Every slot has an independent key for each head. Sub-vectors of the keys are compressed to ids of
k-means centroids. A search ranks the codes by look-up tables, takes the best as candidates, and
ranks these by exact dot products of queries and full keys.

Source: the paper watch of 3 November 2025 on 2510.15103, "How inference works"; faiss (product
quantisation, inverted lists). Deviation: candidates are the best single codes, not every key of the
best combinations of centroids; codebooks have 16 centroids by default, not 256. The papers' exact
and trainable product keys are `ProductKeyIndex`.
"""

from typing import Any, Self

import torch
from torch import Tensor, nn

from triptych.models.remember.index.exact_search import exact_topk
from triptych.models.remember.index.faiss_codes import Backend, FaissCodes, choose_backend
from triptych.models.remember.index.faiss_options import FaissOptions
from triptych.models.remember.index.key_scores import key_scores
from triptych.models.remember.index.product_keys import ProductKeyIndex, normalised_halves
from triptych.models.remember.index.row_topk import row_topk
from triptych.models.remember.index.slot_index import SlotIndex, with_index_args
from triptych.models.remember.memory_config import MemoryConfig

# Shapes: A slots added, B queries, H heads, D query width, K kept, C candidates, S slots
# Codes are encoded again above this share of dead ones, of slots removed since the last encoding.
_LARGEST_DEAD_SHARE = 1 / 8


class FaissSlotIndex(SlotIndex):
    """S independent keys for each head; slots can be added and removed.

    `search` is approximate with faiss and otherwise exact (see `FaissOptions`). `score` is always
    the exact dot product. Codebooks are not saved. The first search trains them, and equal keys
    give equal codebooks. If slots were added or removed, or keys changed, call `refresh()` before
    saving: otherwise a loaded index may find other candidates.

    Args:
        num_slots: S, as in the value table.
        num_heads: H; each head has separate keys.
        query_dim: D; even with `qk_norm`.
        qk_norm: As in `ProductKeyIndex`. Each half of a query is normalised at every look-up, each
            half of a key only once, when it is set.
        options: Settings of the search.

    Raises:
        ValueError: if a size is not positive, the width does not fit the sub-vectors, or
            `num_active` exceeds the number of slots.

    Init: keys ~ U(+-1/sqrt(D)), as product keys.
    """

    def __init__(
        self,
        num_slots: int,
        num_heads: int,
        query_dim: int,
        qk_norm: bool = False,
        options: FaissOptions | None = None,
    ) -> None:
        if min(num_slots, num_heads, query_dim) < 1:
            raise ValueError(
                f"sizes must be positive, got num_slots={num_slots}, num_heads={num_heads}, "
                f"query_dim={query_dim}"
            )
        if qk_norm and query_dim % 2:
            raise ValueError(f"query_dim={query_dim} must be even: qk_norm normalises halves")
        super().__init__(num_slots, num_heads, query_dim)
        self.qk_norm = qk_norm
        self.options = options or FaissOptions()
        self.options.subvectors(query_dim)
        num_active = self.options.num_active
        if num_active is not None and num_active > num_slots:
            raise ValueError(
                f"memory.index_args.num_active={num_active} is more than the {num_slots} slots; "
                f"raise memory.num_keys (slots = num_keys squared)"
            )
        keys_HSD = torch.empty(num_heads, num_slots, query_dim)
        #: keys_HSD after normalisation; a parameter if they are trained.
        self.keys: Tensor
        if self.options.train_keys:
            self.keys = nn.Parameter(keys_HSD)
        else:
            self.register_buffer("keys", keys_HSD)
        #: active_S, bool: True for active slots, which a search can find.
        self.active: Tensor
        self.register_buffer("active", torch.ones(num_slots, dtype=torch.bool))
        self.query_gain = nn.Parameter(torch.empty(num_heads)) if qk_norm else None
        self._codes: FaissCodes | None = None
        self.reset_parameters()

    @classmethod
    def from_config(cls, memory: MemoryConfig) -> Self:
        """Build the index; see `SlotIndex.from_config`."""
        key_dim, _ = memory.sizes()
        sizes = (memory.num_slots, memory.num_heads, key_dim)
        options = FaissOptions(**with_index_args(FaissOptions, memory, {}))
        return cls(*sizes, qk_norm=memory.qk_norm, options=options)

    @classmethod
    def from_product_keys(cls, index: ProductKeyIndex, options: FaissOptions | None = None) -> Self:
        """Convert product keys to full keys: slot i * N + j gets [K1_i; K2_j].

        Scores are equal up to rounding, also with qk-norm. The keys take N times the memory.
        """
        made = cls(index.num_slots, index.num_heads, index.query_dim, index.qk_norm, options)
        made.to(index.keys).train(index.training)
        with torch.no_grad():
            made.keys.copy_(index.full_keys())
            if made.query_gain is not None and index.query_gain is not None:
                made.query_gain.copy_(index.query_gain)
                made.query_gain.requires_grad_(index.query_gain.requires_grad)
        return made

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Initialise the keys and the active slots again."""
        bound = self.query_dim**-0.5
        nn.init.uniform_(self.keys, -bound, bound)
        if self.query_gain is not None:
            self.keys.copy_(self._as_compared(self.keys))
            nn.init.ones_(self.query_gain)
        num_active = self.options.num_active
        self.active[:] = True
        if num_active is not None:
            self.active[num_active:] = False
        self._codes = None

    # -- look-up ----------------------------------------------------------------------------------

    def search(self, query_BHD: Tensor, num_kept: int) -> Tensor:
        """Find the best slots; see `SlotIndex.search`.

        Raises:
            ValueError: if fewer than `num_kept` slots are active.
        """
        if num_kept > self.num_active:
            raise ValueError(
                f"top_k={num_kept}, but only {self.num_active} slots are active: add slots, or "
                f"lower top_k"
            )
        with torch.no_grad():
            query_BHD = self._normalised(query_BHD)
            codes = self._encoded() if len(query_BHD) else None
            found = [
                self._exact(head, query_BHD[:, head], num_kept)
                if codes is None
                else self._reranked(codes, head, query_BHD[:, head], num_kept)
                for head in range(self.num_heads)
            ]
        return torch.stack(found, dim=1)

    def score(self, query_BHD: Tensor, ids_BHK: Tensor) -> Tensor:
        """Compute exact dot products; see `SlotIndex.score`."""
        return key_scores(self._normalised(query_BHD), self.keys, ids_BHK)

    def _exact(self, head: int, query_BD: Tensor, num_kept: int) -> Tensor:
        return exact_topk(query_BD, self.keys[head], self.active, num_kept)

    def _reranked(self, codes: FaissCodes, head: int, query_BD: Tensor, num_kept: int) -> Tensor:
        """Rank the candidates by exact scores; search exactly for queries with too few of them."""
        num_candidates = self.options.candidates(num_kept, codes.num_positions)
        ids_BC = codes.search(head, query_BD, num_candidates)
        keys_1SD, ids_B1C = self.keys[head].unsqueeze(0), ids_BC.clamp(min=0).unsqueeze(1)
        scores_BC = key_scores(query_BD.unsqueeze(1), keys_1SD, ids_B1C).squeeze(1)
        scores_BC.masked_fill_(ids_BC < 0, -torch.inf)
        ids_BK = ids_BC.gather(1, row_topk(scores_BC, num_kept)[1])
        lacking = (ids_BK < 0).any(1)
        if lacking.any():
            ids_BK[lacking] = self._exact(head, query_BD[lacking], num_kept)
        return ids_BK

    def _normalised(self, query_BHD: Tensor) -> Tensor:
        """Convert queries to the keys' dtype and normalise them."""
        query_BHD = query_BHD.to(self.keys.dtype)
        if self.query_gain is None:
            return query_BHD
        halves_BH2E = query_BHD.unflatten(-1, (2, self.query_dim // 2))
        return normalised_halves(halves_BH2E, self.query_gain).flatten(-2)

    def _as_compared(self, keys: Tensor) -> Tensor:
        """Normalise keys (..., D) if qk-norm is on."""
        if self.query_gain is None:
            return keys
        return normalised_halves(keys.unflatten(-1, (2, self.query_dim // 2))).flatten(-2)

    # -- adding and removing slots ----------------------------------------------------------------

    @property
    def num_active(self) -> int:
        """Number of active slots."""
        return int(self.active.sum())

    @torch.no_grad()
    def add(self, keys_AHD: Tensor) -> Tensor:
        """Activate free slots with these keys, lowest ids first.

        The index owns no values, so the rows of the value table do not change.

        Args:
            keys_AHD: A key for each new slot and head.

        Raises:
            ValueError: if there are too few free slots, or the shape does not fit.

        Returns:
            ids_A: int64, the activated slots, ascending.
        """
        expected = (self.num_heads, self.query_dim)
        if keys_AHD.ndim != 3 or keys_AHD.shape[1:] != expected:
            raise ValueError(
                f"keys of shape {tuple(keys_AHD.shape)}: give (slots, heads, width) = (any, "
                f"{self.num_heads}, {self.query_dim})"
            )
        free = (~self.active).nonzero().squeeze(1)
        if len(keys_AHD) > len(free):
            raise ValueError(
                f"cannot add {len(keys_AHD)} slots: {len(free)} of the value table's "
                f"{self.num_slots} are free. Remove some first, or build the model with more "
                f"(memory.num_keys squared, of which memory.index_args.num_active start active)"
            )
        ids_A = free[: len(keys_AHD)]
        keys_HAD = self._as_compared(keys_AHD.to(self.keys)).transpose(0, 1)
        self.keys[:, ids_A] = keys_HAD
        self.active[ids_A] = True
        if self._codes is not None:
            self._codes.add(self.keys, ids_A)
        return ids_A

    @torch.no_grad()
    def remove(self, ids: Tensor) -> None:
        """Deactivate slots; a later `add` can use them again.

        Args:
            ids: int64, distinct active slots.

        Raises:
            ValueError: if a slot is inactive or given twice.
        """
        ids = ids.to(self.active.device)
        outside = ids[(ids < 0) | (ids >= self.num_slots)]
        inactive = outside if len(outside) else ids[~self.active[ids]]
        if len(inactive):
            raise ValueError(f"slots {inactive.tolist()[:8]} are not active: nothing to remove")
        if len(ids.unique()) < len(ids):
            raise ValueError("a slot to remove is given twice: give each slot once")
        self.active[ids] = False
        if self._codes is not None:
            self._codes.remove(ids)
            if self._codes.num_dead > _LARGEST_DEAD_SHARE * self._codes.num_positions:
                self._codes.encode(self.keys, self.active)

    # -- codes ------------------------------------------------------------------------------------

    def refresh(self) -> None:
        """Train the codebooks on the present keys, and encode these."""
        self._codes = None
        self._encoded()

    @torch.no_grad()
    def staleness(self) -> float:
        """Compute the share of keys with an outdated code: 0 while keys are fixed."""
        return 0.0 if self._codes is None else self._codes.changed_share(self.keys)

    @torch.no_grad()
    def recall_at_k(self, query_BHD: Tensor, num_kept: int = 32) -> float:
        """Compute the share of each query's true best K slots that `search` finds."""
        found_BHK = self.search(query_BHD, num_kept)
        query_BHD = self._normalised(query_BHD)
        num_found = 0
        for head in range(self.num_heads):
            true_BK = self._exact(head, query_BHD[:, head], num_kept)
            equal_BKK = found_BHK[:, head].unsqueeze(2) == true_BK.unsqueeze(1)
            num_found += int(equal_BKK.sum())
        return num_found / max(1, found_BHK.numel())

    @property
    def backend(self) -> Backend:
        """The search for the keys' present device (see `choose_backend`)."""
        return choose_backend(self.options, self.keys.device)

    def _encoded(self) -> FaissCodes | None:
        """Return the codes, trained at the first call; None if the search is exact."""
        backend = self.backend
        num_centroids = 256 if backend == "faiss-gpu" else self.options.num_centroids
        if backend == "torch" or self.num_active < max(self.options.exact_below, num_centroids):
            self._codes = None
        elif self._codes is None:
            gpu = self.keys.device.index if backend == "faiss-gpu" else None
            self._codes = FaissCodes(self.keys, self.active, self.options, gpu)
        return self._codes

    # -- life of the faiss objects ----------------------------------------------------------------

    def _apply(self, *args: Any, **kwargs: Any) -> Self:
        self._codes = None  # device or dtype may change
        super()._apply(*args, **kwargs)  # type: ignore[no-untyped-call]
        return self

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        self._codes = None
        super()._load_from_state_dict(*args, **kwargs)

    def __getstate__(self) -> dict[str, Any]:
        """Leave the faiss objects out of pickles and copies, which train equal ones."""
        return self.__dict__ | {"_codes": None}

    def extra_repr(self) -> str:
        """Return sizes and backend, for `print(model)`."""
        num_active = "unknown" if self.active.is_meta else self.num_active
        # Trained at the first search.
        codes = "" if self._codes is None else f", codes={self._codes.name!r}"
        return (
            f"{super().extra_repr()}, num_active={num_active}, qk_norm={self.qk_norm}, "
            f"backend={self.backend!r}{codes}"
        )
