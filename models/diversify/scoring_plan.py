"""Which rows, prompts and tokens of a batch of completions are read together, and when."""

# Shapes: B completions, G different prompts, P prompt positions, T completion positions; R rows of
# a pass, S positions of a pass, N sampled tokens that a pass predicts

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from triptych.models.host_to_device import send_indices

#: A pass takes rows of at least this length, as a share of its longest row.
SHORTEST_IN_PASS = 0.75
#: Prompts are read once for all their completions if this saves at least this share of the tokens.
WORTH_SHARING = 0.15


class Pass(NamedTuple):
    """One forward pass of the model over R rows, padded to S positions.

    Attributes:
        index_RS: Place of every token in the flattened (B, P + T) of prompts and completions.
        length_R: Tokens of each row; the rest is padding, which repeats a token.
        pick_N: Positions that predict a sampled token, in the flattened (R, S).
        place_N: Places of these sampled tokens in the flattened (B, T).
        prompt_R: Row of each row's prompt in the part's pass over prompts; None: the row contains
            its prompt, or is one.
        start_R: Tokens before the row, those of its prompt; None likewise.
    """

    index_RS: Tensor
    length_R: Tensor
    pick_N: Tensor
    place_N: Tensor
    prompt_R: Tensor | None = None
    start_R: Tensor | None = None


@dataclass(frozen=True)
class Part:
    """Rows whose graph is in memory at once.

    Attributes:
        prompts: The pass over the part's prompts, each once; None: rows contain their prompts.
        passes: The passes over rows.
        num_tokens: Tokens of all passes, padding included.
    """

    prompts: Pass | None
    passes: tuple[Pass, ...]
    num_tokens: int


def plan_scoring(
    prompt_ids_BP: Tensor,
    prompt_mask_BP: Tensor,
    token_mask_BT: Tensor,
    can_share: bool,
    budget: int | None = None,
) -> list[Part]:
    """Divide a batch into parts, and each part into passes of rows of similar length.

    The host reads prompts and lengths once, and all indices go to the device in one copy.

    Args:
        prompt_ids_BP: int64, left-padded.
        prompt_mask_BP: bool; True marks a token.
        token_mask_BT: bool; True marks a sampled token; those of a row come first.
        can_share: Whether a prompt may be read once for all its completions. A part does so if it
            saves enough.
        budget: Largest number of tokens of a part, padding included; None: one part. Rows of one
            prompt are together where they fit; a row that alone exceeds the budget is a part.
    """
    host = _Host(prompt_ids_BP, prompt_mask_BP, token_mask_BT, can_share)
    rows_of_parts = host.parts(budget)
    planned = [host.plan(rows) for rows in rows_of_parts]
    arrays = [array for prompts, later in planned for one in (*prompts, *later) for array in one]
    sent = iter(send_indices(arrays, token_mask_BT.device))
    made = []
    for rows, (prompts, later) in zip(rows_of_parts, planned, strict=True):
        first = [Pass(*itertools.islice(sent, len(one))) for one in prompts]
        rest = tuple(Pass(*itertools.islice(sent, len(one))) for one in later)
        made.append(Part(first[0] if first else None, rest, host.cost(rows)))
    return made


Rows = NDArray[np.int64]
_HostPass = tuple[Rows, ...]  # the arrays of a `Pass`


