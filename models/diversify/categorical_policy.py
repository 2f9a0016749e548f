"""A tabular policy: one distribution over K answers per prompt."""

# Shapes: B completions, N prompts, K answers; a completion is T = 1 token, the answer's number

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from triptych.models.diversify.policy import Policy
from triptych.models.diversify.rollout import Rollout


class CategoricalPolicy(Policy):
    """Independent logits for every prompt and answer, few enough to be enumerated.

    The policy starts at its reference. It is for demonstrations and tests, where the optimum of an
    objective is known in closed form.

    Args:
        answers: The K texts that it can sample.
        reference: Probability of each answer under the reference, above 0; one row of K per prompt.
            Rows are normalised.
        prompts: Text of each prompt, as in `prompt` of the data's rows. A single prompt stands for
            every row.

    Raises:
        ValueError: if the numbers of answers, prompts and probabilities do not fit, or a
            probability is not above 0.

    Attributes:
        logits_NK: The trained parameter.
    """

    reference_log_prob_NK: Tensor

    def __init__(
        self,
        answers: Sequence[str],
        reference: Sequence[Sequence[float]],
        prompts: Sequence[str] = ("",),
    ) -> None:
        super().__init__()
        if len(reference) != len(prompts) or any(len(row) != len(answers) for row in reference):
            raise ValueError(
                f"reference has rows of {[len(row) for row in reference]} probabilities: give one "
                f"row for each of the {len(prompts)} prompts, with {len(answers)} each"
            )
        table_NK = torch.tensor(reference, dtype=torch.float32)
        if not (table_NK > 0).all():
            raise ValueError(
                "reference has a probability that is not above 0, which samples cannot reach"
            )
        self.answers = list(answers)
        self.prompts = list(prompts)
        self._row_of = {text: row for row, text in enumerate(self.prompts)}
        if len(self._row_of) != len(self.prompts):
            raise ValueError("two prompts have the same text: give each a different one")
        log_prob_NK = table_NK.log().log_softmax(-1)
        self.register_buffer("reference_log_prob_NK", log_prob_NK)
        self.logits_NK = nn.Parameter(log_prob_NK.clone())

    @torch.no_grad()
    def sample(
        self,
        prompts: Sequence[Mapping[str, Any]],
        num_samples: int,
        generator: torch.Generator | None = None,
    ) -> Rollout:
        """Draw answers from the distribution of each row's `prompt`."""
        return self._draw(self.logits_NK.log_softmax(-1), prompts, num_samples, generator)

    @torch.no_grad()
    def reference_sample(
        self,
        prompts: Sequence[Mapping[str, Any]],
        num_samples: int,
        generator: torch.Generator | None = None,
    ) -> Rollout:
        """Draw answers from the reference."""
        return self._draw(self.reference_log_prob_NK, prompts, num_samples, generator)

    def _draw(
        self,
        log_prob_NK: Tensor,
        prompts: Sequence[Mapping[str, Any]],
        num_samples: int,
        generator: torch.Generator | None,
    ) -> Rollout:
        texts = [str(record.get("prompt", "")) for record in prompts]
        row_N = torch.tensor(
            [self._row(text) for text in texts], device=self.logits_NK.device, dtype=torch.int64
        )
        log_prob_NK = log_prob_NK[row_N]
        answer_NS = torch.multinomial(
            log_prob_NK.exp(), num_samples, replacement=True, generator=generator
        )
        token_ids_BT = answer_NS.reshape(-1, 1)
        ones_BT = torch.ones_like(token_ids_BT, dtype=torch.bool)
        group_B = torch.arange(len(prompts), device=row_N.device).repeat_interleave(num_samples)
        return Rollout(
            prompts=[texts[i] for i in group_B.tolist()],
            texts=[self.answers[k] for k in token_ids_BT[:, 0].tolist()],
            group_B=group_B,
            prompt_ids_BP=row_N[group_B, None],
            prompt_mask_BP=ones_BT,
            token_ids_BT=token_ids_BT,
            token_mask_BT=ones_BT.clone(),
            finished_B=ones_BT[:, 0].clone(),
            log_prob_B=log_prob_NK.gather(1, answer_NS).reshape(-1),
            records=[prompts[i] for i in group_B.tolist()],
        )

    def token_log_prob(self, rollout: Rollout) -> Tensor:
        """Return the log-probability of each answer, (B, 1)."""
        return self._gather(self.logits_NK.log_softmax(-1), rollout)

    def token_log_prob_and_entropy(self, rollout: Rollout) -> tuple[Tensor, Tensor]:
        """Return the log-probability of each answer and the entropy over all K, each (B, 1)."""
        log_prob_NK = self.logits_NK.log_softmax(-1)
        entropy_N = -(log_prob_NK.exp() * log_prob_NK).sum(-1)
        entropy_B1 = entropy_N[rollout.prompt_ids_BP[:, :1]].masked_fill(
            ~rollout.token_mask_BT, 0.0
        )
        return self._gather(log_prob_NK, rollout), entropy_B1

    def reference_token_log_prob(self, rollout: Rollout) -> Tensor:
        """Return the log-probability of each answer under the reference, (B, 1)."""
        return self._gather(self.reference_log_prob_NK, rollout)

    def _gather(self, log_prob_NK: Tensor, rollout: Rollout) -> Tensor:
        log_prob_BK = log_prob_NK[rollout.prompt_ids_BP[:, 0]]
        token_log_prob_BT = log_prob_BK.gather(1, rollout.token_ids_BT)
        return token_log_prob_BT.masked_fill(~rollout.token_mask_BT, 0.0)

    def _row(self, prompt: str) -> int:
        if len(self.prompts) == 1:
            return 0
        if prompt not in self._row_of:
            raise ValueError(
                f"prompt {prompt!r} is none of this policy's {len(self.prompts)} prompts"
            )
        return self._row_of[prompt]
