"""Training of a molecule prior: a recurrent network, or any small transformers decoder."""

import math
import time
from pathlib import Path
from typing import Any, Literal

import torch
from jsonargparse.typing import NonNegativeFloat, NonNegativeInt, PositiveInt
from lightning.pytorch import LightningModule
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor
from torch.optim import AdamW
from torch.optim.lr_scheduler import LambdaLR, OneCycleLR
from transformers import AutoTokenizer, PreTrainedModel

from triptych.lit_modules.diversify.molecules.sampled_molecules import SampledMolecules
from triptych.lit_modules.optimization import (
    ClipsValuesApart,
    parameter_groups,
    stepped,
    warmup_cosine,
)
from triptych.lit_modules.trainer_parts import data_of, is_dry_run
from triptych.metrics.language_modeling import TokenNLL
from triptych.metrics.rank_sums import sum_over_ranks
from triptych.metrics.sharded_strategies import refuse_sharded
from triptych.models.base_lm import BaseLMConfig
from triptych.models.diversify.molecules.smiles_rnn import (
    SmilesRNN,
    SmilesRNNConfig,
    is_smiles_rnn,
    load_smiles_rnn,
    refuse_other_vocabulary,
)
from triptych.models.diversify.molecules.smiles_sampling import sample_smiles
from triptych.models.diversify.rollout import Rollout
from triptych.models.diversify.sampling import sample_completions
from triptych.models.end_tokens import use_special_tokens
from triptych.models.remember.memory_lm import build_memory_lm, load_memory_lm
from triptych.models.seeded_generator import seeded_generator
from triptych.objectives.batch_nll import Batch, batch_nll
from triptych.objectives.language_modeling import NextTokenNLL, next_token_nll
from triptych.protocols import LeavesRowsOut

Schedule = Literal["one_cycle", "cosine", "constant"]
# Largest batch of samples in validation.
_AT_ONCE = 1000
# Number of samples in a trial run (`fast_dev_run`).
_OF_A_DRY_RUN = 20