class _Host:
    """Prompts and lengths of a batch on the host, and the arithmetic of indices."""

    def __init__(
        self,
        prompt_ids_BP: Tensor,
        prompt_mask_BP: Tensor,
        token_mask_BT: Tensor,
        can_share: bool,
    ) -> None:
        marked_BP = torch.where(prompt_mask_BP, prompt_ids_BP, -1)
        num_tokens_B1 = token_mask_BT.sum(1, keepdim=True)
        read = torch.cat([marked_BP, num_tokens_B1], 1).cpu().numpy()
        marked, self.num_tokens_B = read[:, :-1], read[:, -1]
        self.width, self.length = prompt_ids_BP.shape[1], token_mask_BT.shape[1]
        self.prompt_length_B = (marked >= 0).sum(1)
        self.can_share = can_share
        self.prompt_of_B: Rows = np.unique(marked, axis=0, return_inverse=True)[1].reshape(-1)

    # -- parts ------------------------------------------------------------------------------------

    def parts(self, budget: int | None) -> list[Rows]:
        """Divide the rows by the budget, with those of a prompt next to each other."""
        everyone = np.arange(len(self.prompt_of_B))
        if budget is None or self.cost(everyone) <= budget:
            return [everyone]
        groups: dict[int, list[int]] = {}
        for row, prompt in enumerate(self.prompt_of_B.tolist()):
            groups.setdefault(prompt, []).append(row)
        parts: list[list[int]] = [[]]
        for group in groups.values():
            together = [group] if self.cost(group) <= budget else [[row] for row in group]
            for rows in together:
                if parts[-1] and self.cost(parts[-1] + rows) > budget:
                    parts.append([])
                parts[-1] += rows
        return [np.array(rows) for rows in parts]

    def cost(self, rows: Sequence[int] | Rows) -> int:
        """Count the tokens that a part of these rows reads, padding included."""
        rows = np.asarray(rows)
        if self.shares(rows):
            prompts = np.unique(self.prompt_of_B[rows])
            read = len(prompts) * int(self.prompt_length_B[rows].max())
            length_R = self.num_tokens_B[rows] - 1
        else:
            read, length_R = 0, self.prompt_length_B[rows] + self.num_tokens_B[rows] - 1
        return read + sum(len(places) * longest for places, longest in passes(length_R))

    def shares(self, rows: Rows) -> bool:
        """Return whether reading each prompt once saves enough."""
        if not self.can_share:
            return False
        _, first = np.unique(self.prompt_of_B[rows], return_index=True)
        length_R = self.prompt_length_B[rows]
        spared = length_R.sum() - length_R[first].sum()
        return bool(
            spared / max(1, length_R.sum() + self.num_tokens_B[rows].sum()) >= WORTH_SHARING
        )

    # -- passes -----------------------------------------------------------------------------------

    def plan(self, rows: Rows) -> tuple[list[_HostPass], list[_HostPass]]:
        """Plan a part: the pass over its prompts, if any, and the passes over its rows."""
        if self.shares(rows):
            return self._prompts_once(rows)
        # The last token of a completion predicts nothing and is not read.
        length_R = self.prompt_length_B[rows] + self.num_tokens_B[rows] - 1
        planned: list[_HostPass] = []
        for places, longest in passes(length_R):
            own = rows[places]
            row_N, token_N = _counted(self.num_tokens_B[own])
            before_N = self.prompt_length_B[own][row_N] + token_N - 1
            planned.append(
                (
                    self._with_prompts(own, length_R[places], longest),
                    length_R[places],
                    row_N * longest + before_N,
                    own[row_N] * self.length + token_N,
                )
            )
        return [], planned

    def _prompts_once(self, rows: Rows) -> tuple[list[_HostPass], list[_HostPass]]:
        _, first, prompt_R = np.unique(
            self.prompt_of_B[rows], return_index=True, return_inverse=True
        )
        length_G = self.prompt_length_B[rows[first]]
        width = int(length_G.max())
        begun = self.num_tokens_B[rows] > 0
        prompts = (
            self._with_prompts(rows[first], length_G, width),
            length_G,
            prompt_R[begun] * width + length_G[prompt_R[begun]] - 1,
            rows[begun] * self.length,
        )
        planned: list[_HostPass] = []
        for places, longest in passes(self.num_tokens_B[rows] - 1):
            own = rows[places]
            row_N, token_N = _counted(self.num_tokens_B[own] - 1)
            begin_R = own * (self.width + self.length) + self.width
            planned.append(
                (
                    begin_R[:, None] + np.arange(longest),
                    self.num_tokens_B[own] - 1,
                    row_N * longest + token_N,
                    own[row_N] * self.length + token_N + 1,
                    prompt_R[places],
                    self.prompt_length_B[own],
                )
            )
        return [prompts], planned

    def _with_prompts(self, rows_R: Rows, length_R: Rows, width: int) -> Rows:
        """Index prompts and completions without the padding before them, cut to `width`."""
        offset_RS = np.arange(width) * (np.arange(width) < length_R[:, None])
        begin_R = rows_R * (self.width + self.length) + self.width - self.prompt_length_B[rows_R]
        # Padding repeats the first token: nothing attends to it, but it must be a valid id.
        return np.asarray(begin_R[:, None] + offset_RS)


def _counted(count_R: Rows) -> tuple[Rows, Rows]:
    """Enumerate tokens of rows: the row of each, and its number within the row.

    >>> [numbers.tolist() for numbers in _counted(np.array([2, 0, 1]))]
    [[0, 0, 2], [0, 1, 0]]
    """
    row_N = np.repeat(np.arange(len(count_R)), count_R)
    return row_N, np.arange(len(row_N)) - np.repeat(np.cumsum(count_R) - count_R, count_R)


def passes(length_R: Rows) -> list[tuple[Rows, int]]:
    """Group rows of similar length into passes, longest first: (rows, length of the longest).

    Rows of length 0 are in no pass.

    >>> [(rows.tolist(), longest) for rows, longest in passes(np.array([5, 100, 80, 4, 0]))]
    [([1, 2], 100), ([0, 3], 5)]
    """
    lengths = length_R.tolist()
    found: list[list[int]] = []
    for row in sorted(range(len(lengths)), key=lambda row: -lengths[row]):
        if lengths[row] < 1:
            break
        if not found or lengths[row] < SHORTEST_IN_PASS * lengths[found[-1][0]]:
            found.append([])
        found[-1].append(row)
    return [(np.array(rows), lengths[rows[0]]) for rows in found]
