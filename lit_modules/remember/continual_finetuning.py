"""Continual finetuning of an exported language model: the frame and the dense baselines."""

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import torch
from jsonargparse.typing import NonNegativeFloat, NonNegativeInt, PositiveInt
from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor
from torch.optim import Optimizer
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from triptych.lit_modules.adapter_checkpoints import leave_base_out, put_base_back
from triptych.lit_modules.optimization import (
    build_adamw,
    optimizer_of_nothing,
    parameter_groups,
    scheduled,
)
from triptych.lit_modules.remember.language_model_training import LanguageModelTraining
from triptych.lit_modules.remember.visit_progress import VisitProgress
from triptych.lit_modules.trainer_parts import data_of
from triptych.metrics.sharded_strategies import refuse_sharded
from triptych.models.host_to_device import number_on
from triptych.models.lora import LoRAConfig, merge_lora, merged_state_dict
from triptych.models.remember.memory_lm import load_memory_lm
from triptych.models.remember.trainable import Trainable, choose_trainable
from triptych.models.remember.values.rounding_optimizers import RoundingSGD
from triptych.objectives.batch_nll import Batch


class ContinualFinetuning(LanguageModelTraining):
    """Continues the training of an exported model, in whole or in part.

    It holds the baselines of sparse memory finetuning: full finetuning, LoRA, all values, the
    memory module alone. Sparse memory finetuning itself is this module with the callback
    `SparseMemoryFinetuning`, which freezes everything and brings its own optimizer. Then
    `trainable`, `optimizer`, `learning_rate` and the like have no effect.

    With `stop_below_nats`, a batch with a loss below it takes no step, and later batches of the
    same visit to a fact are skipped without a forward pass. The deciding loss is the mean over the
    labelled tokens of the batch on all ranks, without further terms. A skipped step still counts as
    a step of the trainer: `max_steps`, validation intervals and the schedule follow the stream of
    facts. `train/steps_taken` is the number of steps that were not skipped.

    The optimizer's state (AdamW's moments) is carried over from fact to fact, as in any training.

    Args:
        vocab_size: Tokens of the tokenizer; linked from the data.
        init_from: Exported folder, or an experiment's config, which is then run first.
        trainable: Parameters to train: `all`, `lora`, `values` (every slot of the value tables),
            `memory` (values, keys, queries, norms and gates), or `none`.
        learning_rate: Peak learning rate, also of values.
        weight_decay: Decay of matrices, adapters and values; not of norms, biases and gates.
        optimizer: `adamw`, or `sgd` without momentum.
        betas: Adam's.
        schedule: After warm-up, `constant`, or a `cosine` down to a tenth over the trainer's steps.
        warmup_steps: Steps of linear warm-up.
        lora: Adapters for `trainable: lora`; null: the defaults.
        stop_below_nats: Loss in nats per token below which a fact counts as learned; null: none.
        max_new_tokens: Longest generated answer or continuation.
        num_samples: Generated answers shown per set of questions.
        sample_prompts: Texts to continue at each validation, for the table of samples.

    Raises:
        ValueError: if the tokenizer does not fit the model, or the model lacks the parameters to
            train.

    Source: 2510.15103, section 5 and appendix A: AdamW with weight decay 0.1 for full finetuning
    and LoRA. Deviation: the paper does not specify decayed parameters, clipping, schedule or
    warm-up; schedule and warm-up are options here. `stop_below_nats` is ours.
    """

    #: Exports are plain models, which the next session starts from.
    merges_adapters = True

    def __init__(
        self,
        vocab_size: int,
        init_from: str,
        trainable: Trainable = "all",
        learning_rate: NonNegativeFloat = 1e-5,
        weight_decay: NonNegativeFloat = 0.1,
        optimizer: Literal["adamw", "sgd"] = "adamw",
        betas: tuple[float, float] = (0.9, 0.999),
        schedule: Literal["constant", "cosine"] = "constant",
        warmup_steps: NonNegativeInt = 0,
        lora: LoRAConfig | None = None,
        stop_below_nats: NonNegativeFloat | None = None,
        max_new_tokens: PositiveInt = 16,
        num_samples: int = 16,
        sample_prompts: list[str] | None = None,
    ) -> None:
        model = _load(init_from, vocab_size)
        choose_trainable(model, trainable, lora)
        super().__init__(model, max_new_tokens, num_samples, sample_prompts)
        self.init_from = init_from
        self.trainable = trainable
        self.learning_rate = learning_rate
        self.weight_decay = weight_decay
        self.optimizer = optimizer
        self.betas = (betas[0], betas[1])
        self.schedule = schedule
        self.warmup_steps = warmup_steps
        self.visits = VisitProgress(stop_below_nats)
        #: Number of optimizer steps that were not skipped.
        self.steps_taken = 0
        self._is_skipped = False

    # -- start and end of a run -------------------------------------------------------------------

    def setup(self, stage: str) -> None:
        """Refuse settings that do not work together.

        Raises:
            ValueError: for early stopping with accumulated batches, or LoRA with sharded weights.
        """
        if self.visits.stop_below_nats is not None and self.trainer.accumulate_grad_batches != 1:
            raise ValueError(
                "model.init_args.stop_below_nats skips single batches, but "
                f"trainer.accumulate_grad_batches is {self.trainer.accumulate_grad_batches}: set "
                "one of them to its default"
            )
        if self.trainable == "lora":
            refuse_sharded(self.trainer, "model.init_args.trainable=lora merges whole matrices")

    def on_fit_start(self) -> None:
        """Check that the data use the model's tokenizer.

        Raises:
            ValueError: if the exported tokenizer differs from the data's.
        """
        super().on_fit_start()
        if (Path(self.init_from) / "tokenizer.json").is_file():
            own = PreTrainedTokenizerFast.from_pretrained(self.init_from)
            if own.get_vocab() != data_of(self).tokenizer.get_vocab():
                raise ValueError(
                    f"the data's tokenizer is another one than that of the model in "
                    f"{self.init_from}: set data.init_args.tokenizer.path={self.init_from}"
                )

    def on_train_end(self) -> None:
        """Merge the adapters, so that everything after the last checkpoint sees a plain model."""
        if self.trainable == "lora":
            merge_lora(self.model)

    def export_state_dict(self) -> dict[str, Tensor]:
        """Return the weights for `load_memory_lm`, with adapters merged."""
        return (
            merged_state_dict(self.model) if self.trainable == "lora" else self.model.state_dict()
        )

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Save the position in the stream of facts; of a model with adapters, what learns."""
        leave_base_out(checkpoint, self.model, "model.")
        state = {"steps_taken": self.steps_taken, "visits": self.visits.state_dict()}
        checkpoint["continual_finetuning"] = state

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restore the position in the stream of facts."""
        put_base_back(checkpoint, self.model, "model.")
        state = checkpoint.get("continual_finetuning")
        if state is not None:
            self.steps_taken = state["steps_taken"]
            self.visits.load_state_dict(state["visits"])

    def summary_rows(self) -> list[tuple[str, str]]:
        """Return rows for the summary table."""
        rows = [("steps taken", f"{self.steps_taken:,} of {self.trainer.global_step:,}")]
        if self.visits.stop_below_nats is not None:
            early, begun = self.visits.num_ended_early, self.visits.num_visits
            rows.append(("facts learned early", f"{early:,} of {begun:,} visits"))
        return rows

    # -- a step, taken or skipped -----------------------------------------------------------------

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Compute the loss of a batch; skip it if its fact has been learned."""
        if self.visits.stop_below_nats is None:
            return super().training_step(batch, batch_idx)
        self._is_skipped = self.visits.begin(_visit(batch))
        if (
            self._is_skipped
        ):  # without a forward pass; the log repeats the loss that ended the visit
            assert self.visits.last_nats is not None
            self.log("train/nll_nats_per_token", self.visits.last_nats, prog_bar=True)
            return torch.zeros((), device=self.device, dtype=torch.float32)
        nll = self.next_token_nll(batch)
        num_tokens, mean_nats = self._log_step(batch, nll)
        self._is_skipped = self.visits.ends_with(float(mean_nats))
        if self._is_skipped:
            return torch.zeros((), device=self.device, dtype=torch.float32)
        return self._step_loss(batch, nll, num_tokens)

    def backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        """Run the backward pass unless the batch is skipped; gradients then stay None.

        Lightning's way, a `training_step` that returns None, is refused on several processes. A
        backward pass of a zero loss would give zero gradients, and AdamW would still decay weights.
        """
        if not self._is_skipped:
            super().backward(loss, *args, **kwargs)

    def optimizer_step(
        self,
        epoch: int,
        batch_idx: int,
        optimizer: Optimizer | LightningOptimizer,
        optimizer_closure: Callable[[], Any] | None = None,
    ) -> None:
        """Run the batch, then step unless the batch turned out to be skipped."""
        assert optimizer_closure is not None  # automatic optimization
        loss = optimizer_closure()
        if not self._is_skipped:
            self.steps_taken += 1
            optimizer.step(closure=lambda: loss)

    def lr_scheduler_step(self, scheduler: Any, metric: Any) -> None:
        """Advance the schedule, also after a skipped step."""
        if self.steps_taken > 0:
            super().lr_scheduler_step(scheduler, metric)
            return
        with warnings.catch_warnings():  # torch warns if the very first steps were skipped
            warnings.filterwarnings("ignore", "Detected call of `lr_scheduler.step")
            super().lr_scheduler_step(scheduler, metric)

    def on_train_batch_end(self, outputs: Any, batch: Batch, batch_idx: int) -> None:
        """Log the number of steps taken."""
        self.log("train/steps_taken", number_on(self.device, self.steps_taken))

    # -- optimization -----------------------------------------------------------------------------

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Return the optimizer of the trainable parameters with warm-up and schedule.

        Raises:
            ValueError: if nothing is trainable, or the cosine has no end.
        """
        if not any(parameter.requires_grad for parameter in self.model.parameters()):
            return optimizer_of_nothing(self)
        optimizer = self._build_optimizer()
        return scheduled(optimizer, self.schedule, self.warmup_steps, self.trainer)

    def _build_optimizer(self) -> Optimizer:
        if self.optimizer == "adamw":
            rate, decay = self.learning_rate, self.weight_decay
            return build_adamw(self.model, rate, rate, decay, decay, self.betas)
        assert self.optimizer == "sgd", self.optimizer
        groups = parameter_groups(
            self.model, self.learning_rate, self.learning_rate, self.weight_decay, self.weight_decay
        )
        return RoundingSGD(groups)


def _load(init_from: str, vocab_size: int) -> PreTrainedModel:
    model: PreTrainedModel = load_memory_lm(Path(init_from)).train()  # loaded in eval mode
    held = model.config.vocab_size
    if vocab_size > held:  # fewer are fine: families pad their embeddings
        raise ValueError(
            f"the model in {init_from} has {held} tokens but the data's tokenizer {vocab_size}: "
            f"use its own (data.init_args.tokenizer.path={init_from})"
        )
    return model


def _visit(batch: Batch) -> int:
    if "visit" not in batch:
        raise ValueError(
            "model.init_args.stop_below_nats needs data that come fact by fact and say so "
            "(batch['visit']): use triptych.datamodules.remember.facts.fact_stream.FactStream, "
            "or leave it out"
        )
    return int(batch["visit"])
