"""Entropy bonus: the mean entropy of the next token is added to the objective.

    loss = policy loss - coefficient * mean over sampled tokens of H(pi(. | tokens before))

The coefficient is constant, or adaptive: it rises by a fixed amount after each optimizer step whose
mean entropy was at or below a target, falls by it after any other, and is applied only where the
step before was at or below the target.

Sources: the static form is that of A3C (1602.01783); the adaptive one is from Skywork-OR1
(2505.22312). Both as in TRL 1.16's GRPOTrainer (`entropy_coef`, `use_adaptive_entropy`), which a
test compares with. Deviation: over several processes and accumulated micro-batches, ours is the
mean over all tokens of the processes; TRL's is the mean of their means.
"""

# Shapes: B completions, T completion positions

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from triptych.objectives.diversify.policy_loss import LossSum


@dataclass(frozen=True)
class EntropyBonus:
    """Settings of the bonus.

    Args:
        coefficient: Of the entropy in the loss; the first one, if it is adaptive.
        adaptive: Whether it follows the entropy.
        target_nats: Entropy of a token at or below which an adaptive bonus acts. TRL's default of
            0.2 is close to a collapse; take about the entropy of the first steps.
        least_coefficient: Lower bound of an adaptive coefficient.
        most_coefficient: Upper bound.
        coefficient_step: Change of an adaptive coefficient after each optimizer step.

    Raises:
        ValueError: on settings that cannot work.
    """

    coefficient: float = 0.0
    adaptive: bool = False
    target_nats: float = 0.2
    least_coefficient: float = 0.0
    most_coefficient: float = 1.0
    coefficient_step: float = 0.005

    def __post_init__(self) -> None:
        if not math.isfinite(self.coefficient) or not (self.adaptive or self.coefficient):
            raise ValueError(
                f"coefficient is {self.coefficient}: set it to a number other than 0, or adaptive "
                "to true, or entropy_bonus to null for none"
            )
        if not self.least_coefficient <= self.most_coefficient:
            raise ValueError(
                f"least_coefficient is {self.least_coefficient} and most_coefficient "
                f"{self.most_coefficient}: the least has to be below the most"
            )
        if not self.coefficient_step > 0:
            raise ValueError(f"coefficient_step is {self.coefficient_step}: set it above 0")


class EntropyControl:
    """The bonus of a training, with the state that an adaptive coefficient needs.

    Args:
        bonus: Its settings.

    Attributes:
        coefficient: The present coefficient.
        last_entropy: Mean entropy of a token in the last optimizer step, in nats; infinite before.
    """

    def __init__(self, bonus: EntropyBonus) -> None:
        self.bonus = bonus
        self.coefficient = bonus.coefficient
        self.last_entropy = math.inf

    @property
    def applied(self) -> float:
        """The coefficient that the loss of this step has."""
        is_idle = self.bonus.adaptive and self.last_entropy > self.bonus.target_nats
        return 0.0 if is_idle else self.coefficient

    def term(self, entropy_BT: Tensor, token_mask_BT: Tensor) -> LossSum:
        """Compute the term to add to the loss, as a sum over tokens and their number.

        Args:
            entropy_BT: Entropy of the distribution of each token, in nats, differentiable.
            token_mask_BT: bool; True marks a sampled token that counts.
        """
        total = entropy_BT.masked_fill(~token_mask_BT, 0.0).sum()
        count = token_mask_BT.sum()
        return LossSum(-self.applied * total, count)

    def end_step(self, mean_entropy: float) -> None:
        """Adapt the coefficient after an optimizer step.

        Args:
            mean_entropy: Mean entropy of all tokens of the step, of all processes, in nats.
        """
        if not self.bonus.adaptive:
            return
        is_low = mean_entropy <= self.bonus.target_nats
        moved = self.coefficient + self.bonus.coefficient_step * (1 if is_low else -1)
        if is_low:
            self.coefficient = min(moved, self.bonus.most_coefficient)
        else:
            self.coefficient = max(moved, self.bonus.least_coefficient)
        self.last_entropy = mean_entropy

    def state_dict(self) -> dict[str, float]:
        """Return what a resumed training needs."""
        return {"coefficient": self.coefficient, "last_entropy": self.last_entropy}

    def load_state_dict(self, state: dict[str, float]) -> None:
        """Restore the state."""
        if self.bonus.adaptive:
            self.coefficient, self.last_entropy = state["coefficient"], state["last_entropy"]


def entropy_sum(entropy_BT: Tensor, token_mask_BT: Tensor) -> tuple[Tensor, Tensor]:
    """Return the sum of the entropies of the tokens that count, detached, and their number."""
    with torch.no_grad():
        return entropy_BT.masked_fill(~token_mask_BT, 0.0).sum(), token_mask_BT.sum()
