"""Replay: each step also trains on data that must not be forgotten."""

from typing import Any

from jsonargparse.typing import NonNegativeFloat
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from torch import Tensor
from typing_extensions import override

from triptych.callbacks.remember.language_model import language_model_of
from triptych.callbacks.remember.loss_terms import add_loss_term
from triptych.callbacks.remember.replayed_batches import ReplayedBatches
from triptych.metrics.rank_sums import sum_over_ranks
from triptych.objectives.batch_nll import batch_nll


class Replay(Callback):
    """Adds the loss on a batch of other data, such as old facts or text, to each micro-batch.

        loss = nll of the batch + weight * nll of a replayed batch

    Both are means over labelled tokens, so `weight` does not depend on the batch sizes. The data
    are read with the run's tokenizer. A step that the module skips replays nothing.

    In sparse memory finetuning, the reads of replayed rows count as accesses, padding included.

    Args:
        data: A separate datamodule: `class_path` and `init_args`, as under `data`. For old facts
            use `Facts`; its `batch_size` is the number of replayed rows.
        weight: Weight of the replayed loss; 0 only measures it.

    Raises:
        ValueError: if the module does not add loss terms, or the data do not fit the model.

    Logs `train/replay_nll_nats_per_token`.
    """

    def __init__(self, data: LightningDataModule, weight: NonNegativeFloat = 1.0) -> None:
        self.data = data
        self.weight = weight
        self._batches = ReplayedBatches(data, "Replay")

    @property
    @override
    def state_key(self) -> str:
        return "Replay"

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage == "fit":
            add_loss_term(self, pl_module, self.loss_term)
            self._batches.setup(trainer, pl_module)

    def loss_term(self, pl_module: LightningModule, batch: Any) -> Tensor:
        """Return the weighted loss on the next batch of the replayed data."""
        trainer = pl_module.trainer
        nll = batch_nll(language_model_of(pl_module, "Replay"), self._batches.next())
        num_tokens = sum_over_ranks(trainer, nll.num_tokens).clamp(min=1)
        mean_nats = sum_over_ranks(trainer, nll.sum_nats) / num_tokens
        pl_module.log("train/replay_nll_nats_per_token", mean_nats)
        loss: Tensor = self.weight * nll.sum_nats * trainer.world_size / num_tokens
        return loss

    @override
    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        self._batches.note_step()

    @override
    def state_dict(self) -> dict[str, Any]:
        position = self._batches.state_dict()
        return {} if position is None else {"position": position}

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._batches.load_state_dict(state_dict["position"])
