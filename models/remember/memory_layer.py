"""The memory layer: queries find slots, a softmax weighs their values, a gate scales the sum."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from triptych.models.remember.index.slot_index import SlotIndex
from triptych.models.remember.values.value_table import ValueTable

# Shapes: B batch, T time, M hidden size, H heads, D query width, K kept slots, V value width


class SwiluGate(nn.Module):
    """Input-dependent gate and output projection: out = W2(y * silu(W1 x)).

    Init: N(0, M^-1/2). Source: 2412.09764, section 3.1.5; facebookresearch/memory.

    Args:
        hidden_size: M.
        value_dim: V.
    """

    def __init__(self, hidden_size: int, value_dim: int) -> None:
        super().__init__()
        self.gate = nn.Linear(hidden_size, value_dim)
        self.output = nn.Linear(value_dim, hidden_size)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initialise both projections again."""
        for linear in (self.gate, self.output):
            nn.init.normal_(linear.weight, std=self.gate.in_features**-0.5)
            nn.init.zeros_(linear.bias)

    def forward(self, value_BTV: Tensor, hidden_BTM: Tensor) -> Tensor:
        """Gate and project. Returns (B, T, M)."""
        out: Tensor = self.output(value_BTV * F.silu(self.gate(hidden_BTM)))
        return out


class OutputProjection(nn.Module):
    """A plain projection of values to the hidden size, where there is no gate.

    Args:
        hidden_size: M.
        value_dim: V.
    """

    def __init__(self, hidden_size: int, value_dim: int) -> None:
        super().__init__()
        self.output = nn.Linear(value_dim, hidden_size)
        nn.init.normal_(self.output.weight, std=hidden_size**-0.5)
        nn.init.zeros_(self.output.bias)

    def forward(self, value_BTV: Tensor, hidden_BTM: Tensor) -> Tensor:
        """Project to (B, T, M); the layer's input is unused."""
        out: Tensor = self.output(value_BTV)
        return out


class MemoryLayer(nn.Module):
    """A sparse key-value layer: out = gate(sum_hk softmax_k(score) * V[slot], x).

    Source: 2510.15103, section 3; 2412.09764, section 3.1. The input is the block's normalised
    hidden state. The block adds the residual.

    Args:
        hidden_size: M.
        top_k: K, slots read by each head.
        index: Finds slots for queries.
        values: The slots. Layers may share a table, so it is not registered as a child of this
            layer. The model registers it once, at its root.
        gate: Maps (values read, input) to the output; None passes the values through, which
            needs value_dim == hidden_size.

    Raises:
        ValueError: if index and table have different numbers of slots, or the widths do not fit.

    Init: query projection xavier-uniform, zero bias (facebookresearch/memory).
    """

    def __init__(
        self,
        hidden_size: int,
        top_k: int,
        index: SlotIndex,
        values: ValueTable,
        gate: nn.Module | None = None,
    ) -> None:
        if index.num_slots != values.num_slots:
            raise ValueError(
                f"the index addresses {index.num_slots} slots but the table has {values.num_slots}"
            )
        if gate is None and values.value_dim != hidden_size:
            raise ValueError(
                f"without a gate the values (width {values.value_dim}) are the output and must "
                f"have the hidden size {hidden_size}"
            )
        super().__init__()
        self.top_k = top_k
        self.index = index
        self._values = (values,)  # in a tuple, so that it is not registered here
        self.gate = gate
        self.query = nn.Linear(hidden_size, index.num_heads * index.query_dim)
        #: While True, `last_ids` holds the slots of the last forward pass, for access counts.
        self.recording = False
        self.last_ids: Tensor | None = None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initialise the query projection again."""
        nn.init.xavier_uniform_(self.query.weight)
        nn.init.zeros_(self.query.bias)

    @property
    def values(self) -> ValueTable:
        """The table this layer reads."""
        return self._values[0]

    def forward(self, hidden_BTM: Tensor) -> Tensor:
        """Read the memory.

        Args:
            hidden_BTM: Normalised hidden states, any leading dimensions.

        Returns:
            out_BTM, in the input's dtype; under autocast with a gate, in autocast's.
        """
        lead, dtype = hidden_BTM.shape[:-1], hidden_BTM.dtype
        mixed = torch.is_autocast_enabled(hidden_BTM.device.type)
        if not mixed:  # a memory in a frozen bfloat16 model learns in float32
            hidden_BTM = hidden_BTM.to(self.query.weight.dtype)
        query_BHD = self.query(hidden_BTM).reshape(-1, self.index.num_heads, self.index.query_dim)
        # The choice of slots must not depend on autocast: scores have the keys' precision.
        with torch.autocast(hidden_BTM.device.type, enabled=False):
            ids_BHK, scores_BHK = self.index.lookup(self._to_key_dtype(query_BHD), self.top_k)
            exact = torch.promote_types(scores_BHK.dtype, torch.float32)
            weights_BHK = scores_BHK.softmax(-1, dtype=exact)
            value_BV = self.values(ids_BHK.flatten(1), weights_BHK.flatten(1))
        if self.recording:
            self.last_ids = ids_BHK.detach().reshape(*lead, *ids_BHK.shape[1:])
        out_BTM: Tensor = value_BV.reshape(*lead, self.values.value_dim).to(hidden_BTM.dtype)
        if self.gate is not None:
            out_BTM = self.gate(out_BTM, hidden_BTM)
        return out_BTM if mixed else out_BTM.to(dtype)

    def _to_key_dtype(self, query_BHD: Tensor) -> Tensor:
        """Convert queries to the dtype of the index's keys, if it has any."""
        keys = next(self.index.parameters(), None)
        return query_BHD if keys is None else query_BHD.to(keys.dtype)

    def extra_repr(self) -> str:
        """Return the sizes, for `print(model)`."""
        return f"top_k={self.top_k}, value_dim={self.values.value_dim}"


