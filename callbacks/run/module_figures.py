"""Figures that a module makes of itself, drawn when training ends."""

from lightning.pytorch import Callback, LightningModule, Trainer
from typing_extensions import override

from triptych.callbacks.report.guard import only_a_warning, reports
from triptych.callbacks.run.run_figures import save_run_figure
from triptych.callbacks.trainer_parts import num_dry_run_batches
from triptych.protocols import DrawsFigures


class ModuleFigures(Callback):
    """Writes the figures of a module that `DrawsFigures` as ``figures/<name>.png``.

    The loggers get the same figures. Modules may not know the loggers, so a callback does it.
    """

    @override
    @reports
    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.is_global_zero or num_dry_run_batches(trainer):
            return
        if isinstance(pl_module, DrawsFigures):
            for name, figure in pl_module.draw_figures().items():
                with only_a_warning(f"figures/{name}.png"):
                    save_run_figure(trainer, figure, name)
