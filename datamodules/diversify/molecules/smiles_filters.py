"""Filters and canonical forms of the molecules that a prior learns from."""

import os
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from multiprocessing import get_context
from typing import Literal

from triptych.datamodules.diversify.molecules.smiles_tokens import split_smiles
from triptych.models.diversify.molecules.molecule import (
    murcko_scaffold,
    read_molecule,
    write_molecule,
)

# Fewer molecules are read in this process: starting others would take longer.
FEWEST_FOR_POOL = 4000
CHUNK = 1000


@dataclass(frozen=True)
class SmilesFilters:
    """Filter of molecules.

    Args:
        keep_stereo: Keep marks of stereochemistry; false: strip them, and keep equal molecules
            once.
        charges: "any"; "neutral_sum" leaves out molecules with a non-zero sum of charges (nitro
            groups stay); "none" leaves out any with a charged atom.
        min_tokens: Minimum number of tokens of the canonical form.
        max_tokens: Maximum number of tokens of the canonical form, without BOS and EOS.
        elements: Symbols of the elements that may occur; null: any.
        keep_mixtures: Whether to keep molecules of several parts ("CC.O").
        keep_isotopes: Keep isotopes; false: all atoms get their natural mass, and equal molecules
            are kept once.

    Atoms of hydrogen that no other atom can carry (`[H][H]`, `[H+]`) are left out as "hydrogen".
    """

    keep_stereo: bool = False
    charges: Literal["any", "neutral_sum", "none"] = "neutral_sum"
    min_tokens: int = 1
    max_tokens: int = 100
    elements: list[str] | None = field(
        default_factory=lambda: ["H", "B", "C", "N", "O", "F", "P", "S", "Cl", "Br", "I"]
    )
    keep_mixtures: bool = False
    keep_isotopes: bool = True

    def __post_init__(self) -> None:
        if not 1 <= self.min_tokens <= self.max_tokens:
            raise ValueError(
                f"filters keep from {self.min_tokens} to {self.max_tokens} tokens: set min_tokens "
                "to at least 1 and max_tokens to no less"
            )


@dataclass(frozen=True)
class Prepared:
    """A prepared SMILES string.

    Args:
        smiles: Canonical form; None if it is no molecule.
        scaffold: Bemis-Murcko scaffold; empty without a ring.
        left_out: Name of the filter that leaves it out, or None.
    """

    smiles: str | None
    scaffold: str = ""
    left_out: str | None = None


def prepare(text: str, filters: SmilesFilters) -> Prepared:
    """Read one SMILES string, write it canonically, and filter it.

    >>> prepare("C[C@H](N)O", SmilesFilters())
    Prepared(smiles='CC(N)O', scaffold='', left_out=None)
    >>> prepare("CC(=O)[O-]", SmilesFilters()).left_out
    'charge'
    """
    molecule = read_molecule(text)
    if molecule is None:
        return Prepared(None)
    smiles = write_molecule(molecule, filters.keep_stereo, filters.keep_isotopes)
    molecule = read_molecule(smiles)
    if molecule is None:  # RDKit cannot read what it wrote
        return Prepared(None)
    charges = [atom.GetFormalCharge() for atom in molecule.GetAtoms()]
    symbols = {atom.GetSymbol() for atom in molecule.GetAtoms()}
    left_out = None
    if "." in smiles and not filters.keep_mixtures:
        left_out = "several parts"
    elif (filters.charges == "none" and any(charges)) or (
        filters.charges == "neutral_sum" and sum(charges)
    ):
        left_out = "charge"
    elif "[H]" in smiles or "[H+]" in smiles or "[H-]" in smiles:
        left_out = "hydrogen"
    elif filters.elements is not None and symbols - set(filters.elements):
        left_out = "elements"
    elif not filters.min_tokens <= len(split_smiles(smiles)) <= filters.max_tokens:
        left_out = "length"
    if left_out is not None:
        return Prepared(smiles, left_out=left_out)
    return Prepared(smiles, murcko_scaffold(molecule))


def prepare_all(
    texts: Sequence[str], filters: SmilesFilters, num_processes: int | None = None
) -> list[Prepared]:
    """Prepare many SMILES strings, in order, in several processes if there are enough.

    Args:
        texts: SMILES strings.
        filters: The filter.
        num_processes: Maximum number of processes; None: the number of cores.
    """
    one = partial(_prepare_chunk, filters=filters)
    chunks = [texts[start : start + CHUNK] for start in range(0, len(texts), CHUNK)]
    num_processes = min(num_processes or os.cpu_count() or 1, len(chunks))
    if len(texts) < FEWEST_FOR_POOL or num_processes < 2:
        return [prepared for chunk in chunks for prepared in one(chunk)]
    # Spawned: forking a process that runs threads may hang.
    with ProcessPoolExecutor(num_processes, mp_context=get_context("spawn")) as pool:
        return [prepared for chunk in pool.map(one, chunks) for prepared in chunk]


def count_left_out(prepared: Sequence[Prepared]) -> dict[str, int]:
    """Count the molecules that each filter left out."""
    return dict(Counter(each.left_out for each in prepared if each.left_out is not None))


def count_words(left_out: dict[str, int]) -> str:
    """Write counts in words, the largest first.

    >>> count_words({"repeats": 3, "charge": 1192})
    'charge 1,192, repeats 3'
    """
    ordered = sorted(left_out.items(), key=lambda item: -item[1])
    return ", ".join(f"{name} {count:,}" for name, count in ordered)


def _prepare_chunk(texts: Sequence[str], filters: SmilesFilters) -> list[Prepared]:
    return [prepare(text, filters) for text in texts]
