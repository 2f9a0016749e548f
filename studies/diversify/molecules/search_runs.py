"""What the studies of searches share: the prior, and a trainer that stops at a cap of samples."""

import argparse
from pathlib import Path

from triptych.studies.arms import Settings, exported_start, probe


def add_prior_option(parser: argparse.ArgumentParser) -> None:
    """Add `--init_from`."""
    parser.add_argument(
        "--init_from",
        help="the prior: an exported folder, or a config that is run first; default: zinc_prior "
        "of configs/diversify with --data_dir, molecules_prior without",
    )


def prior_of(options: argparse.Namespace) -> Path:
    """Return the exported prior, which is trained first if need be."""
    folder = options.out / "prior"
    if options.init_from is not None:
        return exported_start(options.init_from, folder)
    if options.data_dir is None:
        return exported_start("configs/diversify/molecules_prior.yaml", folder)
    words = ("--data.init_args.data_dir", options.data_dir)
    return exported_start("configs/diversify/zinc_prior.yaml", folder, more=words)


def search_trainer(max_samples: int, batch: int, log_every_n_steps: int = 1) -> Settings:
    """Return the section `trainer` of a search that ends at its budget or a cap of samples."""
    return {
        "max_steps": -(-max_samples // batch),
        "log_every_n_steps": log_every_n_steps,
        "callbacks": [
            probe("triptych.callbacks.run.step_seeds.StepSeeds"),
            probe("triptych.callbacks.run.nan_guard.NanGuard"),
            probe(
                "triptych.callbacks.diversify.molecules.stop_search.StopSearch",
                # Long series of known samples are allowed up to the cap.
                patience=max_samples,
                max_samples=max_samples,
            ),
        ],
    }
