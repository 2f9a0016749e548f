"""Random network distillation: a bonus for good molecules unlike earlier ones.

A fixed random network maps a molecule's fingerprint to a few numbers. A second network learns to
predict them from the good molecules found so far. A large error indicates a new molecule (Burda et
al. 2018, 1810.12894; for molecules Svensson et al. 2024, "Diversity-aware reinforcement learning
for de novo drug design"). The bonus of a good molecule is

    weight * min(1, error / error of the first good molecules)
"""

# Shapes: B completions, K good molecules, W bits of a fingerprint, F features

import copy
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from triptych.models.diversify.molecules.molecule import read_molecule


class RandomDistillation:
    """A bonus for good molecules that the predictor has not learned yet.

    It replaces a diversity filter: it is applied before MARA, and to replayed molecules too.

    Args:
        weight: Largest bonus, on the reward's scale.
        min_score: Molecules with a lower reward get no bonus and are not learned.
        learning_rate: Learning rate of the predictor, which takes one step of Adam per batch.
        width: Width of the hidden layer of both networks.
        num_features: F.
        num_bits: W, of Morgan fingerprints of radius 2.
        seed: Seed of both networks.

    Raises:
        ValueError: if a number is out of range.

    Deviation: the papers' networks read token sequences or images; fingerprints are ours.
    """

    one_process = "keeps one memory"

    def __init__(
        self,
        weight: float = 0.25,
        min_score: float = 0.4,
        learning_rate: float = 1e-3,
        width: int = 128,
        num_features: int = 32,
        num_bits: int = 1024,
        seed: int = 0,
    ) -> None:
        if not weight > 0 or not learning_rate > 0 or min(width, num_features, num_bits) < 1:
            raise ValueError(
                f"random distillation has weight {weight}, learning_rate {learning_rate}, width "
                f"{width}, num_features {num_features} and num_bits {num_bits}: set all above 0"
            )
        self.weight = weight
        self.min_score = min_score
        self.num_bits = num_bits
        generator = torch.Generator().manual_seed(seed)
        sizes = (num_bits, width, num_features)
        self._target = _network(sizes, generator).requires_grad_(False)
        self._predictor = _network(sizes, generator)
        self._optimizer = torch.optim.Adam(self._predictor.parameters(), learning_rate)
        # Mean error of the first good molecules, as the scale of a new one.
        self._first_error: float | None = None

    def penalised(self, smiles: Sequence[str], reward_B: Tensor) -> Tensor:
        """Return rewards with their bonus, then learn the good molecules.

        Args:
            smiles: SMILES strings, valid or not.
            reward_B: Rewards; nan stays nan.
        """
        bits: dict[int, Tensor] = {}
        for row, reward in enumerate(reward_B.tolist()):
            bits_W = self._bits(smiles[row]) if reward >= self.min_score else None
            if bits_W is not None:
                bits[row] = bits_W
        if not bits:
            return reward_B
        rows, bits_KW = list(bits), torch.stack(list(bits.values()))
        error_K = self._errors(bits_KW)
        if self._first_error is None:
            self._first_error = float(error_K.detach().mean())
        found_B = reward_B.clone()
        found_B[rows] += self._bonus(error_K.detach()).to(found_B)
        self._optimizer.zero_grad()
        with torch.enable_grad():
            self._errors(bits_KW).mean().backward()
        self._optimizer.step()
        return found_B

    def factor(self, smiles: str, reward: float) -> float:
        """Return the bonus as a current factor of a molecule's reward, without learning it."""
        bits_W = self._bits(smiles) if reward >= self.min_score else None
        if bits_W is None or self._first_error is None or reward <= 0:
            return 1.0
        return 1 + float(self._bonus(self._errors(bits_W[None]).detach())[0]) / reward

    def state_dict(self) -> dict[str, Any]:
        """Return both networks and the predictor's optimizer."""
        return {
            "target": self._target.state_dict(),
            "predictor": self._predictor.state_dict(),
            "optimizer": self._optimizer.state_dict(),
            "first_error": self._first_error,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore networks and optimizer."""
        self._target.load_state_dict(state["target"])
        self._predictor.load_state_dict(state["predictor"])
        # A copy, since the optimizer writes into the given tensors.
        self._optimizer.load_state_dict(copy.deepcopy(state["optimizer"]))
        self._first_error = state["first_error"]

    def _errors(self, bits_KW: Tensor) -> Tensor:
        difference_KF: Tensor = self._predictor(bits_KW) - self._target(bits_KW)
        return difference_KF.square().mean(1)

    def _bonus(self, error_K: Tensor) -> Tensor:
        assert self._first_error is not None
        return self.weight * (error_K / max(self._first_error, 1e-12)).clamp_max(1.0)

    def _bits(self, smiles: str) -> Tensor | None:
        from rdkit.Chem import rdFingerprintGenerator

        molecule = read_molecule(smiles)
        if molecule is None:
            return None
        generator = rdFingerprintGenerator.GetMorganGenerator(2, fpSize=self.num_bits)
        bits: np.ndarray = generator.GetFingerprintAsNumPy(molecule)
        return torch.from_numpy(bits.astype(np.float32))


def _network(sizes: tuple[int, int, int], generator: torch.Generator) -> nn.Sequential:
    """Build two layers with weights drawn by the generator."""
    layers = [nn.Linear(sizes[0], sizes[1]), nn.Linear(sizes[1], sizes[2])]
    with torch.no_grad():
        for layer in layers:
            layer.weight.normal_(0, (2 / layer.in_features) ** 0.5, generator=generator)
            layer.bias.zero_()
    return nn.Sequential(layers[0], nn.ReLU(), layers[1])
