"""Base of language model training: loss, logs and validation."""

import math
import time
from typing import Any

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from torch import Tensor
from transformers import PreTrainedModel

from triptych.lit_modules.optimization import ClipsValuesApart
from triptych.lit_modules.remember.language_model_evaluation import (
    LanguageModelEvaluation,
    warning_of_no_effect,
)
from triptych.lit_modules.sharded_model import shard_for_trainer
from triptych.lit_modules.trainer_parts import data_of
from triptych.metrics.rank_sums import sums_over_ranks
from triptych.models.end_tokens import use_special_tokens
from triptych.models.remember.memory_blocks import describe_memory
from triptych.objectives.batch_nll import Batch, batch_nll
from triptych.objectives.language_modeling import NextTokenNLL
from triptych.protocols import LossTerm

#: Before so many steps nobody expects an effect of the memory.
FEWEST_STEPS_TO_HEAL = 20


class LanguageModelTraining(ClipsValuesApart, LightningModule):
    """Trains a causal language model on rows of documents; subclasses provide model and optimizer.

    The loss is the mean negative log-likelihood over the labelled tokens of the whole step on all
    ranks. So two processes train like one with twice the batch.

    Args:
        model: The language model.
        max_new_tokens: Longest generated answer or continuation.
        num_samples: Generated answers shown per set of questions.
        sample_prompts: Texts to continue at each validation, for the table of samples.
    """

    headline_metrics = ("val/*/exact_match", "val/*nll_nats_per_token")

    def __init__(
        self,
        model: PreTrainedModel,
        max_new_tokens: int,
        num_samples: int,
        sample_prompts: list[str] | None,
    ) -> None:
        super().__init__()
        self.model = model
        self.sample_prompts = sample_prompts or []
        self.evaluation = LanguageModelEvaluation(model, max_new_tokens, num_samples)
        #: Further terms of the loss, added by callbacks in `setup`. `term(module, batch)` returns a
        #: scalar; its mean over ranks is added to the loss.
        self.loss_terms: list[LossTerm] = []
        #: Answers and continuations of the last validation, as rows of a table.
        self.sample_rows: list[dict[str, Any]] = []
        self._has_warned = False
        self._restart_clock()

    @property
    def max_new_tokens(self) -> int:
        """Tokens of the longest answer or continuation."""
        return self.evaluation.max_new_tokens

    # -- training ---------------------------------------------------------------------------------

    def configure_model(self) -> None:
        """Shard the model where the strategy does so (`configs/hardware/fsdp2.yaml`).

        Raises:
            ValueError: if the strategy shards in a way that is not supported.
        """
        shard_for_trainer(self, self.model)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Compute the mean NLL over the labelled tokens of all ranks, plus the further terms."""
        nll = self.next_token_nll(batch)
        num_tokens, _ = self._log_step(batch, nll)
        return self._step_loss(batch, nll, num_tokens)

    def next_token_nll(self, batch: Batch) -> NextTokenNLL:
        """Compute the NLL of every labelled token; documents do not attend to each other."""
        return batch_nll(self.model, batch)

    def _step_loss(self, batch: Batch, nll: NextTokenNLL, num_tokens: Tensor) -> Tensor:
        # DDP averages gradients over ranks; the factor undoes that.
        loss = nll.sum_nats * self.trainer.world_size / num_tokens
        for term in self.loss_terms:
            loss = loss + term(self, batch)
        return loss

    def _log_step(self, batch: Batch, nll: NextTokenNLL) -> tuple[Tensor, Tensor]:
        """Log the step; return its number of labelled tokens and mean NLL over all ranks."""
        own = (nll.num_tokens, nll.sum_nats, nll.num_bytes(batch["num_bytes"]))
        num_tokens, sum_nats, num_bytes = sums_over_ranks(self.trainer, *own)
        num_tokens = num_tokens.clamp(min=1)
        # It stays on the device, where a number would wait for all that is queued.
        self._tokens_since += (batch["segment_ids"] > 0).sum() * self.trainer.world_size
        mean_nats = sum_nats / num_tokens
        self.log("train/nll_nats_per_token", mean_nats, prog_bar=True)
        self.log("train/bits_per_byte", sum_nats / math.log(2) / num_bytes.clamp(min=1))
        elapsed = time.perf_counter() - self._since
        if elapsed > 2.0:
            self.log("train/tokens_per_second", self._tokens_since / elapsed, prog_bar=True)
            self._restart_clock()
        return num_tokens, mean_nats

    def _restart_clock(self) -> None:
        self._tokens_since: Tensor | int = 0
        self._since = time.perf_counter()

    def described_parts(self) -> list[tuple[str, str]]:
        """Describe the memory for the first lines of a run."""
        return describe_memory(self.model)

    # -- validation -------------------------------------------------------------------------------

    def on_fit_start(self) -> None:
        """Set the tokenizer's special tokens in the model's config, so that exports can generate.

        Raises:
            ValueError: if the rows of the data are longer than the model's context.
        """
        data, longest = data_of(self), self.model.config.max_position_embeddings
        if data.context_length > longest:
            raise ValueError(
                f"data.init_args.context_length is {data.context_length}, but the model has "
                f"{longest} positions: lower it, or raise model.init_args.base."
                "max_position_embeddings"
            )
        tokenizer = data.tokenizer
        use_special_tokens(self.model, tokenizer)
        self._restart_clock()

    def on_validation_epoch_start(self) -> None:
        """Start an evaluation."""
        self.evaluation.reset()

    def validation_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Count likelihoods of text or answers; for questions also score generated answers."""
        self.evaluation.record_reads(True)
        nll = self.next_token_nll(batch)
        self.evaluation.add_likelihood(batch, nll)
        self.evaluation.record_reads(False)
        if "prompt_ids" in batch:
            self.evaluation.add_answers(batch, data_of(self).tokenizer)

    def on_validation_epoch_end(self) -> None:
        """Log the epoch's metrics and refresh the table of samples."""
        values = self.evaluation.compute()
        for name, value in values.items():
            # The value is equal on all ranks; sync_dist=True only silences Lightning's warning.
            self.log(name, value, sync_dist=True)
        self._warn_of_no_effect(values)
        self.sample_rows = [*self.evaluation.samples, *self._continue_prompts()]
        self._restart_clock()

    def _warn_of_no_effect(self, values: dict[str, Tensor]) -> None:
        """Warn once if the memory has learned and still adds nothing to its FFNs."""
        if self.trainer.global_step < FEWEST_STEPS_TO_HEAL or self._has_warned:
            return
        warning = warning_of_no_effect(values)
        if warning is not None:
            self._has_warned = True
            rank_zero_warn(warning)

    def _continue_prompts(self) -> list[dict[str, Any]]:
        tokenizer = data_of(self).tokenizer
        rows = []
        for prompt in self.sample_prompts:
            ids = tokenizer(prompt, add_special_tokens=False)["input_ids"]
            ids_1T = torch.tensor(
                [[tokenizer.bos_token_id, *ids]], device=self.device, dtype=torch.int64
            )
            text = self.evaluation.generate(tokenizer, ids_1T, torch.ones_like(ids_1T))[0]
            row = {"set": "continuation", "prompt": prompt, "expected": "", "output": text}
            rows.append(row | {"exact_match": None})
        return rows
