"""Settings of the faiss slot index, in plain values that fit into a model's config."""

import math
from dataclasses import dataclass
from typing import Literal

# Coarse lists cost recall. With fewer slots, scanning every code is fast enough without them.
_LEAST_SLOTS_FOR_LISTS = 1 << 17


@dataclass(frozen=True)
class FaissOptions:
    """The search of `triptych.models.remember.index.faiss_index.FaissSlotIndex`.

    Args:
        num_centroids: Centroids of each sub-vector's codebook. A CPU scans codes of 16 with vector
            instructions. 256, with `num_subvectors: 8`, is the choice of the index's source, and is
            twenty times slower on a CPU. A GPU always uses 256: by default with sub-vectors for
            codes as long as a CPU's, of at most 96 bytes.
        num_subvectors: Sub-vectors of a key, each with a separate codebook; must divide the key
            width. None: one for every 2 dimensions at 16 centroids, for every 4 at 256.
        num_candidates: Slots per query that are scored exactly. None: 6 times the slots kept, 12
            times with coarse clusters.
        num_lists: Coarse clusters, of which a search visits the nearest `num_probes`; 0: none, so
            every code is scanned. None: none below 131,072 slots, else the root of their number.
        num_probes: Clusters visited by a search. None: an eighth of them.
        exact_below: With fewer active slots than this, every key is compared, which is exact and
            about as fast.
        num_active: Active slots at the start; `add` can activate the others. None: all.
        train_keys: Make the keys parameters. Otherwise they are fixed, and their codes stay valid.
            With trained keys call `refresh()` from time to time.
        backend: `auto` uses faiss if it is installed for the keys' device, and otherwise an exact
            search in torch; `faiss` raises an error without it; `torch` is exact.

    Raises:
        ValueError: on settings that cannot work.
    """

    num_centroids: Literal[16, 256] = 16
    num_subvectors: int | None = None
    num_candidates: int | None = None
    num_lists: int | None = None
    num_probes: int | None = None
    exact_below: int = 8192
    num_active: int | None = None
    train_keys: bool = False
    backend: Literal["auto", "faiss", "torch"] = "auto"

    def __post_init__(self) -> None:
        if self.num_centroids not in (16, 256):
            raise ValueError(
                f"memory.index_args.num_centroids must be 16 or 256, got {self.num_centroids}"
            )
        if self.backend not in ("auto", "faiss", "torch"):
            raise ValueError(
                f"memory.index_args.backend must be auto, faiss or torch, got {self.backend!r}"
            )
        for name, least in (
            ("num_subvectors", 1),
            ("num_candidates", 1),
            ("num_lists", 0),
            ("num_probes", 1),
            ("exact_below", 0),
            ("num_active", 0),
        ):
            value = getattr(self, name)
            if value is not None and not (isinstance(value, int) and value >= least):
                raise ValueError(
                    f"memory.index_args.{name} must be a whole number of at least {least}, got "
                    f"{value!r}"
                )
        if not isinstance(self.train_keys, bool):
            raise ValueError(
                f"memory.index_args.train_keys must be true or false, got {self.train_keys!r}"
            )

    def subvectors(self, key_dim: int) -> int:
        """Return the number of sub-vectors of a key of this width.

        Raises:
            ValueError: if they do not divide it.
        """
        width = 2 if self.num_centroids == 16 else 4
        chosen = self.num_subvectors or max(1, key_dim // width)
        if self.num_subvectors is None:
            while key_dim % chosen:
                chosen -= 1
        if key_dim % chosen:
            raise ValueError(
                f"memory.index_args.num_subvectors={chosen} does not divide the key width {key_dim}"
            )
        return chosen

    def lists(self, num_slots: int) -> int:
        """Return the number of coarse clusters for this number of slots; 0: none."""
        if self.num_lists is not None:
            return min(self.num_lists, num_slots)
        if num_slots < _LEAST_SLOTS_FOR_LISTS:
            return 0
        return round(math.sqrt(num_slots))

    def candidates(self, num_kept: int, num_slots: int) -> int:
        """Return the number of slots to score exactly."""
        share = 12 if self.lists(num_slots) else 6
        return max(num_kept, self.num_candidates or share * num_kept)

    def probes(self, num_lists: int) -> int:
        """Return the number of clusters to visit."""
        return min(num_lists, self.num_probes or max(1, num_lists // 8))
