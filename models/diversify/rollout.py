"""Sampled completions of prompts, with their log-probabilities."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

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


def only_texts(texts: Sequence[str]) -> Rollout:
    """Make a rollout for a reward that reads texts only; its tokens stand for nothing."""
    column = torch.zeros(len(texts), 1, dtype=torch.int64)
    return Rollout(
        prompts=[""] * len(texts),
        texts=list(texts),
        group_B=column[:, 0],
        prompt_ids_BP=column,
        prompt_mask_BP=column.bool(),
        token_ids_BT=column,
        token_mask_BT=column.bool(),
        finished_B=column[:, 0].bool(),
        log_prob_B=column[:, 0].float(),
    )


def join_rollouts(parts: Sequence[Rollout]) -> Rollout:
    """Join completions of different calls of `sample`; every part keeps its own groups.

    Groups get new numbers, in the order of the parts: those of the first part stay, and those of
    each next part follow. Prompts are padded on the left, completions on the right, with token 0.
    `reference_log_prob_B` and `token_log_prob_BT` are kept if all parts have them.
    """
    width = max(part.prompt_ids_BP.shape[1] for part in parts)
    length = max(part.token_ids_BT.shape[1] for part in parts)

    def left(column_BP: Tensor) -> Tensor:
        return pad(column_BP, (width - column_BP.shape[1], 0))

    def right(column_BT: Tensor) -> Tensor:
        return pad(column_BT, (0, length - column_BT.shape[1]))

    def all_of(columns: Sequence[Tensor | None]) -> Tensor | None:
        known = [column for column in columns if column is not None]
        return torch.cat(known) if len(known) == len(parts) else None

    groups, first = [], 0
    for part in parts:
        groups.append(part.group_B + first)
        first += int(part.group_B.max()) + 1
    return Rollout(
        prompts=[prompt for part in parts for prompt in part.prompts],
        texts=[text for part in parts for text in part.texts],
        group_B=torch.cat(groups),
        prompt_ids_BP=torch.cat([left(part.prompt_ids_BP) for part in parts]),
        prompt_mask_BP=torch.cat([left(part.prompt_mask_BP) for part in parts]),
        token_ids_BT=torch.cat([right(part.token_ids_BT) for part in parts]),
        token_mask_BT=torch.cat([right(part.token_mask_BT) for part in parts]),
        finished_B=torch.cat([part.finished_B for part in parts]),
        log_prob_B=torch.cat([part.log_prob_B for part in parts]),
        reference_log_prob_B=all_of([part.reference_log_prob_B for part in parts]),
        token_log_prob_BT=all_of(
            [None if p.token_log_prob_BT is None else right(p.token_log_prob_BT) for p in parts]
        ),
        records=[record for part in parts for record in part.records],
    )
