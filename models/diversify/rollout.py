"""Sampled completions of prompts, with their log-probabilities."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

# Shapes: B completions, P prompt positions, T completion positions


@dataclass
class Rollout:
    """B completions. Rows of a prompt are adjacent and share a group number.

    Attributes:
        prompts: Text of each completion's prompt; empty for unconditional policies.
        texts: Sampled texts without special tokens: replies or SMILES strings.
        group_B: int64; completions with the same number answer the same prompt.
        prompt_ids_BP: int64, left-padded. P is 0 or 1 (a start token) for unconditional policies.
        prompt_mask_BP: bool; True marks a token, False padding.
        token_ids_BT: int64, the sampled tokens, right-padded; includes the end token, if sampled.
        token_mask_BT: bool; True marks a sampled token. A completion's log-probability is the sum
            over these tokens.
        finished_B: bool; True if the end token was sampled, False if the length limit was reached.
        log_prob_B: Log-probability of the completion under the policy that sampled it, in nats.
        reference_log_prob_B: The same under the reference policy; None until computed.
        token_log_prob_BT: Log-probability of every token as it was sampled, in nats, 0 elsewhere;
            None if only that of the completion is known.
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
    token_log_prob_BT: Tensor | None = None
    records: Sequence[Mapping[str, Any]] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.texts)

    @property
    def num_tokens(self) -> Tensor:
        """Sampled tokens of each completion, int64 (B,)."""
        return self.token_mask_BT.sum(-1)

    def select(self, rows: Tensor) -> "Rollout":
        """Return the given rows (int64 indices), in the given order."""
        where = rows.tolist()
        reference, tokens = self.reference_log_prob_B, self.token_log_prob_BT
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
            token_log_prob_BT=None if tokens is None else tokens[rows],
            records=[self.records[i] for i in where] if self.records else [],
        )
