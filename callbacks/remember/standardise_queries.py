"""Queries of standardised states for a memory that was put into a pretrained model."""

from itertools import islice

from jsonargparse.typing import PositiveInt
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.rank_zero import rank_zero_info
from typing_extensions import override

from triptych.callbacks.remember.background_statistics import documents_of
from triptych.callbacks.remember.language_model import language_model_of, tokenizer_of
from triptych.callbacks.trainer_parts import datamodule_of
from triptych.metrics.sharded_strategies import refuse_sharded
from triptych.models.remember.memory_blocks import memory_layers
from triptych.models.remember.standardised_queries import standardise_queries

_NAME = "StandardiseQueries"


class StandardiseQueries(Callback):
    """Lets a new memory ask with standardised states, before the first step of a run.

    Without it the random queries of a pretrained model's states are much alike, and few slots are
    read (`standardise_queries`). It reads the first training rows, without gradients. A memory that
    was standardised or trained before stays as it is, so a run may be resumed.

    Args:
        num_rows: Training rows to read; a few thousand tokens suffice.

    Raises:
        ValueError: if the strategy shards parameters, the module has no language model, or the data
            have no rows of tokens.
    """

    def __init__(self, num_rows: PositiveInt = 64) -> None:
        self.num_rows = num_rows

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        refuse_sharded(trainer, f"{_NAME} runs a whole model")

    @override
    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        model, data = language_model_of(pl_module, _NAME), datamodule_of(trainer)
        tokenizer_of(data, _NAME)
        assert data is not None
        if any(layer.query.bias.any() for layer in memory_layers(model)):
            rank_zero_info("the memory's queries were standardised or trained before")
            return
        rows = (batch for document in documents_of(data, 1) for batch in document)
        num_tokens = standardise_queries(model, islice(rows, self.num_rows))
        rank_zero_info(f"the memory's queries are standardised by {num_tokens:,} tokens of text")
