"""Training, validation and test molecules: drawn at random, or scaffold by scaffold."""

import random
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from jsonargparse.typing import ClosedUnitInterval, OpenUnitInterval


@dataclass(frozen=True)
class SmilesSplit:
    """Division of molecules into training, validation and test.

    Args:
        by: "random", or "scaffold": no Bemis-Murcko scaffold is in two splits. Scaffolds with more
            molecules than a twentieth of a split are for training; the others are drawn. Molecules
            without a ring count as one scaffold.
        validation_share: Share of the molecules for validation.
        test_share: Share of the molecules for testing.
        seed: Seed of the draws, independent of the seed of training.
    """

    by: Literal["random", "scaffold"] = "random"
    validation_share: OpenUnitInterval = 0.05
    test_share: ClosedUnitInterval = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        shares = self.validation_share, self.test_share
        if sum(shares) >= 1:
            raise ValueError(
                f"split.validation_share is {shares[0]} and split.test_share is {shares[1]}: lower "
                "one, to leave a share to train on"
            )


def split_molecules(
    scaffolds: Sequence[str], split: SmilesSplit
) -> tuple[list[int], list[int], list[int]]:
    """Divide molecules.

    Args:
        scaffolds: Scaffold of each molecule.
        split: The division.

    Returns:
        Indices of the training, validation and test molecules, each ascending.

    Raises:
        ValueError: If no molecule is left to train or to validate on.
    """
    total = len(scaffolds)
    quotas = [round(total * split.validation_share), round(total * split.test_share)]
    groups: defaultdict[int | str, list[int]] = defaultdict(list)
    for index, scaffold in enumerate(scaffolds):
        groups[index if split.by == "random" else scaffold].append(index)
    drawn = sorted(groups.values())
    random.Random(split.seed).shuffle(drawn)
    parts: list[list[int]] = [[], []]
    train = []
    for group in drawn:
        for part, quota in zip(parts, quotas, strict=True):
            fits = len(part) + len(group) <= quota
            if fits and (len(group) == 1 or len(group) <= quota / 20):
                part += group
                break
        else:
            train += group
    if not train or not parts[0]:
        raise ValueError(
            f"{total} molecules of {len(set(scaffolds))} scaffolds leave {len(train)} to train and "
            f"{len(parts[0])} to validate on: give more molecules, a larger "
            "split.validation_share, or set split.by to random"
        )
    return sorted(train), sorted(parts[0]), sorted(parts[1])
