"""The memory layer and its peers with the same weights and input, prepared for timing."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from triptych.benchmarks.paired import Side
from triptych.models.remember.index.product_keys import ProductKeyIndex
from triptych.models.remember.memory_layer import MemoryLayer
from triptych.models.remember.values.value_table import ValueTable

# Shapes: B tokens, M width, H heads, E half query width, N half keys, K slots read by a token

PEER = "product-key-memory"


@dataclass(frozen=True)
class LayerSizes:
    """Sizes of one comparison; the number of slots is `num_keys` squared."""

    num_keys: int
    num_tokens: int = 4096
    width: int = 256
    num_heads: int = 4
    top_k: int = 32
    half_dim: int = 256

    @property
    def num_slots(self) -> int:
        """Number of slots."""
        return self.num_keys**2


class LayerSides:
    """The memory layer and its peers.

    Args:
        sizes: Sizes of the layer and its input.
        device: Device of weights and input.
    """

    def __init__(self, sizes: LayerSizes, device: torch.device) -> None:
        torch.manual_seed(0)
        self.sizes = sizes
        width = sizes.width
        with device:
            index = ProductKeyIndex(sizes.num_keys, sizes.num_heads, 2 * sizes.half_dim)
            self.table = ValueTable(sizes.num_slots, width, "selected_rows")
            self.ours = MemoryLayer(width, sizes.top_k, index, self.table)
            self.ffn = nn.Sequential(
                nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
            )
            self.x_BM = torch.randn(sizes.num_tokens, width, requires_grad=True)
            self.grad_BM = torch.randn(sizes.num_tokens, width)
        self.peer = product_key_memory(self.ours)
        self.bag, self.sparse_bag = (
            nn.EmbeddingBag.from_pretrained(
                self.table.weight.detach(), freeze=False, mode="sum", sparse=sparse
            )
            for sparse in (False, True)
        )
        with torch.no_grad():
            ids_BHK, scores_BHK = index.lookup(self.query(), sizes.top_k)
        self.ids_BK = ids_BHK.flatten(1)
        self.weights_BK = scores_BHK.softmax(-1).flatten(1).requires_grad_()

    def query(self) -> Tensor:
        """Compute the queries of the input, (B, H, 2E)."""
        query_BHD: Tensor = self.ours.query(self.x_BM).unflatten(-1, (self.sizes.num_heads, -1))
        return query_BHD

    def layer_forward(self) -> list[Side]:
        """Return the forward passes of whole layers, ours first."""
        return [
            self._forward("memory layer", self._ours),
            self._forward(PEER, self._peer),
            self._forward("dense FFN", self._ffn),
        ]

    def layer_backward(self) -> list[Side]:
        """Return forward and backward passes of whole layers, ours first."""
        return [
            self._compact("memory layer", self._ours),
            self._dense("memory layer", self._ours),
            self._backward(PEER, self._peer),
            self._backward("dense FFN", self._ffn),
        ]

    def gather_forward(self) -> list[Side]:
        """Return the forward passes of the weighted gather alone, ours first."""
        return [
            self._forward("gather", self._gather),
            self._forward("EmbeddingBag", lambda: self._bag(self.bag)),
        ]

    def gather_backward(self) -> list[Side]:
        """Return forward and backward passes of the weighted gather alone, ours first."""
        return [
            self._compact("gather", self._gather),
            self._dense("gather", self._gather),
            self._backward("EmbeddingBag dense", lambda: self._bag(self.bag)),
            self._backward("EmbeddingBag sparse", lambda: self._bag(self.sparse_bag)),
        ]

    def _ours(self) -> Tensor:
        out_BM: Tensor = self.ours(self.x_BM)
        return out_BM

    def _peer(self) -> Tensor:
        out_BM: Tensor = self.peer(self.x_BM.unsqueeze(0)).squeeze(0)
        return out_BM

    def _ffn(self) -> Tensor:
        out_BM: Tensor = self.ffn(self.x_BM)
        return out_BM

    def _gather(self) -> Tensor:
        out_BM: Tensor = self.table(self.ids_BK, self.weights_BK)
        return out_BM

    def _bag(self, bag: nn.EmbeddingBag) -> Tensor:
        out_BM: Tensor = bag(self.ids_BK, per_sample_weights=self.weights_BK)
        return out_BM

    def _forward(self, name: str, forward: Callable[[], Tensor]) -> Side:
        return Side(f"{name} forward", torch.no_grad()(forward), self._release)

    def _backward(self, name: str, forward: Callable[[], Tensor]) -> Side:
        def run() -> None:
            forward().backward(self.grad_BM)

        return Side(f"{name} forward+backward", run, self._release)

    def _compact(self, name: str, forward: Callable[[], Tensor]) -> Side:
        def run() -> object:
            forward().backward(self.grad_BM)
            return self.table.row_gradient()

        return Side(f"{name} forward+backward", run, self._release)

    def _dense(self, name: str, forward: Callable[[], Tensor]) -> Side:
        def run() -> None:
            self.table.set_gradient("dense")
            forward().backward(self.grad_BM)
            self.table.set_gradient("selected_rows")

        return Side(f"{name} (dense gradient) forward+backward", run, self._release)

    def _release(self) -> None:
        for module in (self.ours, self.table, self.peer, self.ffn, self.bag, self.sparse_bag):
            module.zero_grad(set_to_none=True)
        self.x_BM.grad = self.weights_BK.grad = None
        self.table.clear_reads()


def product_key_memory(ours: MemoryLayer) -> nn.Module:
    """Build the peer with our weights, so that it computes the same function.

    Args:
        ours: Memory layer on product keys, without qk-norm and gate.

    Raises:
        ValueError: if the package is not installed.
    """
    try:
        from product_key_memory import PKM
    except ImportError as error:
        raise ValueError(
            "product-key-memory is not installed: pip install product-key-memory (extra `bench`)"
        ) from error
    index = ours.index
    assert isinstance(index, ProductKeyIndex)
    width, half_dim = ours.query.in_features, index.query_dim // 2
    with torch.device("meta"):
        peer = PKM(
            dim=width,
            heads=index.num_heads,
            num_keys=index.num_keys,
            topk=ours.top_k,
            dim_head=half_dim,
        )
    peer.norm = nn.Identity()
    weight = ours.query.weight.detach().unflatten(0, (index.num_heads, 2, half_dim))
    peer.to_queries.weight = nn.Parameter(weight.transpose(0, 1).reshape(-1, width))
    peer.keys = nn.Parameter(index.keys.detach().transpose(1, 2).contiguous())
    # Both sides share the memory of the table and have separate gradients.
    peer.values.weight = nn.Parameter(ours.values.weight.detach())
    module: nn.Module = peer
    return module
