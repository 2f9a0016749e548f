"""Print where the host waits for the device in one training step of a configuration.

    python -m tests.pretended_gpu.waits configs/quickstart.yaml [OPTION ...]

Options are those of `python train.py fit`. The third step is counted, in bfloat16, without
validation. Models that a configuration starts from are trained first, or named by
``--model.init_args.init_from FOLDER``. It needs g++, and no GPU.
"""

import sys
import tempfile
from pathlib import Path

from tests.pretended_gpu.client import PretendedGPU
from tests.pretended_gpu.guard import build
from tests.pretended_gpu.wait_counter import table
from triptych import ROOT

STEP = 2


def main(config: str, *options: str) -> None:
    """Run three steps of a configuration and print its waits."""
    folder = Path(tempfile.mkdtemp(prefix="waits-"))
    gpu = PretendedGPU(build(ROOT / ".cache" / "pretended_gpu"), folder)
    try:
        run = gpu.run(
            Path.cwd(),
            *("fit", "--config", config, "--config", ROOT / "configs" / "hardware" / "gpu.yaml"),
            *("--trainer.fast_dev_run", STEP + 1, "--tracking.uri", "null"),
            *("--run_dir", folder / "run", *options),
            counted_step=STEP,
            log=folder / "output.log",
        )
    finally:
        gpu.close()
    print(f"{config}: {table(run.waits)}")


if __name__ == "__main__":
    main(*sys.argv[1:])
