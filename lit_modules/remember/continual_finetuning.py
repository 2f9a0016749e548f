"""Teaching a finished language model something new, without sparse memory or around it."""

import math
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import torch
from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.strategies import FSDPStrategy
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor
from torch.optim import SGD, Optimizer
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from triptych.lit_modules.optimization import (
    build_adamw,
    optimizer_of_nothing,
    parameter_groups,
    scheduled,
)
from triptych.lit_modules.remember.language_model_training import LanguageModelTraining
from triptych.lit_modules.remember.visit_progress import VisitProgress
from triptych.lit_modules.trainer_parts import data_of
from triptych.metrics.rank_sums import sum_over_ranks
from triptych.models.lora import LoRAConfig, merge_lora, merged_state_dict
from triptych.models.remember.memory_lm import load_memory_lm
from triptych.models.remember.trainable import Trainable, choose_trainable
from triptych.objectives.batch_nll import Batch


class ContinualFinetuning(LanguageModelTraining):
    """Goes on training an exported model, all of it or a part.

    The baselines of sparse memory finetuning are here: full finetuning, LoRA, all values, the
    memory module alone. Sparse memory finetuning itself is this module with the callback
    `SparseMemoryFinetuning`, which freezes everything and has an
    optimizer of its own; `trainable`, `optimizer`, `learning_rate` and so on then mean nothing.

    With `stop_below_nats`, a batch whose loss is below it takes no step, nor do the batches after
    it that belong to the same visit to a fact; those are not even run forward. The loss that
    decides is the mean over the labelled tokens of the batch, on all ranks, without further terms.
    A step passed over still counts as one of the trainer's: `max_steps`, validation intervals and
    the schedule follow the stream of facts, whatever was learned how soon. `train/steps_taken` is
    the number of those that were not passed over.

    The optimizer's state (AdamW's moments) is carried over from fact to fact, as in any training.

    Args:
        vocab_size: Tokens of the tokenizer; linked from the data.
        init_from: Exported folder, or an experiment's config, which is then run first.
        trainable: What learns: `all`, `lora`, `values` (every slot of the value tables), `memory`
            (values, keys, queries, norms and gates), or `none`.
        learning_rate: Peak learning rate, of values too.
        weight_decay: Decay of matrices, adapters and values; not of norms, biases and gates.
        optimizer: `adamw`, or `sgd` without momentum.
        betas: Adam's.
        schedule: After warm-up, `constant`, or a `cosine` down to a tenth over the trainer's steps.
        warmup_steps: Steps of linear warm-up.
        lora: The adapters where `trainable` is `lora`; null: the defaults.
        stop_below_nats: Loss in nats per token below which a fact counts as learned; null: never.
        max_new_tokens: Longest generated answer or continuation.
        num_samples: Generated answers shown per set of questions.
        sample_prompts: Texts to continue at each validation, to see what the model writes.

    Raises:
        ValueError: if a number is out of range, the tokenizer does not fit the model, or the model
            lacks what is to be trained.

    Source: 2510.15103, section 5 and appendix A: AdamW with weight decay 0.1 for full finetuning
    and LoRA. Deviation: the paper does not say what is decayed or clipped; schedule and warm-up are
    options, since it names none. `stop_below_nats` is ours.
    """

    def __init__(
        self,
        vocab_size: int,
        init_from: str,
        trainable: Trainable = "all",
        learning_rate: float = 1e-5,
        weight_decay: float = 0.1,
        optimizer: Literal["adamw", "sgd"] = "adamw",
        betas: tuple[float, float] = (0.9, 0.999),
        schedule: Literal["constant", "cosine"] = "constant",
        warmup_steps: int = 0,
        lora: LoRAConfig | None = None,
        stop_below_nats: float | None = None,
        max_new_tokens: int = 16,
        num_samples: int = 16,
        sample_prompts: list[str] | None = None,
    ) -> None:
        for name, value in (
            ("learning_rate", learning_rate),
            ("weight_decay", weight_decay),
            ("warmup_steps", warmup_steps),
            ("stop_below_nats", stop_below_nats),
        ):
            if value is not None and not 0 <= value < math.inf:
                raise ValueError(f"model.init_args.{name} is {value}: set it to at least 0")
        for name, word, known in (
            ("optimizer", optimizer, ("adamw", "sgd")),
            ("schedule", schedule, ("constant", "cosine")),
        ):
            if word not in known:
                raise ValueError(f"model.init_args.{name} is {word!r}: choose {' or '.join(known)}")
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
        #: Optimizer steps that were not passed over.
        self.steps_taken = 0
        self._passes_over = False

    # -- what a run starts and ends with ----------------------------------------------------------

    def setup(self, stage: str) -> None:
        """Refuse what cannot work together.

        Raises:
            ValueError: if stopping early meets accumulated batches, or LoRA sharded weights.
        """
        if self.visits.stop_below_nats is not None and self.trainer.accumulate_grad_batches != 1:
            raise ValueError(
                "model.init_args.stop_below_nats passes over single batches, but "
                f"trainer.accumulate_grad_batches is {self.trainer.accumulate_grad_batches}: set "
                "one of them to its default"
            )
        if self.trainable == "lora" and isinstance(self.trainer.strategy, FSDPStrategy):
            raise ValueError(
                "model.init_args.trainable=lora merges whole matrices, but trainer.strategy shards "
                "them: use DDP (configs/hardware/ddp.yaml)"
            )

    def on_fit_start(self) -> None:
        """Make sure that the data are in the model's own tokens.

        Raises:
            ValueError: if the exported tokenizer is another one than the data's.
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
        """Merge the adapters: whatever comes after the last checkpoint sees a plain model."""
        if self.trainable == "lora":
            merge_lora(self.model)

    def export_state_dict(self) -> dict[str, Tensor]:
        """The weights as `load_memory_lm` reads them: adapters merged."""
        return (
            merged_state_dict(self.model) if self.trainable == "lora" else self.model.state_dict()
        )

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep where the stream of facts stands."""
        state = {"steps_taken": self.steps_taken, "visits": self.visits.state_dict()}
        checkpoint["continual_finetuning"] = state

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Go on there."""
        state = checkpoint.get("continual_finetuning")
        if state is not None:
            self.steps_taken = state["steps_taken"]
            self.visits.load_state_dict(state["visits"])

    def summary_rows(self) -> list[tuple[str, str]]:
        """Rows of the table at the end."""
        rows = [("steps taken", f"{self.steps_taken:,} of {self.trainer.global_step:,}")]
        if self.visits.stop_below_nats is not None:
            early, begun = self.visits.num_ended_early, self.visits.num_visits
            rows.append(("facts passed early", f"{early:,} of {begun:,} visits"))
        return rows

    # -- a step, taken or passed over -------------------------------------------------------------

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """One batch; without any effect where its fact has been learned."""
        if self.visits.stop_below_nats is None:
            return super().training_step(batch, batch_idx)
        self._passes_over = self.visits.begin(_visit(batch))
        if self._passes_over:  # without a forward; the log keeps the loss that ended the visit
            assert self.visits.last_nats is not None
            self.log("train/nll_nats_per_token", self.visits.last_nats, prog_bar=True)
            return torch.zeros((), device=self.device)
        nll = self.next_token_nll(batch)
        num_tokens = sum_over_ranks(self.trainer, nll.num_tokens).clamp(min=1)
        mean_nats = self._log_step(batch, nll, num_tokens)
        self._passes_over = self.visits.ends_with(float(mean_nats))
        if self._passes_over:
            return torch.zeros((), device=self.device)
        return self._step_loss(batch, nll, num_tokens)

    def backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        """No backward for a batch passed over: gradients stay None.

        (Lightning would have `training_step` return None, but refuses that on several processes. A
        zero loss with a backward would do worse: gradients of zero, on which AdamW still decays.)
        """
        if not self._passes_over:
            super().backward(loss, *args, **kwargs)

    def optimizer_step(
        self,
        epoch: int,
        batch_idx: int,
        optimizer: Optimizer | LightningOptimizer,
        optimizer_closure: Callable[[], Any] | None = None,
    ) -> None:
        """Run the batch, and step unless it is passed over; only the batch itself can tell."""
        assert optimizer_closure is not None  # automatic optimization
        loss = optimizer_closure()
        if not self._passes_over:
            self.steps_taken += 1
            optimizer.step(closure=lambda: loss)

    def lr_scheduler_step(self, scheduler: Any, metric: Any) -> None:
        """Advance the schedule, after a step passed over too."""
        if self.steps_taken > 0:
            super().lr_scheduler_step(scheduler, metric)
            return
        with warnings.catch_warnings():  # the very first steps were passed over: torch finds it odd
            warnings.filterwarnings("ignore", "Detected call of `lr_scheduler.step")
            super().lr_scheduler_step(scheduler, metric)

    def on_train_batch_end(self, outputs: Any, batch: Batch, batch_idx: int) -> None:
        """Log how many steps were really taken."""
        self.log("train/steps_taken", float(self.steps_taken))

    # -- optimization -----------------------------------------------------------------------------

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """The optimizer of whatever learns, warm-up and schedule.

        Raises:
            ValueError: if nothing learns, or the cosine has no end.
        """
        if not any(parameter.requires_grad for parameter in self.model.parameters()):
            return optimizer_of_nothing(self)
        optimizer = self._build_optimizer()
        return scheduled(optimizer, self.schedule, self.warmup_steps, self.trainer)

    def _build_optimizer(self) -> Optimizer:
        if self.optimizer == "adamw":
            rate, decay = self.learning_rate, self.weight_decay
            return build_adamw(self.model, rate, rate, decay, decay, self.betas)
        groups = parameter_groups(
            self.model, self.learning_rate, self.learning_rate, self.weight_decay, self.weight_decay
        )
        return SGD(groups)


def _load(init_from: str, vocab_size: int) -> PreTrainedModel:
    model = load_memory_lm(Path(init_from)).train()  # loaded models come in eval mode
    held = model.config.vocab_size
    if vocab_size > held:  # fewer are no fault: families pad their embeddings
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
