"""The power of leakage probes: what they find of a leak of known size at the same sample and width.

A probe at chance proves something only if it would have found a leak. So labels that have nothing
to do with the messages are planted into the very messages that are probed, and read back. The size
of the leak is the accuracy of an oracle that knows where it is. A probe that finds less than half
of the way from chance to the oracle is blind here.

    means     each class moves the messages in a direction of its own: a linear leak
    product   classes are angles between two numbers whose signs are drawn: no class has a mean of
              its own, so no linear probe finds it
"""

import math
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from triptych.metrics.commune.leakage_probe import FAMILIES, ProbeFamily, family_accuracies

# Shapes: N samples to fit on, B held-out samples, M both, R numbers of a message, C classes

Leak = Literal["means", "product"]
LEAKS: tuple[Leak, ...] = get_args(Leak)
# What the oracle reads, as a share of the way from chance to certainty.
LEAK_SIZES: dict[Leak, float] = {"means": 0.15, "product": 0.6}


@dataclass(frozen=True)
class ProbePower:
    """What probes find of planted leaks.

    Attributes:
        chance: Accuracy of a guess.
        oracle: For each leak the accuracy of an oracle that knows where it is.
        found: For each leak the accuracy of each family.
        num_held_out: Messages that the accuracies are measured on.
    """

    chance: float
    oracle: dict[Leak, float]
    found: dict[Leak, dict[ProbeFamily, float]]
    num_held_out: int

    def sees(self, leak: Leak, family: ProbeFamily | None = None) -> bool:
        """Tell whether a family, or any of them, finds half of a leak and more than noise."""
        found = self.found[leak]
        accuracy = max(found.values()) if family is None else found[family]
        noise = 3 * math.sqrt(self.chance * (1 - self.chance) / self.num_held_out)
        return accuracy - self.chance >= max(noise, 0.5 * (self.oracle[leak] - self.chance))

    def describe(self) -> str:
        """Say what the probes see and where they are blind.

        >>> power = ProbePower(0.2, {"means": 0.32, "product": 0.68},
        ...     {"means": {"linear": 0.3}, "product": {"linear": 0.21}}, 2000)
        >>> power.describe()
        'means: .320 planted, .300 found (linear); product: .680 planted, blind here (.210)'
        """
        parts = []
        for leak, found in self.found.items():
            family, accuracy = max(found.items(), key=lambda item: item[1])
            read, planted = f"{accuracy:.3f}"[1:], f"{self.oracle[leak]:.3f}"[1:]
            seen = f"{read} found ({family})" if self.sees(leak) else f"blind here ({read})"
            parts.append(f"{leak}: {planted} planted, {seen}")
        return "; ".join(parts)


def probe_power(
    message_NR: Tensor, held_out_BR: Tensor, num_classes: int, seed: int = 0
) -> ProbePower:
    """Plant leaks into messages and read them back with every family.

    Args:
        message_NR: The messages that the probes are fit on.
        held_out_BR: The messages that they are scored on.
        num_classes: Number of classes of the probed label.
        seed: Seed of the planted labels and directions, and of the probes.

    Raises:
        ValueError: if there are no messages to fit or to score on.
    """
    num_fit, num_held_out = len(message_NR), len(held_out_BR)
    if not num_fit or not num_held_out:
        raise ValueError("a probe needs messages to fit on and others to be scored on")
    generator = torch.Generator().manual_seed(seed)
    message_MR = torch.cat([message_NR, held_out_BR]).cpu().double()
    scale_R = message_MR.std(0, correction=0)
    is_moving_R = scale_R > 1e-6 * (1 + message_MR.mean(0).abs())
    scores_MR = ((message_MR - message_MR.mean(0)) / scale_R)[:, is_moving_R]
    if scores_MR.shape[1] < 2:  # a leak needs room; the control then has two numbers of noise
        noise = torch.randn(len(message_MR), 2, generator=generator, dtype=torch.float64)
        scores_MR = torch.cat([scores_MR, noise], 1)
    label_M = torch.randint(num_classes, (len(scores_MR),), generator=generator)
    chance = 1 / num_classes
    oracle: dict[Leak, float] = {}
    found: dict[Leak, dict[ProbeFamily, float]] = {}
    for leak in LEAKS:
        wanted = chance + LEAK_SIZES[leak] * (1 - chance)
        planted_MR, oracle[leak] = plant(scores_MR, label_M, num_classes, leak, wanted, generator)
        planted_MR = planted_MR.float().to(message_NR.device)
        labels = label_M.to(message_NR.device)
        found[leak] = family_accuracies(
            planted_MR[:num_fit],
            labels[:num_fit],
            planted_MR[num_fit:],
            labels[num_fit:],
            num_classes,
            seed,
        )
    return ProbePower(chance, oracle, found, num_held_out)


