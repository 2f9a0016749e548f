"""What a policy has sampled: completions of prompts, and how probable they are."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

# Shapes: B completions, P prompt positions, T completion positions


@dataclass
class Rollout:
    """B completions. Rows of one prompt are neighbours and share a group number.

    Attributes:
        prompts: The prompt's text, one per completion; empty for unconditional policies.
        texts: What was sampled, without special tokens: a reply, a SMILES string.
        group_B: int64; completions with the same number answer the same prompt.
        prompt_ids_BP: int64, left-padded. P is 0 or 1 (a start token) for unconditional policies.
        prompt_mask_BP: bool; True marks a token, False padding.
        token_ids_BT: int64, the sampled tokens, right-padded; the end token, where it was sampled,
            included.
        token_mask_BT: bool; True marks a sampled token. Log-probabilities of a completion are sums
            over exactly these.
        finished_B: bool; True where the end token was sampled, False where the length limit cut.
        log_prob_B: Log-probability of the completion under the policy that sampled it, in nats.
        reference_log_prob_B: The same under the reference policy; None until it was asked for.
        records: The data's row of each completion's prompt (right answers, category, ...).
    """

    prompts: Sequence[str]
    texts: Sequence[str]
    group_B: Tensor
    prompt_ids_BP: Tensor
    prompt_mask_BP: Tensor
    token_ids_BT: Tensor
    token_mask_BT: Tensor
    finished_B: Tensor
    log_prob_B: Tensor
    reference_log_prob_B: Tensor | None = None
    records: Sequence[Mapping[str, Any]] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.texts)

    @property
    def num_tokens(self) -> Tensor:
        """Sampled tokens of each completion, int64 (B,)."""
        return self.token_mask_BT.sum(-1)

    def select(self, rows: Tensor) -> "Rollout":
        """Rows of this rollout, in the order asked for (int64 indices)."""
        where = rows.tolist()
        reference = self.reference_log_prob_B
        return Rollout(
            prompts=[self.prompts[i] for i in where],
            texts=[self.texts[i] for i in where],
            group_B=self.group_B[rows],
            prompt_ids_BP=self.prompt_ids_BP[rows],
            prompt_mask_BP=self.prompt_mask_BP[rows],
            token_ids_BT=self.token_ids_BT[rows],
            token_mask_BT=self.token_mask_BT[rows],
            finished_B=self.finished_B[rows],
            log_prob_B=self.log_prob_B[rows],
            reference_log_prob_B=None if reference is None else reference[rows],
            records=[self.records[i] for i in where] if self.records else [],
        )
