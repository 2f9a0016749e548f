"""Run an experiment: ``python train.py fit --config configs/quickstart.yaml``.

``python train.py --help`` lists the commands; what they do stands in `triptych/cli.py`.
"""

from triptych.start import main, run

__all__ = ["main"]

if __name__ == "__main__":
    run()