def plant(
    scores_MR: Tensor,
    label_M: Tensor,
    num_classes: int,
    leak: Leak,
    wanted: float,
    generator: torch.Generator,
) -> tuple[Tensor, float]:
    """Plant a label into z-scored messages so that an oracle reads it with an accuracy.

    Args:
        scores_MR: Messages, float64.
        label_M: int64; labels that do not depend on them.
        num_classes: Number of classes.
        leak: Kind of leak.
        wanted: The oracle's accuracy.
        generator: Source of randomness.

    Returns:
        The messages with the leak, and the accuracy that the oracle reaches.
    """
    num_directions = min(scores_MR.shape[1], num_classes if leak == "means" else 2)
    drawn = torch.randn(
        scores_MR.shape[1], num_directions, generator=generator, dtype=torch.float64
    )
    basis_RD = torch.linalg.qr(drawn).Q
    draw = _means if leak == "means" else _angles
    noise = torch.randn(len(scores_MR), 3, generator=generator, dtype=torch.float64)
    low, high = (0.0, 16.0) if leak == "means" else (8.0, 0.0)  # from no leak to a plain one
    for _ in range(30):
        size = (low + high) / 2
        planted_MR, accuracy = draw(scores_MR, label_M, num_classes, basis_RD, size, noise)
        low, high = (size, high) if accuracy < wanted else (low, size)
    return planted_MR, accuracy


def _means(
    scores_MR: Tensor,
    label_M: Tensor,
    num_classes: int,
    basis_RD: Tensor,
    size: float,
    noise_M3: Tensor,
) -> tuple[Tensor, float]:
    """Move each class along a direction; the oracle knows the directions and the covariance."""
    inside_MD = scores_MR @ basis_RD
    covariance_DD = inside_MD.mT @ inside_MD / len(inside_MD)
    scale_D = covariance_DD.diagonal().clamp_min(1e-12).sqrt()
    corners_CD = torch.eye(num_classes, basis_RD.shape[1], dtype=torch.float64)
    if num_classes > basis_RD.shape[1]:  # too few directions: classes are points on a line
        corners_CD = torch.linspace(-1, 1, num_classes, dtype=torch.float64)[:, None] * (
            torch.ones(1, basis_RD.shape[1], dtype=torch.float64)
        )
    means_CD = size * scale_D * corners_CD
    planted_MR = scores_MR + means_CD[label_M] @ basis_RD.mT
    regular_DD = covariance_DD + 1e-9 * torch.eye(len(scale_D), dtype=torch.float64)
    weights_DC = torch.linalg.solve(regular_DD, means_CD.mT)
    score_MC = (planted_MR @ basis_RD) @ weights_DC - 0.5 * (means_CD * weights_DC.mT).sum(1)
    return planted_MR, float((score_MC.argmax(1) == label_M).double().mean())


def _angles(
    scores_MR: Tensor,
    label_M: Tensor,
    num_classes: int,
    basis_RD: Tensor,
    size: float,
    noise_M3: Tensor,
) -> tuple[Tensor, float]:
    """Replace two directions by a point at the class's angle, with a drawn sign, and noise."""
    angle_M = math.pi * (label_M + 0.5) / num_classes
    sign_M = noise_M3[:, 2].sign()
    point_M2 = 1.5 * sign_M[:, None] * torch.stack([angle_M.cos(), angle_M.sin()], 1)
    point_M2 = point_M2 + size * noise_M3[:, :2]
    inside_MR = (scores_MR @ basis_RD) @ basis_RD.mT
    # The spread of the messages in these directions stays as it was.
    spread = (scores_MR @ basis_RD).std().clamp_min(1e-6) / point_M2.std()
    planted_MR = scores_MR - inside_MR + spread * point_M2 @ basis_RD.mT
    read_M = torch.atan2(point_M2[:, 1], point_M2[:, 0]).remainder(math.pi)
    found_M = (read_M * num_classes / math.pi).long().clamp_max(num_classes - 1)
    return planted_MR, float((found_M == label_M).double().mean())


def mean_accuracies(
    found: list[dict[ProbeFamily, float]],
) -> dict[ProbeFamily, float]:
    """Average the accuracies of families over several probes.

    >>> mean_accuracies([{"linear": 0.2}, {"linear": 0.4}])["linear"]
    0.30000000000000004
    """
    families = [family for family in FAMILIES if all(family in one for one in found)]
    return {family: sum(one[family] for one in found) / len(found) for family in families}
