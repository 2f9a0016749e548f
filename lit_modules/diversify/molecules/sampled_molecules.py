"""Metrics of the molecules that a prior samples in validation."""

from collections.abc import Sequence
from typing import Any

import torch
from torchmetrics import Metric

from triptych.metrics.diversify.molecules.internal_diversity import InternalDiversity
from triptych.metrics.diversify.molecules.validity import NovelMolecules, Uniqueness, Validity
from triptych.models.diversify.molecules.molecule import canonical_smiles
from triptych.models.diversify.rollout import Rollout


class SampledMolecules:
    """Validity, uniqueness, novelty and internal diversity (MOSES) of samples, over all ranks.

    Uniqueness is the share of distinct among valid molecules. Novelty is the share of distinct
    molecules that are not in the training data.

    Args:
        reference: Canonical SMILES of the training molecules.
        device: Device of the metrics' states, on which ranks can reduce.
    """

    def __init__(self, reference: Sequence[str], device: torch.device) -> None:
        self._reference = frozenset(reference)
        self.metrics: dict[str, Metric] = {
            "validity": Validity(),
            "uniqueness": Uniqueness(),
            "novelty": NovelMolecules(reference, is_canonical=True),
            "int_div1": InternalDiversity(),
        }
        for metric in self.metrics.values():
            metric.to(device)

    def reset(self) -> None:
        """Start a validation."""
        for metric in self.metrics.values():
            metric.reset()

    def add(self, rollout: Rollout) -> None:
        """Count samples; one without an end token is invalid, whatever its text."""
        texts = [
            text if finished else ""
            for text, finished in zip(rollout.texts, rollout.finished_B.tolist(), strict=True)
        ]
        for metric in self.metrics.values():
            metric.update(texts)

    def compute(self) -> dict[str, float]:
        """Return the four metrics, without those that are undefined because nothing is valid."""
        values = {name: float(metric.compute()) for name, metric in self.metrics.items()}
        return {name: value for name, value in values.items() if value == value}

    def rows(self, rollout: Rollout, count: int) -> list[dict[str, Any]]:
        """Return rows for the table of samples."""
        made = []
        for row in range(min(count, len(rollout))):
            canonical = canonical_smiles(rollout.texts[row]) if rollout.finished_B[row] else None
            made.append(
                {
                    "sample": rollout.texts[row],
                    "valid": canonical is not None,
                    "in_training_data": canonical in self._reference,
                    "log_prob_nats": round(float(rollout.log_prob_B[row]), 3),
                }
            )
        return made
