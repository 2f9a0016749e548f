"""Restores the process after a run, so that several runs can share one process."""

import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def restored_process_state() -> Iterator[None]:
    """Restore the environment and torch's global switches on exit.

    Lightning writes seeds and addresses of processes to the environment; its ``deterministic`` and
    ``benchmark`` set switches of torch; and it undoes neither. The random number generators keep
    the state that the run left.
    """
    logging.getLogger("lightning.pytorch.utilities.rank_zero").addFilter(_is_no_advertisement)
    environment = dict(os.environ)
    deterministic = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    benchmark = torch.backends.cudnn.benchmark
    try:
        with warnings.catch_warnings():
            # In every run Lightning asks torch about a class that torch has renamed.
            warnings.filterwarnings("ignore", r"`isinstance\(treespec, LeafSpec\)`", FutureWarning)
            yield
    finally:
        for name in set(os.environ) - set(environment):
            del os.environ[name]
        os.environ.update(environment)
        torch.use_deterministic_algorithms(deterministic, warn_only=warn_only)
        torch.backends.cudnn.benchmark = benchmark


def _is_no_advertisement(record: logging.LogRecord) -> bool:
    """Drop Lightning's product tip, and what `RunHeader` says of the device."""
    text = record.getMessage()
    return not text.startswith(("💡 Tip: For seamless cloud", "TPU available: ", "GPU available: "))
