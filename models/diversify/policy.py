"""The seam between what is trained and how: anything that samples and scores is a `Policy`."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from triptych.models.diversify.rollout import Rollout

# Shapes: B completions, T completion positions


class Policy(nn.Module, ABC):
    """Samples completions and says how probable they are, under itself and under its reference.

    The reference is the policy as it was when training began: frozen, never in `parameters()` that
    require a gradient. Sampling is at temperature 1 from the exact distribution that
    `token_log_prob` scores, so on-policy estimators are unbiased.
    """

    @abstractmethod
    def sample(
        self,
        prompts: Sequence[Mapping[str, Any]],
        num_samples: int,
        generator: torch.Generator | None = None,
    ) -> Rollout:
        """Sample completions of each prompt; no gradient.

        Args:
            prompts: The data's rows, as the policy's family reads them: `prompt_ids` (a list of
                token ids) and `prompt` (its text). An unconditional policy ignores all but their
                number.
            num_samples: Completions of each prompt, which become one group.
            generator: Source of randomness; None takes torch's.
        """

    @abstractmethod
    def token_log_prob(self, rollout: Rollout) -> Tensor:
        """Log-probability of every sampled token, (B, T) in nats, at least float32, differentiable.

        Entries where `token_mask_BT` is False are 0.
        """

    @abstractmethod
    def reference_token_log_prob(self, rollout: Rollout) -> Tensor:
        """The same under the reference policy, without gradient."""

    def log_prob(self, rollout: Rollout) -> Tensor:
        """Log-probability of every completion, (B,), differentiable."""
        return self.token_log_prob(rollout).sum(-1)

    @torch.no_grad()
    def reference_log_prob(self, rollout: Rollout) -> Tensor:
        """Log-probability of every completion under the reference, (B,)."""
        return self.reference_token_log_prob(rollout).sum(-1)
