"""Runs tiny experiments on the pretended GPU, each once, after those that it starts from."""

from pathlib import Path

from tests.pretended_gpu.client import PretendedGPU, RunOnGPU
from tests.pretended_gpu.tiny_runs import start_of, write_tiny

# Of the first run; the second goes on in the other precision.
PRECISIONS = ("32-true", "bf16-mixed")
COUNTED_STEP = 1  # the second: what a run makes once is there


class TinyExperiments:
    """The experiments, by name.

    Args:
        gpu: Where they run.
        folder: Of their runs and of the stand-ins.
    """

    def __init__(self, gpu: PretendedGPU, folder: Path) -> None:
        self._gpu, self._folder = gpu, folder
        self._finished: dict[str, RunOnGPU] = {}
        self._has_stand_ins = False

    def run(self, name: str) -> RunOnGPU:
        """Train two steps with float32, validate and export; once.

        Args:
            name: Of the configuration, relative to `configs/` and without its ending.
        """
        if name not in self._finished:
            if not self._has_stand_ins:
                self._gpu.save_stand_ins(self._folder)
                self._has_stand_ins = True
            start = start_of(name)
            init_from = None if start is None else self.run(start).path / "export"
            config = write_tiny(name, self._folder, init_from)
            self._finished[name] = self._fit(config, PRECISIONS[0], counted_step=COUNTED_STEP)
        return self._finished[name]

    def resume(self, name: str) -> RunOnGPU:
        """Go on from `run`'s checkpoint for two steps with bfloat16, validate and export.

        The first run stops early (stop_early.py), so that schedules end with the second.
        """
        before = self.run(name)
        config = self._folder / f"{name.replace('/', '-')}.yaml"
        return self._fit(config, PRECISIONS[1], "--ckpt_path", before.checkpoint)

    def _fit(
        self, config: Path, precision: str, *more: object, counted_step: int | None = None
    ) -> RunOnGPU:
        run_dir = self._folder / "runs" / f"{config.stem}-{precision}"
        words = ("fit", "--config", config, "--run_dir", run_dir, *more)
        hardware = ("--trainer.accelerator", "gpu", "--trainer.devices", 1)
        hardware += ("--trainer.precision", precision)
        return self._gpu.run(self._folder, *words, *hardware, counted_step=counted_step)
