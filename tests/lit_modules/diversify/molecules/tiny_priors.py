"""A handful of molecules in a file, and runs that train a tiny prior on them."""

from pathlib import Path
from typing import Any

from triptych.lit_modules.diversify.molecules.molecule_pretraining import MoleculePretraining

CHAINS = ["C" * a + middle + "C" * b for a in (1, 2, 3) for b in (1, 2, 3) for middle in "ONS"]


def write_molecules(folder: Path, more: tuple[str, ...] = ()) -> Path:
    path = folder / "molecules.smi"
    path.write_text("".join(f"{text}\n" for text in [*CHAINS, *more]))
    return path


def prior_sections(path: Path, max_steps: int = 4, **model: Any) -> dict[str, dict]:
    """Sections of a configuration: a GRU of 8 on the molecules of a file."""
    return {
        "data": {
            "class_path": "triptych.datamodules.diversify.molecules.smiles.Smiles",
            "init_args": {
                "smiles": {
                    "source": {"path": str(path)},
                    "split": {"validation_share": 0.2},
                    "preparing_processes": 1,
                },
                "context_length": 16,
                "batch_size": 4,
            },
        },
        "model": {
            "class_path": f"{MoleculePretraining.__module__}.MoleculePretraining",
            "init_args": {"num_samples": 12, "max_new_tokens": 12, **model},
        },
        "trainer": {
            "accelerator": "cpu",
            "devices": 1,
            "max_epochs": None,
            "max_steps": max_steps,
            "val_check_interval": max_steps,
            "check_val_every_n_epoch": None,
            "log_every_n_steps": 1,
        },
    }
