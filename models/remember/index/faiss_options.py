"""Settings of the faiss slot index; plain values, so that a model's config can hold them."""

from dataclasses import dataclass
from typing import Literal

# Coarse lists cost recall; below this many slots scanning every code is fast enough without them.
_LEAST_SLOTS_FOR_LISTS = 1 << 17


@dataclass(frozen=True)
class FaissOptions:
    """How `triptych.models.remember.index.faiss_index.FaissSlotIndex` finds its candidates.

    Args:
        num_centroids: Centroids of each sub-vector's codebook. 16 gives codes that a CPU scans
            with vector instructions; 256 with `num_subvectors: 8` are the numbers of the blog post
            that the index comes from, twenty times slower on a CPU. A GPU always takes 256.
        num_subvectors: Sub-vectors of a key, each with its own codebook; must divide the key
            width. None: one for every 2 dimensions at 16 centroids, for every 4 at 256.
        num_candidates: Slots of each query that are scored exactly. None: 6 times the slots kept,
            12 times where there are coarse clusters.
        num_lists: Coarse clusters, of which a search visits the nearest `num_probes`; 0: none, so
            every code is scanned. None: none below 131,072 slots, else the root of their number.
        num_probes: Clusters that a search visits. None: an eighth of them.
        exact_below: With fewer active slots than this every key is compared, which is exact and
            about as fast.
        num_active: Slots that can be found at the start; the others are free for `add`. None: all.
        train_keys: Make the keys parameters. They are fixed otherwise, so that codes never go
            stale; with trained keys call `refresh()` from time to time.
        backend: `auto` takes faiss where it is installed for the device that the keys are on, and
            an exact search in torch elsewhere; `faiss` refuses to do without; `torch` is exact.

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
        """Sub-vectors of a key of this width.

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
        """Coarse clusters for so many slots; 0 for none."""
        if self.num_lists is not None:
            return min(self.num_lists, num_slots)
        if num_slots < _LEAST_SLOTS_FOR_LISTS:
            return 0
        return round(num_slots**0.5)

    def candidates(self, num_kept: int, num_slots: int) -> int:
        """Slots to score exactly, for so many to be kept of so many."""
        share = 12 if self.lists(num_slots) else 6
        return max(num_kept, self.num_candidates or share * num_kept)

    def probes(self, num_lists: int) -> int:
        """Clusters to visit of so many."""
        return min(num_lists, self.num_probes or max(1, num_lists // 8))