class FFNWithMemory(nn.Module):
    """An FFN and a memory side by side: ffn(x) + gate * memory(x).

    At gate zero, or with all values zero, the sum is the FFN's output to the bit, so a pretrained
    model is unchanged at first. Behind the closed gate no value has a gradient until training has
    opened it. Values at zero behind an open gate have one from the start.

    With `relevance_gate` each token weighs the memory: ffn(x) + gate * sigmoid(r . x + b) *
    memory(x), where r and b are learned and start at zero. Without it the memory changes every
    token, which degrades what the pretrained model knew.

    Source: github.com/Alex-888888/memory-layers-consumer-hardware. There a learned gate reduced the
    rise of WikiText's perplexity by a memory beside frozen FFNs from 14.7% to 2.3%.
    Deviation: this form of the gate is ours; none of their code is used.

    Args:
        ffn: The block's FFN.
        memory: The memory added to it.
        relevance_gate: Whether each token weighs the memory.
        open_gate: Whether the gate starts at one, for values that start at zero.
    """

    def __init__(
        self,
        ffn: nn.Module,
        memory: MemoryLayer,
        relevance_gate: bool = False,
        open_gate: bool = False,
    ) -> None:
        super().__init__()
        self.ffn = ffn
        self.memory = memory
        self.memory_gate = nn.Parameter(torch.full((), float(open_gate)))
        self.relevance: nn.Linear | None = None
        #: While the memory records: rms(added) / rms(ffn) of each token in the last forward pass.
        self.last_shares_BT: Tensor | None = None
        if relevance_gate:
            self.relevance = nn.Linear(memory.query.in_features, 1)
            nn.init.zeros_(self.relevance.weight)
            nn.init.zeros_(self.relevance.bias)

    def forward(self, hidden_BTM: Tensor) -> Tensor:
        """Return the sum of both, (B, T, M)."""
        ffn_BTM: Tensor = self.ffn(hidden_BTM)
        added_BTM = self.gate_of(hidden_BTM) * self.memory(hidden_BTM)
        if self.memory.recording:
            self.last_shares_BT = rms(added_BTM.detach()) / rms(ffn_BTM.detach()).clamp_min(1e-30)
        sum_BTM: Tensor = ffn_BTM + added_BTM
        return sum_BTM

    def gate_of(self, hidden_BTM: Tensor) -> Tensor:
        """Return the factor of the memory, a scalar or (B, T, 1)."""
        if self.relevance is None:
            return self.memory_gate
        gate_BT1: Tensor = self.memory_gate * self.relevance(hidden_BTM).sigmoid()
        return gate_BT1


def rms(states_BTM: Tensor) -> Tensor:
    """Return the root mean square over the last dimension in float32."""
    return states_BTM.float().square().mean(-1).sqrt()