class MoleculePretraining(ClipsValuesApart, LightningModule):
    """Trains a language model of SMILES on molecules, one per row, with a start token.

    The loss is the mean negative log-likelihood over the tokens of the whole step on all ranks.
    Every validation samples molecules with the same seed, and logs their validity, uniqueness,
    novelty and internal diversity. Policies start from the export (`init_from`), and so does this
    module for fine-tuning.

    Args:
        vocab_size: Tokens of the tokenizer; linked from the data.
        rnn: The recurrent network; null: `base`, or a GRU of one layer of 256.
        base: A transformers decoder in its place.
        init_from: Exported folder of a prior (or an experiment's config, which is then run first)
            with the initial weights; the data then have to use its tokenizer.
        learning_rate: Peak learning rate.
        schedule: `one_cycle`: up for `warmup_share` of the steps and down to nothing, on cosines;
            `cosine`: linear warm-up, then down to a tenth; `constant`: after a linear warm-up.
        warmup_share: Share of the steps in which the learning rate rises.
        weight_decay: Decay of the matrices.
        betas: Adam's.
        num_samples: Molecules sampled in each validation.
        num_final_samples: Molecules sampled in the validation after the last step; null: as many.
        max_new_tokens: Longest sample, end token included.
        num_rows: Samples shown in the table.

    Raises:
        ValueError: if settings contradict each other or are out of range; when training starts, if
            the data's vocabulary is not that of the model.
    """

    headline_metrics = ("val/validity", "val/*nll_nats_per_token")

    def __init__(
        self,
        vocab_size: int,
        rnn: SmilesRNNConfig | None = None,
        base: BaseLMConfig | None = None,
        init_from: str | None = None,
        learning_rate: NonNegativeFloat = 3e-3,
        schedule: Schedule = "one_cycle",
        warmup_share: float = 0.1,
        weight_decay: NonNegativeFloat = 0.0,
        betas: tuple[float, float] = (0.9, 0.99),
        num_samples: PositiveInt = 1000,
        num_final_samples: PositiveInt | None = None,
        max_new_tokens: PositiveInt = 100,
        num_rows: NonNegativeInt = 32,
    ) -> None:
        super().__init__()
        if not 0 <= warmup_share < 1:
            raise ValueError(
                f"model.init_args.warmup_share is {warmup_share}: set it to at least 0 and below 1"
            )
        self.init_from = init_from
        self.model = _build(vocab_size, rnn, base, init_from)
        self.learning_rate = learning_rate
        self.schedule = schedule
        self.warmup_share = warmup_share
        self.weight_decay = weight_decay
        self.betas = (betas[0], betas[1])
        self.num_samples = num_samples
        self.num_final_samples = num_final_samples
        self.max_new_tokens = max_new_tokens
        self.num_rows = num_rows
        self.validation_nll = TokenNLL()
        self.molecules: SampledMolecules | None = None
        #: Samples of the last validation, as rows of a table.
        self.sample_rows: list[dict[str, Any]] = []
        self.trained_tokens = 0
        self._tokens_since, self._since = 0, time.perf_counter()

    # -- training ---------------------------------------------------------------------------------

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Compute the mean NLL over the tokens of all ranks."""
        nll = self.next_token_nll(batch)
        world_size = self.trainer.world_size
        num_tokens = sum_over_ranks(self.trainer, nll.num_tokens).clamp(min=1)
        mean = sum_over_ranks(self.trainer, nll.sum_nats.detach()) / num_tokens
        self.log("train/nll_nats_per_token", mean, prog_bar=True)
        self._log_throughput(int(num_tokens))
        # DDP averages gradients over ranks; the factor undoes that.
        return nll.sum_nats * world_size / num_tokens

    def next_token_nll(self, batch: Batch) -> NextTokenNLL:
        """Compute the NLL of every labelled token."""
        if isinstance(self.model, PreTrainedModel):
            return batch_nll(self.model, batch)
        return next_token_nll(self.model(batch["input_ids"]), batch["labels"])

    def _log_throughput(self, num_tokens: int) -> None:
        self.trained_tokens += num_tokens
        self._tokens_since += num_tokens
        elapsed = time.perf_counter() - self._since
        if elapsed > 2.0:
            self.log("train/tokens_per_second", self._tokens_since / elapsed, prog_bar=True)
            self._restart_clock()

    def _restart_clock(self) -> None:
        self._tokens_since, self._since = 0, time.perf_counter()

    # -- validation -------------------------------------------------------------------------------

    def on_validation_epoch_start(self) -> None:
        """Start a validation."""
        self.validation_nll.reset()

    def validation_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Count the likelihood of held-out molecules."""
        nll = self.next_token_nll(batch)
        num_bytes = nll.num_bytes(batch["num_bytes"])
        self.validation_nll.update(nll.sum_nats, nll.num_tokens, num_bytes)

    def on_validation_epoch_end(self) -> None:
        """Sample, and log the epoch's numbers."""
        numbers = {
            name: value
            for name, value in self.validation_nll.compute().items()
            if name == "nll_nats_per_token"
        }
        if self.molecules is None:
            train = data_of(self).splits["train"]
            self.molecules = SampledMolecules(train, self.device)
        self.molecules.reset()
        self.sample_rows = []
        for number, count in enumerate(self._sample_counts()):
            rollout = self.sample(count, number)
            self.molecules.add(rollout)
            room = self.num_rows - len(self.sample_rows)
            self.sample_rows += self.molecules.rows(rollout, room)
        for name, value in (numbers | self.molecules.compute()).items():
            # The value is equal on all ranks; sync_dist=True only silences Lightning's warning.
            self.log(f"val/{name}", float(value), sync_dist=True, prog_bar=name == "validity")
        self._restart_clock()

    def _sample_counts(self) -> list[int]:
        """Return the batch sizes of this rank's samples."""
        last = 0 < self.trainer.max_steps <= self.trainer.global_step
        total = self.num_final_samples if last and self.num_final_samples else self.num_samples
        if is_dry_run(self):
            total = min(total, _OF_A_DRY_RUN)
        own = len(range(self.trainer.global_rank, total, self.trainer.world_size))
        return [min(_AT_ONCE, own - start) for start in range(0, own, _AT_ONCE)]

    @torch.no_grad()
    def sample(self, count: int, number: int = 0) -> Rollout:
        """Sample molecules; the result depends on the weights, the rank and `number` alone.

        Probabilities have the trainer's precision, as in `validation_step` and in a policy that
        starts from the export; Lightning calls `on_validation_epoch_end` outside autocast.

        Args:
            count: Number of molecules.
            number: Number of the batch within a validation.
        """
        generator = seeded_generator(self.device, self.trainer.global_rank, number)
        tokenizer = data_of(self).tokenizer
        was_training = self.model.training
        self.model.eval()
        with self.trainer.precision_plugin.forward_context():
            if isinstance(self.model, SmilesRNN):
                rollout = sample_smiles(
                    self.model, tokenizer, count, self.max_new_tokens, generator
                )
            else:
                rollout = self._sample_decoder(tokenizer, count, generator)
        self.model.train(was_training)
        return rollout

    def _sample_decoder(self, tokenizer: Any, count: int, generator: torch.Generator) -> Rollout:
        assert isinstance(self.model, PreTrainedModel)
        start = torch.tensor([[tokenizer.bos_token_id]], device=self.device, dtype=torch.int64)
        made = sample_completions(
            self.model,
            start,
            torch.ones_like(start, dtype=torch.bool),
            count,
            self.max_new_tokens,
            [tokenizer.eos_token_id],
            tokenizer.pad_token_id,
            generator,
        )
        texts = tokenizer.batch_decode(made.token_ids_BT, skip_special_tokens=True)
        return Rollout(
            prompts=[""] * count,
            texts=texts,
            group_B=torch.zeros(count, dtype=torch.int64, device=self.device),
            prompt_ids_BP=start.expand(count, 1),
            prompt_mask_BP=torch.ones(count, 1, dtype=torch.bool, device=self.device),
            token_ids_BT=made.token_ids_BT,
            token_mask_BT=made.token_mask_BT,
            finished_B=made.finished_B,
            log_prob_B=made.token_log_prob_BT.sum(1),
        )

    # -- before and after -------------------------------------------------------------------------

    def setup(self, stage: str) -> None:
        """Set the model's vocabulary to that of the data.

        Raises:
            ValueError: if the model has another vocabulary, or the strategy shards the model.
        """
        refuse_sharded(self.trainer, "MoleculePretraining samples from whole models")
        tokenizer = data_of(self).tokenizer
        words = tokenizer.convert_ids_to_tokens(list(range(len(tokenizer))))
        if isinstance(self.model, SmilesRNN):
            self.model.use_vocabulary(words)
            return
        if self.init_from is not None:
            own = AutoTokenizer.from_pretrained(
                self.init_from, local_files_only=True, trust_remote_code=False
            )
            refuse_other_vocabulary(own.convert_ids_to_tokens(list(range(len(own)))), words)
        use_special_tokens(self.model, tokenizer)

    def on_fit_start(self) -> None:
        """Start the clock."""
        self._restart_clock()

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Save the number of trained tokens."""
        checkpoint["trained_tokens"] = self.trained_tokens

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restore the number of trained tokens."""
        self.trained_tokens = checkpoint["trained_tokens"]

    def summary_rows(self) -> list[tuple[str, str]]:
        """Return summary rows: parameters, trained tokens, molecules that filters left out."""
        parameters = sum(parameter.numel() for parameter in self.model.parameters())
        rows = [
            ("parameters", f"{parameters:,}"),
            ("tokens trained on", f"{self.trained_tokens:,}"),
        ]
        data = data_of(self)
        if isinstance(data, LeavesRowsOut) and data.left_out:
            rows.append(("molecules left out", f"{sum(data.left_out.values()):,}"))
        return rows

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Return AdamW with its schedule.

        Raises:
            ValueError: if the run has no end, which the schedule needs.
        """
        rates = (self.learning_rate, self.learning_rate, self.weight_decay, 0.0)
        optimizer = AdamW(parameter_groups(self.model, *rates), betas=self.betas, fused=True)
        total = self.trainer.estimated_stepping_batches
        if not math.isfinite(total):
            raise ValueError(
                "the learning rate's schedule needs an end: set trainer.max_steps or "
                "trainer.max_epochs"
            )
        return stepped(optimizer, self._scheduler(optimizer, int(total)))

    def _scheduler(self, optimizer: AdamW, total: int) -> LambdaLR | OneCycleLR:
        warmup = round(self.warmup_share * total)
        if self.schedule == "one_cycle":
            share = max(self.warmup_share, 1 / max(total, 1))
            return OneCycleLR(
                optimizer,
                self.learning_rate,
                total_steps=total + 1,
                pct_start=min(share, 0.99),
                cycle_momentum=False,
                final_div_factor=1000.0,
            )
        return warmup_cosine(optimizer, warmup, total, 0.1 if self.schedule == "cosine" else 1.0)


def _build(
    vocab_size: int,
    rnn: SmilesRNNConfig | None,
    base: BaseLMConfig | None,
    init_from: str | None,
) -> SmilesRNN | PreTrainedModel:
    given = [name for name, value in (("rnn", rnn), ("base", base)) if value is not None]
    if init_from is not None and given:
        raise ValueError(
            f"model.init_args.init_from is set, and so is {' and '.join(given)}: the model of "
            "init_from brings its own settings; leave the others out"
        )
    if len(given) == 2:
        raise ValueError("both model.init_args.rnn and base are set: leave one of them out")
    model: SmilesRNN | PreTrainedModel
    if init_from is not None and is_smiles_rnn(init_from):
        model = load_smiles_rnn(init_from)
    elif init_from is not None:
        model = load_memory_lm(Path(init_from))
    elif base is not None:
        model = build_memory_lm(base, None, vocab_size)
    else:
        model = SmilesRNN(rnn or SmilesRNNConfig(), vocab_size)
    return model.train()


#: Former name of the class; configurations of older runs say `lit_modules.causal_lm.CausalLM`.
CausalLM = MoleculePretraining
