"""One step of sparse memory fine-tuning and its dense peers on one table, prepared for timing."""

from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import SGD, AdamW, Optimizer

from triptych.benchmarks.paired import Side, Stopwatch, median_parts
from triptych.callbacks.remember.row_updates import RowUpdates
from triptych.callbacks.remember.training_reads import TrainingReads
from triptych.models.base_lm import BaseLMConfig
from triptych.models.remember.memory_blocks import value_tables
from triptych.models.remember.memory_config import MemoryConfig
from triptych.models.remember.memory_lm import build_memory_lm
from triptych.models.remember.repeated_input import remember_repeated_input
from triptych.models.remember.values.row_optimizers import RowOptimizerName, build_row_optimizer
from triptych.objectives.batch_nll import batch_nll
from triptych.objectives.remember.row_selection import RowSelection
from triptych.objectives.remember.slot_scores import TableStatistics, count_accesses

# Shapes: B tokens, K slots read by a token, D value width, S slots, U selected rows

OURS = "selected rows"
MASKING = "masking trick, dense sgd"
DENSE = "dense gradient, dense adamw"
FUSED = "dense gradient, fused adamw"
RATE = 1e-3
DECAY: dict[RowOptimizerName, float] = {"sgd": 0.0, "adamw": 0.1}
NUM_DOCUMENTS = 200
VOCAB_SIZE = 4096


@dataclass(frozen=True)
class StepSizes:
    """Sizes of a step: a batch of `num_rows` texts and the memory that it reads."""

    num_keys: int
    num_rows: int = 64
    row_length: int = 64
    num_heads: int = 4
    top_k: int = 32
    width: int = 256
    num_selected: int = 500
    num_layers: int = 4

    @property
    def num_slots(self) -> int:
        """Number of slots."""
        return self.num_keys**2

    @property
    def num_tokens(self) -> int:
        """Tokens per batch."""
        return self.num_rows * self.row_length


