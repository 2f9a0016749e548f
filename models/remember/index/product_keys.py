"""The papers' slot index: two trainable sets of half keys per head."""

from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from triptych.models.remember.index.product_key_search import product_key_topk
from triptych.models.remember.index.slot_index import SlotIndex, with_index_args
from triptych.models.remember.memory_config import MemoryConfig

# Shapes: B queries, H heads, D query width, E = D/2, N half keys, S = N*N slots, K kept


def normalised_halves(halves: Tensor, gain_H: Tensor | None = None) -> Tensor:
    """Apply qk-norm to halves (..., E): zero mean, unit variance; eps as in LayerNorm.

    Args:
        halves: Halves of queries (B, H, 2, E) or keys.
        gain_H: For queries: multiply each head's halves by its gain and divide by sqrt(E).
    """
    width = halves.shape[-1]
    normal = F.layer_norm(halves, (width,))
    return normal if gain_H is None else normal * (gain_H * width**-0.5).view(-1, 1, 1)


class ProductKeyIndex(SlotIndex):
    """N * N slots addressed by pairs of half keys: slot i * N + j has the key [K1_i; K2_j].

    Search is exact and costs O(N) key comparisons instead of O(N^2).

    Args:
        num_keys: N, half keys of each half; slots are N squared.
        num_heads: H; each head has its own half keys.
        query_dim: D, even.
        qk_norm: Normalise each half of queries and keys to zero mean and unit variance, divide
            by sqrt(E), and scale queries by a learned gain per head. This keeps scores in range
            in small models.

    Raises:
        ValueError: if `query_dim` is odd or a size is not positive.

    Init: keys ~ U(+-1/sqrt(D)) (facebookresearch/memory).
    Deviation: the papers mention qk-norm without code. LayerNorm of the halves is ours (as in the
    UltraMem re-implementation of Memory+). Queries have no batch norm, which padding distorts.
    """

    exact = True

    def __init__(
        self, num_keys: int, num_heads: int, query_dim: int, qk_norm: bool = False
    ) -> None:
        if query_dim % 2:
            raise ValueError(f"query_dim={query_dim} must be even: queries are split in halves")
        if min(num_keys, num_heads, query_dim) < 1:
            raise ValueError(
                f"sizes must be positive, got num_keys={num_keys}, num_heads={num_heads}, "
                f"query_dim={query_dim}"
            )
        super().__init__(num_keys**2, num_heads, query_dim)
        self.num_keys = num_keys
        self.qk_norm = qk_norm
        self.keys = nn.Parameter(torch.empty(num_heads, 2, num_keys, query_dim // 2))
        self.query_gain = nn.Parameter(torch.empty(num_heads)) if qk_norm else None
        self.reset_parameters()

    @classmethod
    def from_config(cls, memory: MemoryConfig) -> Self:
        """Build the index; see `SlotIndex.from_config`."""
        key_dim, _ = memory.sizes()
        sizes = {"num_keys": memory.num_keys, "num_heads": memory.num_heads, "query_dim": key_dim}
        return cls(**with_index_args(cls, memory, sizes | {"qk_norm": memory.qk_norm}))

    def reset_parameters(self) -> None:
        """Initialise the keys again."""
        bound = self.query_dim**-0.5
        nn.init.uniform_(self.keys, -bound, bound)
        if self.query_gain is not None:
            nn.init.ones_(self.query_gain)

    def lookup(self, query_BHD: Tensor, num_kept: int) -> tuple[Tensor, Tensor]:
        """Find slots and scores; see `SlotIndex.lookup`. The half scores give both at once.

        Raises:
            ValueError: if `num_kept` is larger than `num_keys`.
        """
        query_BH2E, keys_H2NE = self._halves(query_BHD)
        return product_key_topk(query_BH2E, keys_H2NE, num_kept)

    def search(self, query_BHD: Tensor, num_kept: int) -> Tensor:
        """Find the best slots; see `SlotIndex.search`."""
        with torch.no_grad():
            return self.lookup(query_BHD, num_kept)[0]

    def score(self, query_BHD: Tensor, ids_BHK: Tensor) -> Tensor:
        """Score slots; see `SlotIndex.score`. `lookup` is cheaper, since this gathers the keys."""
        query_BH2E, keys_H2NE = self._halves(query_BHD)
        halves_2BHK = (ids_BHK // self.num_keys, ids_BHK % self.num_keys)
        heads_H1 = torch.arange(self.num_heads, device=ids_BHK.device).unsqueeze(-1)
        first, second = (
            torch.einsum("bhe,bhke->bhk", query_BH2E[:, :, half], keys_H2NE[heads_H1, half, ids])
            for half, ids in enumerate(halves_2BHK)
        )
        return first + second

    @torch.no_grad()
    def full_keys(self) -> Tensor:
        """Return the normalised key of every slot, keys_HSD."""
        keys_H2NE = self.keys if self.query_gain is None else normalised_halves(self.keys)
        num_keys = self.num_keys
        first_HSE = keys_H2NE[:, 0].repeat_interleave(num_keys, dim=1)
        return torch.cat([first_HSE, keys_H2NE[:, 1].repeat(1, num_keys, 1)], dim=-1)

    def _halves(self, query_BHD: Tensor) -> tuple[Tensor, Tensor]:
        """Split queries into halves; normalise them and the keys if qk-norm is on."""
        query_BH2E = query_BHD.unflatten(-1, (2, self.query_dim // 2))
        if self.query_gain is None:
            return query_BH2E, self.keys
        return normalised_halves(query_BH2E, self.query_gain), normalised_halves(self.keys)

    def extra_repr(self) -> str:
        """Return the sizes, for `print(model)`."""
        return f"{super().extra_repr()}, num_keys={self.num_keys}, qk_norm={self.qk_norm}"
