"""A module that knows nothing of language models and has memory layers, and data for it."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from triptych.models.remember.index.product_keys import ProductKeyIndex
from triptych.models.remember.memory_layer import MemoryLayer
from triptych.models.remember.values.value_table import ValueTable

NUM_TOKENS, WIDTH, NUM_KEYS, LENGTH = 12, 6, 8, 5


class TinyMemoryModule(LightningModule):
    """Embedding, memory layers one after another, and a head that names the next token.

    Args:
        num_layers: Memory layers.
        shared: One table for all, or one for each.
        optimizer: `adamw` over what requires grad, or `none`.
        skipped: Batches for which `training_step` returns None after its forward pass.
        samples: Whether each training step also reads other tokens without gradient.
        dtype: Of the tables.
    """

    def __init__(
        self,
        num_layers: int = 1,
        shared: bool = True,
        optimizer: str = "adamw",
        skipped: tuple[int, ...] = (),
        samples: bool = False,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.optimizer, self.skipped, self.samples = optimizer, skipped, samples
        self.embed = nn.Embedding(NUM_TOKENS, WIDTH)
        num_tables = 1 if shared else num_layers
        self.tables = nn.ModuleList(
            ValueTable(NUM_KEYS**2, WIDTH, dtype=dtype) for _ in range(num_tables)
        )
        self.layers = nn.ModuleList(
            MemoryLayer(
                WIDTH, 3, ProductKeyIndex(NUM_KEYS, 2, 4), self.tables[min(number, num_tables - 1)]
            )
            for number in range(num_layers)
        )
        self.head = nn.Linear(WIDTH, NUM_TOKENS)
        #: Of the last forward pass with gradient: what each memory layer was given.
        self.entering: list[Tensor] = []

    def forward(self, ids_BT: Tensor) -> Tensor:
        hidden_BTM = self.embed(ids_BT)
        self.entering = []
        for layer in self.layers:
            self.entering.append(hidden_BTM)
            hidden_BTM = hidden_BTM + layer(F.layer_norm(hidden_BTM, (WIDTH,)))
        return self.head(hidden_BTM)

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        """Sum over text by the number of all positions, so that ranks and micro-batches add up."""
        logits_NV = self(batch["input_ids"]).flatten(0, 1)
        nats_N = F.cross_entropy(logits_NV, batch["labels"].flatten(), reduction="none")
        return (nats_N * (batch["segment_ids"].flatten() > 0)).mean()

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor | None:
        if self.samples:
            with torch.no_grad():
                self((batch["input_ids"] + 5) % NUM_TOKENS)
        loss = self.loss(batch)
        return None if batch_idx in self.skipped else loss

    def configure_optimizers(self) -> torch.optim.Optimizer | None:
        if self.optimizer == "none":
            return None
        learning = [parameter for parameter in self.parameters() if parameter.requires_grad]
        return torch.optim.AdamW(learning, lr=0.1, weight_decay=0.5)


class TinyRows(Dataset):
    """Row i as a pure function of i; the last positions of most rows are padding.

    Args:
        num_rows: Rows.
        num_tokens: Only the first so many tokens occur.
    """

    def __init__(self, num_rows: int, num_tokens: int = NUM_TOKENS) -> None:
        generator = torch.Generator().manual_seed(7)
        shape = (num_rows, LENGTH)
        self.input_ids = torch.randint(num_tokens, shape, generator=generator)
        self.labels = torch.randint(NUM_TOKENS, shape, generator=generator)
        lengths = torch.randint(2, LENGTH + 1, (num_rows, 1), generator=generator)
        self.segment_ids = (torch.arange(LENGTH) < lengths).long()

    def __len__(self) -> int:
        return len(self.input_ids)

    def __getitem__(self, number: int) -> dict[str, Tensor]:
        names = ("input_ids", "labels", "segment_ids")
        return {name: getattr(self, name)[number] for name in names}


def rows(num_rows: int, batch_size: int = 2, **settings: Any) -> DataLoader:
    return DataLoader(TinyRows(num_rows, **settings), batch_size=batch_size)


def trainer_for(callback: Any, folder: Any, **settings: Any) -> Trainer:
    """A silent trainer on one CPU; `settings` come over its own."""
    callbacks = callback if isinstance(callback, list) else [callback]
    defaults = {
        "accelerator": "cpu",
        "devices": 1,
        "max_epochs": 1,
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "callbacks": callbacks,
        "default_root_dir": folder,
        "num_sanity_val_steps": 0,
    }
    return Trainer(**(defaults | settings))


def same_bits(one: Tensor, other: Tensor) -> Tensor:
    """Which rows of two tables are the same to the bit, bool (S,)."""
    return (one.view(torch.uint8) == other.view(torch.uint8)).all(1)


def built(factory: Callable[[], TinyMemoryModule], seed: int = 3) -> TinyMemoryModule:
    torch.manual_seed(seed)
    return factory()


class ValidatedModule(TinyMemoryModule):
    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        self.loss(batch)
