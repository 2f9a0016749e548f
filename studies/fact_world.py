"""The world of facts that a study's options ask for."""

import argparse

from studies.retention_arms import Settings, World


def world_of(
    options: argparse.Namespace, base_steps: int, num_new: int, split: str = "report"
) -> World:
    """The data of a study, small and brief in preset `smoke`.

    Args:
        options: With `preset` and `data_dir`.
        base_steps: Optimizer steps of pretraining.
        num_new: Facts to learn.
        split: Which NEW facts.
    """
    small: Settings = {"num_old": 16, "num_windows": 8, "brief": True}
    sizes = small if options.preset == "smoke" else {}
    return World(options.data_dir, split, base_steps, num_new, **sizes)
