"""Learning and forgetting of a run, measured before, during and after training."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from jsonargparse.typing import PositiveInt
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.rank_zero import rank_zero_info
from transformers import PreTrainedModel
from typing_extensions import override

from triptych.callbacks.remember.forgetting.forgetting_budget import ForgettingBudget
from triptych.callbacks.remember.forgetting.forgetting_figure import draw_forgetting
from triptych.callbacks.remember.forgetting.forgetting_history import ForgettingHistory
from triptych.callbacks.remember.forgetting.forgetting_report import (
    Transfers,
    table_rows,
    transfers,
    write_report,
)
from triptych.callbacks.remember.forgetting.undisturbed import undisturbed
from triptych.callbacks.remember.language_model import language_model_of, tokenizer_of
from triptych.callbacks.remember.probes.base import SMALL_ON_CPU, Probe, ProbeSetting
from triptych.callbacks.run.run_figures import save_run_figure
from triptych.callbacks.tracking.run_artifacts import log_file
from triptych.callbacks.trainer_parts import datamodule_of, num_dry_run_batches
from triptych.datamodules.batches.packed_datamodule import RowFormat
from triptych.datamodules.batches.resumable_loader import Shard
from triptych.datamodules.batches.visit_datamodule import VisitDataModule
from triptych.models.disk_cache import default_cache_dir
from triptych.models.remember.memory_blocks import value_tables
from triptych.protocols import HasContextLength, missing


class ForgettingEvaluation(Callback):
    """Measures probes at the start, at intervals and at the end, and may stop the run.

    Logs ``forgetting/<probe>/<number>`` and ``..._change`` (against the first measurement) by
    optimizer step, and keeps all of them in ``forgetting.json``. At the end it draws
    ``figures/forgetting.png`` and adds rows to the table: learned, forgotten. Probes with groups of
    visits (`FactRecall.visits_per_group`) also get ``backward_transfer``, ``forward_transfer`` and
    ``forgetting`` of their matrix R. This takes a measurement after each group: `every_n_visits`
    must divide the group.

    It measures the module's ``model``, a causal language model of `transformers`, with the data's
    ``tokenizer``. Training is not affected. A resumed run continues the history and keeps the first
    measurement of the run that it resumes.

    ``python train.py validate`` measures once.

    Args:
        probes: Probes by the name in their log keys.
        every_n_visits: Measure after every n visits (a visit is a series of batches with the same
            `visit`); null: do not.
        every_n_steps: Measure after every n optimizer steps; null: do not.
        at_start: Measure before training. Changes and budgets refer to the first measurement.
        budget: Largest loss of retained probes before the run stops; null: never stop. The
            measurement that exceeds the budget is the last of the run.

    Raises:
        ValueError: if there is no probe, the module has no language model, the data have no
            tokenizer or no visits, or a probe has nothing to measure.
        FileNotFoundError: if a probe's file is missing.
    """

    #: The rows of the table at the end replace these metrics.
    summarized_metrics = ("forgetting/",)

    def __init__(
        self,
        probes: dict[str, Probe],
        every_n_visits: PositiveInt | None = None,
        every_n_steps: PositiveInt | None = None,
        at_start: bool = True,
        budget: ForgettingBudget | None = None,
    ) -> None:
        if not probes:
            raise ValueError("ForgettingEvaluation has no probes: give at least one")
        if budget is not None and all(probe.role != "retained" for probe in probes.values()):
            raise ValueError(
                "ForgettingEvaluation has a budget, but no probe with role: retained. Add one, "
                "or leave the budget out"
            )
        self.probes = probes
        self.every_n_visits = every_n_visits
        self.every_n_steps = every_n_steps
        self.at_start = at_start
        self.budget = budget
        self.history = ForgettingHistory()
        #: Why the run was stopped.
        self.stopped: str | None = None
        self._rows_to_resume = 0  # without the measurement at the end, which is not resumed
        self._has_visits = False
        self._visit: int | None = None  # that of the last batch
        self._num_visits = 0
        self._transfers: Transfers = {}

    # -- when -------------------------------------------------------------------------------------

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage not in ("fit", "validate"):
            return
        setting = _setting(trainer, pl_module)
        self._has_visits = isinstance(datamodule_of(trainer), VisitDataModule)
        for name, probe in self.probes.items():
            try:
                probe.prepare(setting)
            except (FileNotFoundError, ValueError) as error:
                raise type(error)(f"ForgettingEvaluation, probe {name!r}: {error}") from error
            is_automatic = "auto" in (probe.num_rows, getattr(probe, "num_windows", None))
            if is_automatic and setting.parameters_on_cpu > SMALL_ON_CPU:
                rank_zero_info(
                    f"probe {name}: {probe.num_rows_used} rows, as fits a CPU; its num_rows or "
                    "num_windows sets more"
                )

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.at_start and not self.history.rows:
            self._measure(trainer, pl_module)

    @override
    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        visit = _visit(batch)
        if visit is None and self.every_n_visits is not None:
            raise ValueError(
                "ForgettingEvaluation.every_n_visits needs data with visits (batch['visit']), such "
                "as "
                "triptych.datamodules.remember.facts.fact_stream.FactStream: use every_n_steps"
            )
        if visit is None or visit == self._visit:
            return
        due = (
            self.every_n_visits and self._num_visits and not self._num_visits % self.every_n_visits
        )
        if due and not self.history.has(trainer.global_step, self._visits_begun):
            self._measure(trainer, pl_module)
            if trainer.should_stop and not (trainer.min_steps or trainer.min_epochs):
                raise StopIteration  # ends the epoch before anything is learned of the next visit
        self._visit, self._num_visits = visit, self._num_visits + 1

    @override
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        step = trainer.global_step
        due = self.every_n_steps and step and step % self.every_n_steps == 0
        # Only the last micro-batch of a step advances the step.
        if due and (not self.history.rows or self.history.rows[-1]["step"] != step):
            self._measure(trainer, pl_module)

    @override
    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not self.history.has(trainer.global_step, self._visits_begun):
            rows_to_resume = self._rows_to_resume
            self._measure(trainer, pl_module)
            self._rows_to_resume = rows_to_resume
        self._finish(trainer)

    @override
    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn == "validate":
            self._measure(trainer, pl_module)

    # -- what -------------------------------------------------------------------------------------

    def _measure(self, trainer: Trainer, pl_module: LightningModule) -> None:
        limit = num_dry_run_batches(trainer) or None
        model = language_model_of(pl_module, "ForgettingEvaluation")
        values: dict[str, float] = {}
        with undisturbed(pl_module), trainer.precision_plugin.forward_context():
            for name, probe in self.probes.items():
                measured = probe.measure(model, limit)
                self.history.add(trainer.global_step, self._visits_begun, name, measured)
                values |= {f"forgetting/{name}/{metric}": v for metric, v in measured.items()}
        self._rows_to_resume = len(self.history.rows)
        latest = self.history.rows[-len(values) :]
        changes = {f"forgetting/{r['probe']}/{r['metric']}_change": r["change"] for r in latest}
        _log(trainer, values | changes)
        self._keep_to_budget(trainer)
        self._write(trainer)

    def _keep_to_budget(self, trainer: Trainer) -> None:
        """Stop all processes together once a limit is exceeded."""
        if self.budget is None or trainer.state.fn != "fit":
            return
        reasons = list(self._overspent(self.budget))
        if not trainer.strategy.reduce_boolean_decision(bool(reasons), all=False):
            return
        visits = "" if self._visits_begun is None else f", after {self._visits_begun:,} visits"
        self.stopped = f"at step {trainer.global_step:,}{visits}: {'; '.join(reasons)}"
        trainer.should_stop = True

    def _overspent(self, budget: ForgettingBudget) -> Iterator[str]:
        for name, probe in self.probes.items():
            start = self.history.first(name, probe.headline)
            value = self.history.last(name, probe.headline)
            if probe.role != "retained" or start is None or value is None:
                continue
            found = budget.overspent(start, value, probe.higher_is_better)
            if found is not None:
                yield f"{name} {probe.headline} {found}"

    def _finish(self, trainer: Trainer) -> None:
        """Summarise the groups of visits, and draw the figure."""
        self._transfers = transfers(self.history, self.probes)
        named = {
            f"forgetting/{name}/{metric}": value
            for name, values in self._transfers.items()
            for metric, value in values.items()
        }
        _log(trainer, named)
        self._write(trainer)
        if not trainer.is_global_zero:
            return
        run_dir = Path(trainer.default_root_dir)
        save_run_figure(trainer, draw_forgetting(self.history, self.probes), "forgetting")
        log_file(trainer, run_dir / "forgetting.json")

    def _write(self, trainer: Trainer) -> None:
        if trainer.is_global_zero:
            path = Path(trainer.default_root_dir) / "forgetting.json"
            write_report(path, self.history, self.probes, self._transfers, self.stopped)

    def summary_rows(self) -> list[tuple[str, str]]:
        """Return rows on learning, forgetting, and why the run was stopped."""
        return table_rows(self.history, self.probes, self._transfers, self.stopped)

    # -- checkpoints ------------------------------------------------------------------------------

    @property
    @override
    def state_key(self) -> str:
        return "ForgettingEvaluation"

    @override
    def state_dict(self) -> dict[str, Any]:
        return {
            "rows": self.history.rows[: self._rows_to_resume],
            "visit": self._visit,
            "num_visits": self._num_visits,
            "probes": {n: state for n, p in self.probes.items() if (state := p.state_dict())},
        }

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.history.rows = [dict(row) for row in state_dict["rows"]]
        self._rows_to_resume = len(self.history.rows)
        self._visit, self._num_visits = state_dict["visit"], state_dict["num_visits"]
        for name, state in state_dict.get("probes", {}).items():
            if name in self.probes:
                self.probes[name].load_state_dict(state)

    @property
    def _visits_begun(self) -> int | None:
        """Number of visits begun; None for data without visits."""
        return self._num_visits if self._has_visits or self._num_visits else None


def _setting(trainer: Trainer, pl_module: LightningModule) -> ProbeSetting:
    """Find the tokenizer and the longest row.

    Raises:
        ValueError: if the module has no language model, or the data no tokenizer.
    """
    name, data = "ForgettingEvaluation", datamodule_of(trainer)
    model, tokenizer = language_model_of(pl_module, name), tokenizer_of(data, name)
    longest = getattr(model.config, "max_position_embeddings", None)
    if not longest:
        if not isinstance(data, HasContextLength):
            raise missing(HasContextLength, data, name)
        longest = data.context_length
    row_format = RowFormat(tokenizer, longest, seed=0, cache_dir=default_cache_dir())
    shard = Shard(trainer.global_rank, trainer.world_size)
    return ProbeSetting(row_format, shard, data, _parameters_on_cpu(trainer, model))


def _parameters_on_cpu(trainer: Trainer, model: PreTrainedModel) -> int:
    """Count what a CPU computes with for each token; of a memory, few rows are read."""
    if trainer.strategy.root_device.type != "cpu":
        return 0
    in_tables = sum(table.weight.numel() for table in value_tables(model))
    return sum(parameter.numel() for parameter in model.parameters()) - in_tables


def _visit(batch: Any) -> int | None:
    """Return the number of the visit that a batch belongs to, if it has one."""
    visit = batch.get("visit") if isinstance(batch, Mapping) else None
    return None if visit is None else int(visit)


def _log(trainer: Trainer, values: dict[str, float]) -> None:
    """Log at once, also for final metrics and monitors.

    (`pl_module.log` is not allowed in some hooks, and waits for the logging interval in others.)
    """
    if not values:
        return
    exact = {name: torch.tensor(value, dtype=torch.float64) for name, value in values.items()}
    trainer.callback_metrics.update(exact)
    for logger in trainer.loggers:
        logger.log_metrics(values, step=trainer.global_step)
        logger.save()
