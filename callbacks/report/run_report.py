"""The report of a run, written when it ends."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lightning.pytorch import Callback, Trainer
from lightning.pytorch.utilities.rank_zero import rank_zero_info, rank_zero_warn

from triptych.callbacks.report.run_page import write_run_report
from triptych.callbacks.trainer_parts import callbacks_of, num_dry_run_batches


class RunReport(Callback):
    """Writes ``report.html`` into the run's directory: one file that opens in any browser.

    It holds the table of results, figures, samples, commands to go on, and the configuration. The
    command line writes it after everything else of the run, also after an interruption or an error.
    For an older run: ``python train.py report RUN_DIR``.
    """

    def write(self, run_dir: Path) -> None:
        """Write the report; a failure is a warning, because the run itself is complete."""
        try:
            path = write_run_report(run_dir)
        except Exception as error:
            rank_zero_warn(
                f"report.html was not written ({type(error).__name__}: {error}). The run is "
                f"complete; try again with: python train.py report {run_dir}"
            )
        else:
            rank_zero_info(f"report: {path}")


@contextmanager
def reported_run(trainer: Trainer, run_dir: Path) -> Iterator[None]:
    """Write the report of a run with a `RunReport` when it ends, in whichever way."""
    try:
        yield
    finally:
        if trainer.is_global_zero and not num_dry_run_batches(trainer):
            for callback in callbacks_of(trainer):
                if isinstance(callback, RunReport):
                    callback.write(run_dir)
