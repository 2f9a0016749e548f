"""KL to the base: a penalty on predictions that differ from the initial model's."""

import copy
import hashlib
from typing import Any, Literal

import torch
from jsonargparse.typing import NonNegativeFloat
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from torch import Tensor
from transformers import PreTrainedModel
from typing_extensions import override

from triptych.callbacks.remember.language_model import language_model_of
from triptych.callbacks.remember.loss_terms import add_loss_term
from triptych.callbacks.remember.replayed_batches import Batch, ReplayedBatches
from triptych.metrics.rank_sums import sum_over_ranks
from triptych.models.segment_mask import packed_attention
from triptych.objectives.token_kl import token_kl

Direction = Literal["forward", "reverse"]


class KLToBase(Callback):
    """Adds weight * KL to the loss, between the model and a frozen copy of the initial model.

    The mean is over all positions with a next token in their document, labelled or not, on all
    ranks. It is exact over the vocabulary. The copy runs without dropout.

    It costs a forward pass of both models over the tokens, and the memory of a second model.

    Args:
        data: Source of the tokens: a separate datamodule (`class_path` and `init_args`, as under
            `data`), read with the run's tokenizer; null: the training batch. On the training batch
            the term also opposes the lesson.
        weight: Weight of the term; 0 only measures it.
        direction: `forward` is KL(base || model): the model keeps all that the base expects.
            `reverse` is KL(model || base): the model expects nothing else.

    Raises:
        ValueError: if the module does not add loss terms, the data do not fit, or a checkpoint's
            run started from another model.

    Logs `train/kl_to_base_nats_per_token`, without the weight.
    """

    def __init__(
        self,
        data: LightningDataModule | None = None,
        weight: NonNegativeFloat = 1.0,
        direction: Direction = "forward",
    ) -> None:
        self.data = data
        self.weight = weight
        self.direction = direction
        self._batches = None if data is None else ReplayedBatches(data, "KLToBase")
        self._base: Any = None  # a PreTrainedModel in the precision of the run
        self._fingerprint: str | None = None

    @property
    @override
    def state_key(self) -> str:
        return "KLToBase"

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage != "fit":
            return
        add_loss_term(self, pl_module, self.loss_term)
        # Before a checkpoint's weights replace the initial ones.
        model = language_model_of(pl_module, "KLToBase")
        self._base = copy.deepcopy(model).requires_grad_(False).train(False)
        self._fingerprint = _fingerprint(self._base)
        if self._batches is not None:
            self._batches.setup(trainer, pl_module)

    @override
    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._base = trainer.precision_plugin.convert_module(self._base).to(pl_module.device)

    def loss_term(self, pl_module: LightningModule, batch: Any) -> Tensor:
        """Return the weighted divergence on the batch, or on the next batch of `data`."""
        trainer = pl_module.trainer
        if self._batches is not None:
            batch = self._batches.next()
        keep_mask = _has_next(batch["segment_ids"])
        logits = _logits(language_model_of(pl_module, "KLToBase"), batch)[keep_mask]
        with torch.no_grad():
            base_logits = _logits(self._base, batch)[keep_mask]
        pair = (base_logits, logits) if self.direction == "forward" else (logits, base_logits)
        sum_nats = token_kl(*pair).sum()
        num_positions = sum_over_ranks(trainer, keep_mask.sum()).clamp(min=1)
        mean_nats = sum_over_ranks(trainer, sum_nats) / num_positions
        pl_module.log("train/kl_to_base_nats_per_token", mean_nats)
        loss: Tensor = self.weight * sum_nats * trainer.world_size / num_positions
        return loss

    @override
    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        if self._batches is not None:
            self._batches.note_step()

    @override
    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._base = None

    @override
    def state_dict(self) -> dict[str, Any]:
        if self._fingerprint is None:
            return {}
        position = None if self._batches is None else self._batches.state_dict()
        return {"base": self._fingerprint, "position": position}

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        if self._fingerprint is not None and state_dict["base"] != self._fingerprint:
            raise ValueError(
                "KLToBase: the checkpoint's run started from another model than this one: give "
                "model.init_args the values in the checkpoint's config.yaml, init_from above all"
            )
        if self._batches is not None and state_dict["position"] is not None:
            self._batches.load_state_dict(state_dict["position"])


def _fingerprint(model: PreTrainedModel) -> str:
    digest = hashlib.sha256()
    for name, parameter in model.named_parameters():
        digest.update(f"{name} {parameter.dtype} {tuple(parameter.shape)}".encode())
        digest.update(parameter.cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _has_next(segment_ids: Tensor) -> Tensor:
    """Mark positions followed by a token of the same document: bool (B, T)."""
    has_next = torch.zeros_like(segment_ids, dtype=torch.bool)
    has_next[:, :-1] = (segment_ids[:, :-1] == segment_ids[:, 1:]) & (segment_ids[:, :-1] > 0)
    return has_next


def _logits(model: PreTrainedModel, batch: Batch) -> Tensor:
    logits: Tensor = model(
        input_ids=batch["input_ids"],
        use_cache=False,
        **packed_attention(model.config, batch["segment_ids"], batch["position_ids"]),
    ).logits
    return logits
