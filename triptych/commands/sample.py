"""``python train.py sample EXPORT --output FILE``: molecules of a prior or an agent."""

import csv
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from triptych.callbacks.atomic_file import atomic_file
from triptych.commands.find_export import find_export, refuse_other_kinds
from triptych.commands.options import CommandParser, positive_int
from triptych.commands.training_molecules import molecules_of_file, training_molecules
from triptych.models.diversify.molecules.molecule import canonical_smiles
from triptych.models.diversify.molecules.smiles_policy import load_molecule_policy

EPILOG = """--output: a .smi has the valid molecules, one a line, in the order of the samples,
  repeats included (--unique: each once). A .csv has a row for every sample: smiles (canonical;
  empty if it is invalid), sample (as it was written), novel, log_prob_nats.

novelty is the share of different molecules that are not among those that the prior was trained
  on. They are found by the settings in the export, or named by --reference.

examples:
  python train.py sample runs/molecules_prior/*/export --samples 1000 --output molecules.smi
  python train.py sample runs/molecules/*/export --output molecules.csv --reference known.smi
"""
# Molecules sampled at once.
_AT_ONCE = 1000
FORMATS = (".smi", ".csv")


@dataclass(frozen=True)
class Sample:
    """One sample of a model of molecules.

    Attributes:
        text: As it was written.
        smiles: Its canonical form; None if it is no molecule, or was cut off.
        log_prob: Log-probability under the model, in nats.
    """

    text: str
    smiles: str | None
    log_prob: float


def run_sample_command(words: Sequence[str]) -> Path:
    """Sample molecules into a file, and print their validity, uniqueness and novelty.

    Args:
        words: The command line after ``sample``.

    Raises:
        argparse.ArgumentError: for an option that does not exist.
        OSError: if the export or the reference is missing.
        ValueError: if the export holds no model of molecules, or the output exists.

    Returns:
        The file of molecules.
    """
    parser = CommandParser(
        "sample", description="Sample molecules from a prior or an agent.", epilog=EPILOG
    )
    parser.add_argument(
        "export", metavar="EXPORT", help="folder `export` of a prior or a search, or its run"
    )
    parser.add_argument("--output", metavar="FILE", required=True, help="new .smi or .csv")
    parser.add_argument("--samples", type=positive_int, default=1000, help="by default 1000")
    parser.add_argument("--seed", type=int, default=0, help="seed of the samples; by default 0")
    parser.add_argument(
        "--max_new_tokens", type=positive_int, default=100, help="longest sample; by default 100"
    )
    parser.add_argument("--temperature", type=float, default=1.0, help="by default 1")
    parser.add_argument("--unique", action="store_true", help="write each molecule once")
    parser.add_argument("--reference", metavar="FILE", help="molecules that are not novel")
    parser.add_argument("--overwrite", action="store_true", help="replace --output")
    options = parser.read(words)
    if not 0 < options.temperature < float("inf"):
        parser.error(f"--temperature is {options.temperature}: give a number above 0")
    folder, output = find_export(options.export), Path(options.output)
    refuse_other_kinds(folder, "molecules")
    if options.reference is None:
        reference = training_molecules(folder)
    else:
        known = map(canonical_smiles, molecules_of_file(options.reference, "smiles"))
        reference = frozenset(smiles for smiles in known if smiles is not None)
    write_sampled(folder, output, options, reference)
    return output


def write_sampled(
    folder: Path, output: Path, options: Any, reference: frozenset[str] | None
) -> None:
    """Sample, write the file, and print the table.

    Args:
        folder: Export of a model of molecules.
        output: A new .smi or .csv.
        options: `samples`, `seed`, `max_new_tokens`, `temperature`, `unique`, `overwrite`.
        reference: Canonical SMILES that are not novel; None if they are not known.

    Raises:
        ValueError: if the output is no such file, or exists.
    """
    if output.suffix not in FORMATS:
        raise ValueError(f"--output {output}: molecules are written as {' or '.join(FORMATS)}")
    if output.exists() and not options.overwrite:
        raise ValueError(f"--output {output} exists already: choose another name, or --overwrite")
    samples = sample_molecules(
        folder, options.samples, options.seed, options.max_new_tokens, options.temperature
    )
    kept = _each_once(samples) if options.unique else samples
    output.parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(output) as partial, partial.open("w", newline="", encoding="utf-8") as file:
        if output.suffix == ".smi":
            file.writelines(f"{sample.smiles}\n" for sample in kept if sample.smiles is not None)
        else:
            rows = csv.writer(file)
            rows.writerow(["smiles", "sample", "novel", "log_prob_nats"])
            for sample in kept:
                known = reference is None or sample.smiles is None
                novel = "" if known else int(sample.smiles not in (reference or ()))
                rows.writerow([sample.smiles or "", sample.text, novel, f"{sample.log_prob:.4f}"])
    print_table(samples, reference, output)


def _each_once(samples: Sequence[Sample]) -> list[Sample]:
    """Keep the first sample of each molecule, and all that are none."""
    seen: set[str] = set()
    kept = []
    for sample in samples:
        if sample.smiles is None or sample.smiles not in seen:
            kept.append(sample)
        seen |= {sample.smiles} if sample.smiles is not None else set()
    return kept


def sample_molecules(
    folder: Path, count: int, seed: int, max_new_tokens: int = 100, temperature: float = 1.0
) -> list[Sample]:
    """Sample from an exported model of molecules.

    Args:
        folder: The export.
        count: Number of samples, invalid and repeated ones included.
        seed: Seed of the samples.
        max_new_tokens: Longest sample, end token included. A longer one is cut off, and invalid.
        temperature: Divisor of the logits.
    """
    policy: Any = load_molecule_policy(folder, max_new_tokens)
    start = {"prompt_ids": [policy.tokenizer.bos_token_id], "prompt": ""}
    generator = torch.Generator().manual_seed(seed)
    samples: list[Sample] = []
    while len(samples) < count:
        number = min(_AT_ONCE, count - len(samples))
        made = policy.sample([start], number, generator, temperature)
        whole = zip(made.texts, made.finished_B.tolist(), made.log_prob_B.tolist(), strict=True)
        samples += [
            Sample(text, canonical_smiles(text) if finished else None, log_prob)
            for text, finished, log_prob in whole
        ]
    return samples


def print_table(samples: Sequence[Sample], reference: frozenset[str] | None, output: Path) -> None:
    """Print validity, uniqueness and novelty, as MOSES defines them, to standard error."""
    valid = [sample.smiles for sample in samples if sample.smiles is not None]
    different = set(valid)
    table = Table(
        title=f"{len(samples):,} samples in {output}", title_justify="left", show_header=False
    )
    table.add_row("valid", _share(len(valid), len(samples)))
    table.add_row("different, of the valid", _share(len(different), len(valid)))
    if reference is None:
        table.add_row("novel, of the different", "not known, see --reference")
    else:
        table.add_row("novel, of the different", _share(len(different - reference), len(different)))
    Console(stderr=True, width=None if sys.stderr.isatty() else 120).print(table)


def _share(count: int, total: int) -> str:
    return f"{count / total:.4f} ({count:,} of {total:,})" if total else "none"
