"""Prompts with replies as documents to train on; replies are drawn anew in every epoch.

    [BOS]User: Name a fruit.          no labels
    Assistant:
    pear [EOS]                        labels

Shapes: L tokens of a document.
"""

import random
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import numpy as np

from triptych.datamodules.batches.packing import IGNORED_LABEL, Document, DocumentSource


@dataclass(frozen=True)
class TaughtPrompt:
    """A prompt with the replies to teach.

    Attributes:
        id: Name of the prompt in errors.
        prompt: The user's message, for reports.
        prompt_ids: Token ids up to where the reply begins.
        reply_ids: Token ids of each reply, EOS included.
        weights: Relative frequency of each reply, in any unit.
        answers: All right replies, to score generated ones; empty if unknown.
    """

    id: str
    prompt: str
    prompt_ids: list[int]
    reply_ids: list[list[int]]
    weights: list[float]
    answers: list[str]

    def document(self, reply: int) -> Document:
        """Return the prompt with one of its replies: ids and labels int32 (L,)."""
        ids = np.array([*self.prompt_ids, *self.reply_ids[reply]], np.int32)
        labels = ids.copy()
        labels[: len(self.prompt_ids)] = IGNORED_LABEL
        return Document(ids, labels)


class ReplyDocuments(DocumentSource):
    """Every prompt `draws` times an epoch, with replies drawn by their weights.

    The draws of one prompt in one epoch are stratified: draw i lies in the i-th of `draws` equal
    parts of the distribution. The frequencies in one epoch are thus close to the weights.

    Args:
        prompts: The prompts.
        draws: Replies of each prompt in an epoch.
        seed: Seed of the draws, which depend on (seed, epoch, index) alone.
    """

    name = "replies"
    splittable = False

    def __init__(self, prompts: Sequence[TaughtPrompt], draws: int = 1, seed: int = 0) -> None:
        self.prompts = list(prompts)
        self.draws = draws
        self.seed = seed
        self._bounds = [list(accumulate(prompt.weights)) for prompt in prompts]

    def __len__(self) -> int:
        return len(self.prompts) * self.draws

    def document(self, index: int, epoch: int) -> Document:
        """Return draw `index % draws` of prompt `index // draws` in `epoch`."""
        place, reply = self._drawn(index, epoch)
        return self.prompts[place].document(reply)

    def lengths(self, epoch: int) -> np.ndarray:
        """Return the number of tokens of every document in `epoch`, int64 (N,)."""
        drawn = (self._drawn(index, epoch) for index in range(len(self)))
        lengths = (
            len(self.prompts[place].prompt_ids) + len(self.prompts[place].reply_ids[reply])
            for place, reply in drawn
        )
        return np.fromiter(lengths, np.int64)

    def _drawn(self, index: int, epoch: int) -> tuple[int, int]:
        place, draw = divmod(index, self.draws)
        bounds = self._bounds[place]
        if len(bounds) == 1:
            return place, 0
        share = (draw + random.Random(f"{self.seed}/{epoch}/{index}").random()) / self.draws
        reply = bisect_right(bounds, share * bounds[-1])
        return place, min(reply, len(bounds) - 1)