class StepSides:
    """A language model with one memory layer, its table, and ways to train on one batch.

    Each dense peer has a separate parameter that shares the memory of the table.

    Args:
        sizes: Sizes of the model, the table and the batch.
        device: Device of model and batch.
    """

    def __init__(self, sizes: StepSizes, device: torch.device) -> None:
        torch.manual_seed(0)
        self.sizes = sizes
        base = BaseLMConfig(hidden_size=sizes.width, num_layers=sizes.num_layers, num_heads=4)
        middle = sizes.num_layers // 2
        memory = MemoryConfig([middle], sizes.num_keys, sizes.num_heads, sizes.top_k)
        with device:
            self.model = build_memory_lm(base, memory, VOCAB_SIZE).train().requires_grad_(False)
            shape = (sizes.num_tokens, sizes.num_heads * sizes.top_k)
            self.ids_BK = torch.randint(sizes.num_slots, shape)
            self.weights_BK = torch.rand(shape).softmax(1)
            self.grad_BD = torch.randn(sizes.num_tokens, sizes.width)
            self.anchor = torch.zeros((), requires_grad=True)
            frequency_S = torch.randint(NUM_DOCUMENTS + 1, (sizes.num_slots,))
        (self.table,) = value_tables(self.model)
        self.batch = _batch(sizes, device)
        self.selection = RowSelection(sizes.num_selected)
        self.statistics = [TableStatistics(frequency_S, frequency_S, NUM_DOCUMENTS)]
        self.table.set_gradient("selected_rows")
        self.table.set_anchor(self.anchor)
        self.reads = TrainingReads([self.table])
        # The table alone and the whole model train different rows, with separate optimizers.
        self.updates, self.model_updates = (
            {
                name: RowUpdates([self.table], partial(build_row_optimizer, name, RATE, decay), [])
                for name, decay in DECAY.items()
            }
            for _ in range(2)
        )
        self.dense = {
            name: nn.Parameter(self.table.weight.data) for name in (MASKING, DENSE, FUSED)
        }
        self.optimizers: dict[str, Optimizer] = {}
        # The peers receive the selected rows, so only their training is timed.
        counts_S = count_accesses(self.ids_BK, None, sizes.num_slots)
        (self.rows_U,) = self.selection.select([counts_S], self.statistics)
        self.mask_S1 = torch.zeros(sizes.num_slots, 1, device=device)
        self.mask_S1[self.rows_U] = 1

    # -- the table alone --------------------------------------------------------------------------

    def table_step(self, name: RowOptimizerName) -> Side:
        """Return our step: read, form the gradient of the best rows, update them."""

        def run() -> None:
            self.table(self.ids_BK, self.weights_BK).backward(self.grad_BD)
            self._finish(self.updates[name])

        return Side(title(name), run, self._release)

    def masked_table_step(self) -> Side:
        """Return the step of the paper: a masked copy of the table, and dense SGD."""
        mem, mask = self.dense[MASKING], self.mask_S1

        def run() -> None:
            self._read(mem * mask + mem.detach() - (mem * mask).detach()).backward(self.grad_BD)
            self._optimizer(MASKING).step()

        return Side(MASKING, run, self._release)

    def dense_table_step(self, name: str = DENSE) -> Side:
        """Return a step with gradient and moments of the whole table; `DENSE` or `FUSED`."""

        def run() -> None:
            self._read(self.dense[name]).backward(self.grad_BD)
            self._optimizer(name).step()

        return Side(name, run, self._release)

    def _optimizer(self, name: str) -> Optimizer:
        """Return the default optimizer of torch, or AdamW in one pass for `FUSED`."""
        if name not in self.optimizers:
            kind, fused = (SGD, None) if name == MASKING else (AdamW, name == FUSED or None)
            decay = DECAY["sgd" if name == MASKING else "adamw"]
            self.optimizers[name] = kind(
                [self.dense[name]], lr=RATE, weight_decay=decay, fused=fused
            )
        return self.optimizers[name]

    def _read(self, values_SD: Tensor) -> Tensor:
        return F.embedding_bag(
            self.ids_BK, values_SD, per_sample_weights=self.weights_BK, mode="sum"
        )

    # -- the whole model --------------------------------------------------------------------------

    def model_step(self, name: RowOptimizerName) -> Side:
        """Return our step: loss of the batch, backward, update."""

        def run() -> None:
            self._loss().backward()
            self._finish(self.model_updates[name])

        return Side(title(name), run, self._release)

    def repeated_model_step(self, name: RowOptimizerName) -> Side:
        """Return our step on the batch of the previous step, as in a visit to a fact."""
        calls = remember_repeated_input(self.model)
        for call in calls:
            call.remove()

        def run() -> None:
            for call in calls:
                call.install()
            self._loss().backward()
            self._finish(self.model_updates[name])

        def release() -> None:
            for call in calls:
                call.remove()
            self._release()

        return Side(f"{title(name)}, batch again", run, release)

    def dense_model_step(self) -> Side:
        """Return the step of the same model with a gradient of the whole table."""
        own = self.table.weight

        def run() -> None:
            self.table.weight = self.dense[DENSE]
            self.table.set_gradient("dense")
            self._loss().backward()
            self._optimizer(DENSE).step()

        def release() -> None:
            self.table.weight = own
            self.table.set_gradient("selected_rows")
            self._release()

        return Side(DENSE, run, release)

    def _loss(self) -> Tensor:
        nll = batch_nll(self.model, self.batch)
        return nll.sum_nats / nll.num_tokens

    # -- the work of the callback before an optimizer step ----------------------------------------

    def _finish(self, updates: RowUpdates) -> None:
        with torch.no_grad():
            self.reads.note(self.batch)
            counts = self.reads.counts()
            rows = self.selection.select(counts, self.statistics)
            gradients = [self.table.row_gradient(rows_U) for rows_U in rows]
            updates.apply(gradients)
            self.reads.clear()

    def breakdown(self, rounds: int = 5) -> list[dict[str, float | str]]:
        """Measure the median seconds of the parts of our step of the table, with AdamW."""
        medians = median_parts(self._timed_step, self.ids_BK.device, rounds)
        return [{"part": part, "median_s": median} for part, median in medians.items()]

    def _timed_step(self, clock: Stopwatch) -> None:
        out: Tensor = clock("forward", partial(self.table, self.ids_BK, self.weights_BK))
        clock("backward", partial(out.backward, self.grad_BD))
        self.reads.note(self.batch)
        counts = clock("counts", self.reads.counts)
        rows = clock("scores, best rows", partial(self._best, counts))
        gradient = clock("gradient of rows", partial(self.table.row_gradient, rows))
        clock("update", partial(self.updates["adamw"].apply, [gradient]))
        self._release()

    def _best(self, counts: list[Tensor]) -> Tensor:
        return self.selection.select(counts, self.statistics)[0]

    # -- after a step -----------------------------------------------------------------------------

    def state_bytes(self) -> dict[str, int]:
        """Return the size of the optimizer state of each side after the first steps, in bytes."""
        ours = {
            title(name): sum(o.num_bytes() for o in updates.optimizers)
            for name, updates in self.updates.items()
        }
        dense = {
            name: sum(
                tensor.numel() * tensor.element_size()
                for state in optimizer.state.values()
                for tensor in state.values()
                if isinstance(tensor, Tensor)
            )
            for name, optimizer in self.optimizers.items()
        }
        return ours | dense

    def _release(self) -> None:
        for parameter in (*self.dense.values(), self.anchor):
            parameter.grad = None
        self.reads.clear()


def title(name: RowOptimizerName) -> str:
    """Return the name of one of our sides."""
    return f"{OURS}, {name}"


def _batch(sizes: StepSizes, device: torch.device) -> dict[str, Tensor]:
    """Build rows without padding in the layout of `collate_rows`."""
    shape = (sizes.num_rows, sizes.row_length)
    ids_BT = torch.randint(VOCAB_SIZE, shape, device=device)
    return {
        "input_ids": ids_BT,
        "labels": ids_BT,
        "position_ids": torch.arange(sizes.row_length, device=device).expand(shape),
        "segment_ids": torch.ones(shape, dtype=torch.int64, device=device),
    }
