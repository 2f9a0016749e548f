"""Training, validation and test molecules: drawn at random, or scaffold by scaffold."""

import random
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class SmilesSplit:
    """How molecules are divided.

    Args:
        by: "random", or "scaffold": molecules of one Bemis-Murcko scaffold stay together, so that
            no scaffold is in two splits. Scaffolds with more molecules than a twentieth of a split
            train; the others are drawn. Molecules without a ring are one scaffold.
        validation_share: Share of the molecules for validation, above 0.
        test_share: Share of the molecules that are put by.
        seed: Of the draws, apart from the seed of training.
    """

    by: Literal["random", "scaffold"] = "random"
    validation_share: float = 0.05
    test_share: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        shares = self.validation_share, self.test_share
        if not 0 < shares[0] < 1 or not 0 <= shares[1] < 1 or sum(shares) >= 1:
            raise ValueError(
                f"split.validation_share is {shares[0]} and split.test_share is {shares[1]}: set "
                "the first above 0, none below it, and leave a share to train on"
            )


def split_molecules(
    scaffolds: Sequence[str], split: SmilesSplit
) -> tuple[list[int], list[int], list[int]]:
    """Divide molecules.

    Args:
        scaffolds: Scaffold of each molecule.
        split: How.

    Returns:
        Indices that train, validate and test, each ascending.

    Raises:
        ValueError: If no molecule is left to train or to validate on.
    """
    total = len(scaffolds)
    quotas = [round(total * split.validation_share), round(total * split.test_share)]
    groups = defaultdict(list)
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
