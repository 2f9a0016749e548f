"""Replay: each step also trains on something that is not to be forgotten."""

from typing import Any

from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from torch import Tensor
from typing_extensions import override

from triptych.callbacks.remember.loss_terms import add_loss_term, sum_over_ranks
from triptych.callbacks.remember.replayed_batches import ReplayedBatches
from triptych.objectives.batch_nll import batch_nll


class Replay(Callback):
    """Adds the loss on a batch of other data, such as old facts or text, to each micro-batch.

        loss = nll of the batch + weight * nll of a replayed batch

    Both are means over labelled tokens, so that `weight` does not depend on the batches' sizes. The
    data are read with the run's tokenizer. A step that the module passes over replays nothing.

    Together with sparse memory finetuning, what replayed rows read counts as accesses, padding too.

    Args:
        data: A datamodule of its own: `class_path` and `init_args`, as under `data`. Old facts are
            `Facts`; its `batch_size` is the number of rows replayed.
        weight: Weight of the replayed loss; 0 only measures it.

    Raises:
        ValueError: if `weight` is negative, the module does not add up loss terms, or the data do
            not fit the model.

    Logs `train/replay_nll_nats_per_token`.
    """

    def __init__(self, data: LightningDataModule, weight: float = 1.0) -> None:
        if not 0 <= weight < float("inf"):
            raise ValueError(f"Replay.weight is {weight}: set it to at least 0")
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
        """The weighted loss on the next batch of the replayed data."""
        trainer = pl_module.trainer
        nll = batch_nll(pl_module.model, self._batches.next())
        num_tokens = sum_over_ranks(trainer, nll.num_tokens).clamp(min=1)
        mean_nats = sum_over_ranks(trainer, nll.sum_nats) / num_tokens
        pl_module.log("train/replay_nll_nats_per_token", mean_nats)
        return self.weight * nll.sum_nats * trainer.world_size / num_tokens

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
