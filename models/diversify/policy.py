"""The interface between policies and their optimization: sampling and scoring."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from triptych.models.diversify.rollout import Rollout

# Shapes: B completions, T completion positions


class Policy(nn.Module, ABC):
    """Samples completions and computes their probability under itself and its reference.

    The reference is a frozen copy of the initial policy. It has no parameters that require a
    gradient. Samples at temperature 1 have exactly the distribution that `token_log_prob` scores,
    so on-policy estimators are unbiased. In half precision both are rounded differently; `sample`
    keeps its own numbers in `Rollout.token_log_prob_BT`, for importance weights.
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
            prompts: The data's rows, with `prompt_ids` (a list of token ids) and `prompt` (its
                text). An unconditional policy uses only their number.
            num_samples: Completions per prompt, which form a group.
            generator: Source of randomness; None: torch's.
        """

    @abstractmethod
    def token_log_prob(self, rollout: Rollout) -> Tensor:
        """Compute the log-probability of every sampled token.

        The result is (B, T) in nats, at least float32, differentiable. Entries where
        `token_mask_BT` is False are 0.
        """

    @abstractmethod
    def reference_token_log_prob(self, rollout: Rollout) -> Tensor:
        """Compute `token_log_prob` under the reference policy, without gradient."""

    def token_log_prob_and_entropy(self, rollout: Rollout) -> tuple[Tensor, Tensor]:
        """Compute `token_log_prob` and the entropy of each distribution that a token comes from.

        Both are (B, T) in nats, differentiable, 0 where `token_mask_BT` is False. The entropy is
        that over all tokens that could have followed.

        Raises:
            ValueError: if the policy has no such method; only an entropy bonus needs it.
        """
        raise ValueError(
            f"{type(self).__name__} does not compute entropies: give it the method "
            "token_log_prob_and_entropy, or set model.init_args.entropy_bonus to null"
        )

    def reference_sample(
        self,
        prompts: Sequence[Mapping[str, Any]],
        num_samples: int,
        generator: torch.Generator | None = None,
    ) -> Rollout:
        """Sample completions from the reference; arguments as `sample`.

        Raises:
            ValueError: if the policy has no such method; only a rehearsal needs it.
        """
        raise ValueError(
            f"{type(self).__name__} does not sample from its reference: give it the method "
            "reference_sample, or set model.init_args.rehearsal to null"
        )

    def log_prob(self, rollout: Rollout) -> Tensor:
        """Compute the log-probability of every completion, (B,), differentiable."""
        return self.token_log_prob(rollout).sum(-1)

    @torch.no_grad()
    def reference_log_prob(self, rollout: Rollout) -> Tensor:
        """Compute the log-probability of every completion under the reference, (B,)."""
        return self.reference_token_log_prob(rollout).sum(-1)
