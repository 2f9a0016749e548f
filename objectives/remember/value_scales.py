"""The size of a value's step that matters: the scale of an FFN in units of its memory's values."""

import torch
from torch import Tensor, nn

from triptych.models.remember.memory_blocks import memories_beside, memory_layers, value_tables
from triptych.models.remember.memory_layer import FFNWithMemory, MemoryLayer, rms

# Shapes: (B, T) rows and tokens of a batch, N tokens that count, M hidden size, V value width
_SMALLEST = 1e-30


class ValueScales:
    """Measures each table's value scale while text runs through a model.

    The scale is rms(FFN) / rms(unit): the output of the FFN that the memory is added to, and the
    change of the sum if every coordinate of every value that a token reads moves by one. A value
    step of `rate * scale` therefore moves the sum by at most `rate` times the FFN's output,
    whatever the model, its heads and its gates. For a memory in the FFN's place, the output is its
    own.

    Both are means of logarithms over tokens (and over the layers that share a table), which a few
    tokens with huge activations do not determine.

    Use it as a context around the forward passes, and call `add` after each.

    Args:
        model: A model with memory layers.
    """

    def __init__(self, model: nn.Module) -> None:
        self.layers = memory_layers(model)
        self._beside = {id(beside.memory): beside for beside in memories_beside(model)}
        tables = value_tables(model)
        self._tables = {id(table): number for number, table in enumerate(tables)}
        device = tables[0].weight.device if tables else None
        #: Sum of the logarithms, and number of tokens, for each table: float64 (tables, 2).
        self.sums = torch.zeros(len(tables), 2, dtype=torch.float64, device=device)
        self._handles: list[torch.utils.hooks.RemovableHandle] = []
        self._given: dict[int, Tensor] = {}
        self._reference: dict[int, Tensor] = {}

    def __enter__(self) -> "ValueScales":
        """Watch the forward passes."""
        for layer in self.layers:
            beside = self._beside.get(id(layer))
            self._handles.append(layer.register_forward_hook(self._keep_memory))
            if beside is not None:
                self._handles.append(beside.ffn.register_forward_hook(self._keep_ffn(layer)))
        return self

    def __exit__(self, *_: object) -> None:
        """Stop watching."""
        for handle in self._handles:
            handle.remove()
        self._handles = []
        self._given, self._reference = {}, {}

    @torch.no_grad()
    def add(self, keep_BT: Tensor) -> None:
        """Count the tokens of the last forward pass.

        Args:
            keep_BT: Which positions are text, bool.
        """
        for layer in self.layers:
            hidden_NM = self._given.pop(id(layer))[keep_BT]
            reference_NM = self._reference.pop(id(layer))[keep_BT]
            unit_N = rms(_unit_change(layer, self._beside.get(id(layer)), hidden_NM))
            ratio_N = rms(reference_NM).clamp_min(_SMALLEST) / unit_N.clamp_min(_SMALLEST)
            number = self._tables[id(layer.values)]
            self.sums[number, 0] += ratio_N.double().log().sum()
            self.sums[number, 1] += len(ratio_N)

    def compute(self, sums: Tensor | None = None) -> list[float]:
        """Return the scale of each table; of other sums, such as those of all ranks, if given."""
        log, count = (self.sums if sums is None else sums).unbind(1)
        scales: list[float] = (log / count).exp().tolist()
        return scales

    def _keep_memory(self, layer: nn.Module, given: tuple[Tensor, ...], output: Tensor) -> None:
        self._given[id(layer)] = given[0]
        self._reference.setdefault(id(layer), output)

    def _keep_ffn(self, layer: MemoryLayer) -> "_Hook":
        return _Hook(self._reference, id(layer))


class _Hook:
    """Keeps an FFN's output under the id of the memory beside it."""

    def __init__(self, kept: dict[int, Tensor], key: int) -> None:
        self.kept = kept
        self.key = key

    def __call__(self, module: nn.Module, given: tuple[Tensor, ...], output: Tensor) -> None:
        self.kept[self.key] = output


def _unit_change(layer: MemoryLayer, beside: FFNWithMemory | None, hidden_NM: Tensor) -> Tensor:
    """Return the output's change (N, M) if all values move by one in each coordinate.

    The signs of the coordinates are fixed and random; the weights of a head's slots sum to one.
    """
    generator = torch.Generator().manual_seed(0)
    signs_V = torch.randint(0, 2, (layer.values.value_dim,), generator=generator) * 2 - 1
    moved_NV = (signs_V * layer.index.num_heads).to(hidden_NM).expand(len(hidden_NM), -1)
    if layer.gate is None:
        change_NM = moved_NV
    else:
        hidden = hidden_NM.to(layer.query.weight.dtype)
        moved_NV = moved_NV.to(hidden.dtype)
        change_NM = layer.gate(moved_NV, hidden) - layer.gate(torch.zeros_like(moved_NV), hidden)
    if beside is not None:
        change_NM = change_NM * beside.gate_of(hidden_NM)
    return change_NM
