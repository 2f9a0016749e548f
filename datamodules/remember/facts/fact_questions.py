"""Validation by questions: batches to generate answers from, and to score the right ones with.

Shapes: B rows, T longest question with its answer, P longest prompt.
"""

from collections.abc import Sequence
from typing import Any

import torch

from triptych.datamodules.batches.evaluation_loader import Evaluation
from triptych.datamodules.batches.packed_datamodule import RowFormat
from triptych.datamodules.batches.packing import IGNORED_LABEL
from triptych.datamodules.remember.facts.fact_documents import check_length, encode_rendering
from triptych.datamodules.remember.facts.fact_templates import Fact, Rendering, question_rendering


class QuestionCollate:
    """Makes batches of questions.

    Args:
        facts: What is asked.
        questions: How each is asked, as reports show it.
        row_format: Tokenizer and layout.
        renderings: The same with prompt and answer; None: `fact_templates.question_rendering`.

    Raises:
        ValueError: if a question with its answer is longer than the context.
    """

    def __init__(
        self,
        facts: Sequence[Fact],
        questions: Sequence[str],
        row_format: RowFormat,
        renderings: Sequence[Rendering] | None = None,
    ) -> None:
        self.facts = list(facts)
        self.questions = list(questions)
        self._row_format = row_format
        self._documents = []
        renderings = renderings or [
            question_rendering(question, fact.answers[0])
            for fact, question in zip(facts, questions, strict=True)
        ]
        for fact, rendering in zip(facts, renderings, strict=True):
            document = encode_rendering(row_format.tokenizer, rendering, "answer")
            check_length(fact, document, row_format.context_length)
            self._documents.append(document)

    def __call__(self, rows: Sequence[int]) -> dict[str, Any]:
        """Make a batch of the rows with the given indices.

        Returns:
            What `packing.collate_rows` returns for the question with its first answer, one a row,
            labels on the answer's tokens and EOS alone; and
            prompt_ids int64 (B, P): the same up to the answer, left-padded, to generate from.
            prompt_mask int64 (B, P): 1 where `prompt_ids` is not padding.
            questions, relations, answers: per row the question, the relation as the source names it
            (or None), and the list of all accepted answers.
        """
        documents = [self._documents[row] for row in rows]
        facts = [self.facts[row] for row in rows]
        prompts = [
            document.ids[: int((document.labels != IGNORED_LABEL).argmax())]
            for document in documents
        ]
        shape = (len(rows), max(len(prompt) for prompt in prompts))
        prompt_ids = torch.full(shape, self._row_format.tokenizer.pad_token_id, dtype=torch.int64)
        prompt_mask = torch.zeros(shape, dtype=torch.int64)
        for row, prompt in enumerate(prompts):
            prompt_ids[row, -len(prompt) :] = torch.from_numpy(prompt)
            prompt_mask[row, -len(prompt) :] = 1
        return self._row_format.collate_padded(documents) | {
            "prompt_ids": prompt_ids,
            "prompt_mask": prompt_mask,
            "questions": [self.questions[row] for row in rows],
            "answers": [list(fact.answers) for fact in facts],
            "relations": [fact.relation for fact in facts],
        }


def question_evaluation(
    name: str, facts: Sequence[Fact], questions: Sequence[str], row_format: RowFormat
) -> Evaluation:
    """Ask each fact its question; arguments and errors are those of `QuestionCollate`."""
    return Evaluation(name, len(facts), QuestionCollate(facts, questions, row_format))


def completion_evaluation(
    name: str, facts: Sequence[Fact], statements: Sequence[Rendering], row_format: RowFormat
) -> Evaluation:
    """Have each fact's statement completed from where its answer begins.

    Args:
        name: Names the log keys.
        facts: What is asked.
        statements: One statement of each.
        row_format: Tokenizer and layout.

    Raises:
        ValueError: if a statement is longer than the context.
    """
    prompts = [statement.prompt for statement in statements]
    collate = QuestionCollate(facts, prompts, row_format, statements)
    return Evaluation(name, len(facts), collate)
