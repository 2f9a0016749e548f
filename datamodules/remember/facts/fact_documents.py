"""Facts as documents to train on, each in a new wording in every epoch.

    [BOS] Question: What is the capital of France? Answer: Paris [EOS]
    [BOS] The capital of France is Paris. [EOS]

Shapes: L tokens of a document.
"""

import random
from collections.abc import Sequence
from typing import Literal

import numpy as np
from transformers import PreTrainedTokenizerFast

from triptych.datamodules.batches.chat_replies import encode_chats
from triptych.datamodules.batches.cut_tokens import encode_parts
from triptych.datamodules.batches.packing import IGNORED_LABEL, Document, DocumentSource
from triptych.datamodules.batches.tokenizer import document_start
from triptych.datamodules.remember.facts.fact_templates import Fact, FactTemplates, Rendering

LossOn = Literal["answer", "all"]

# Tokenised wordings cached per process. All wordings of the embedded facts fit. Of larger sets the
# first are cached; the others are tokenised each time (about 50 microseconds).
MAX_CACHED_DOCUMENTS = 65_536


def encode_rendering(
    tokenizer: PreTrainedTokenizerFast, rendering: Rendering, loss_on: LossOn
) -> Document:
    """Tokenise a wording as one text and cut it at the answer.

    Args:
        tokenizer: A tokenizer with EOS.
        rendering: The wording.
        loss_on: "answer" labels the answer's tokens and EOS, of a chat the reply and the end of the
            turn; "all" labels all tokens except the first.

    Returns:
        `[BOS] prompt answer remainder [EOS]` with the tokenizer's own BOS, if it has one
        (`document_start`); in chat form the tokens of the chat template. Ids and labels int32 (L,).
    """
    if rendering.chat:
        (chat,) = encode_chats(tokenizer, [(rendering.prompt, rendering.reply)])
        before, labelled, after = chat.prompt, [*chat.reply, *chat.turn_end], []
    else:
        parts = (rendering.prompt, rendering.answer, rendering.remainder)
        ((prompt, answer, remainder),) = encode_parts(tokenizer, [parts])
        before, labelled = [*document_start(tokenizer), *prompt], answer
        after = [*remainder, tokenizer.eos_token_id]
    ids = np.array([*before, *labelled, *after], np.int32)
    labels = ids.copy()
    if loss_on == "answer":
        labels[: len(before)] = IGNORED_LABEL
        labels[len(before) + len(labelled) : -1] = IGNORED_LABEL
    labels[0] = IGNORED_LABEL
    return Document(ids, labels)


class FactDocuments(DocumentSource):
    """Every fact once an epoch, in a wording drawn by (seed, epoch, index).

    A fact's first answer is taught. Held-out questions are never drawn.

    Args:
        facts: The facts, with subjects filled in (`FactTemplates.with_subject`).
        templates: The templates by relation.
        tokenizer: A tokenizer with BOS and EOS.
        context_length: Maximum length of a document in tokens.
        seed: Seed of the draws.
        statement_share: Share of statements among the wordings, in [0, 1]; the others are
            questions. A fact without statements is always a question.
        loss_on: Position of the labels; see `encode_rendering`.

    Raises:
        ValueError: if a wording is longer than the context (a fact is never cut), or
            `statement_share` is not in [0, 1].
    """

    name = "facts"
    splittable = False

    def __init__(
        self,
        facts: Sequence[Fact],
        templates: FactTemplates,
        tokenizer: PreTrainedTokenizerFast,
        *,
        context_length: int,
        seed: int = 0,
        statement_share: float = 0.3,
        loss_on: LossOn = "answer",
    ) -> None:
        if not 0 <= statement_share <= 1:
            raise ValueError(
                f"facts.statement_share is {statement_share}: set it to a share from 0 to 1"
            )
        self.facts = list(facts)
        self.context_length = context_length
        self.seed = seed
        self.statement_share = statement_share
        self.loss_on = loss_on
        self._templates = templates
        self._tokenizer = tokenizer
        self._cache: dict[tuple[int, int], Document] = {}
        # Of each fact: number of statements, number of wordings.
        self._counts = [self._check_wordings(index) for index in range(len(self.facts))]

    def __len__(self) -> int:
        return len(self.facts)

    def document(self, index: int, epoch: int) -> Document:
        """Return fact `index` in its wording of `epoch`."""
        rng = random.Random(f"{self.seed}/{epoch}/{index}")
        num_statements, num_wordings = self._counts[index]
        as_statement = num_statements > 0 and rng.random() < self.statement_share
        choices = (0, num_statements) if as_statement else (num_statements, num_wordings)
        key = (index, rng.randrange(*choices))
        if key not in self._cache:
            rendering = self.wordings(index)[key[1]]
            document = encode_rendering(self._tokenizer, rendering, self.loss_on)
            if len(self._cache) >= MAX_CACHED_DOCUMENTS:
                return document
            self._cache[key] = document
        return self._cache[key]

    def wordings(self, index: int) -> list[Rendering]:
        """List the wordings of a fact that training may draw: statements, then questions."""
        fact = self.facts[index]
        return [*self._templates.statements(fact), *self._templates.questions(fact)]

    def _check_wordings(self, index: int) -> tuple[int, int]:
        """Check that all wordings of a fact fit the context; count statements and wordings."""
        fact, wordings = self.facts[index], self.wordings(index)
        for rendering in wordings:
            # A token has at least one byte, so only long wordings need to be tokenised.
            if len(rendering.text.encode()) + 2 > self.context_length:
                document = encode_rendering(self._tokenizer, rendering, self.loss_on)
                check_length(fact, document, self.context_length)
        return len(self._templates.statements(fact)), len(wordings)


def check_length(fact: Fact, document: Document, context_length: int) -> None:
    """Refuse a fact that does not fit the context.

    Raises:
        ValueError: if the document is longer than the context.
    """
    if len(document) > context_length:
        raise ValueError(
            f"fact {fact.id!r} has {len(document)} tokens in one of its wordings, but "
            f"context_length is {context_length} and a fact is never cut: set context_length to at "
            f"least {len(document)}, or take this fact out of the source"
        )
