"""Validation by questions: batches to generate answers from, and to score the right answers.

Shapes: B rows, T longest question with its answer, P longest prompt.
"""

from collections.abc import Sequence
from typing import Any

from triptych.datamodules.batches.evaluation_loader import Evaluation
from triptych.datamodules.batches.length_batches import left_padded
from triptych.datamodules.batches.packed_datamodule import RowFormat
from triptych.datamodules.batches.prompted_documents import prompt_length
from triptych.datamodules.remember.facts.fact_documents import check_length, encode_rendering
from triptych.datamodules.remember.facts.fact_templates import (
    Fact,
    FactTemplates,
    Rendering,
    question_rendering,
)


class QuestionCollate:
    """Makes batches of questions.

    Args:
        facts: The facts to ask.
        questions: The question to each fact, as shown in reports.
        row_format: Tokenizer and layout.
        renderings: The wordings with prompt and answer; None: those of `question_rendering`.
            A batch says by `whole_reply` whether the model's reply counts as a whole, as in chat
            form, or up to the end of its first line.

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
        self._in_chat = False
        renderings = renderings or [
            question_rendering(question, fact.answers[0])
            for fact, question in zip(facts, questions, strict=True)
        ]
        for fact, rendering in zip(facts, renderings, strict=True):
            document = encode_rendering(row_format.tokenizer, rendering, "answer")
            check_length(fact, document, row_format.context_length)
            self._documents.append(document)
            self._in_chat = rendering.chat

    def __call__(self, rows: Sequence[int]) -> dict[str, Any]:
        """Make a batch of the rows with the given indices.

        Returns:
            The keys of `packing.collate_rows` for the question with its first answer, one a row,
            with labels on the answer's tokens and EOS; and
            prompt_ids int64 (B, P): the tokens up to the answer, left-padded, to generate from.
            prompt_mask int64 (B, P): 1 where `prompt_ids` is no padding.
            questions, relations, answers: per row the question, the source's name of the relation
            (or None), and the list of all accepted answers.
        """
        documents = [self._documents[row] for row in rows]
        facts = [self.facts[row] for row in rows]
        prompts = [document.ids[: prompt_length(document)] for document in documents]
        prompt_ids, prompt_mask = left_padded(prompts, self._row_format.tokenizer.pad_token_id)
        return self._row_format.collate_padded(documents) | {
            "prompt_ids": prompt_ids,
            "prompt_mask": prompt_mask,
            "questions": [self.questions[row] for row in rows],
            "answers": [list(fact.answers) for fact in facts],
            "relations": [fact.relation for fact in facts],
            **({"whole_reply": True} if self._in_chat else {}),
        }


def question_evaluation(
    name: str,
    facts: Sequence[Fact],
    questions: Sequence[str],
    row_format: RowFormat,
    templates: FactTemplates,
) -> Evaluation:
    """Return a validation set of questions.

    Args:
        name: Part of the log keys.
        facts: The facts to ask.
        questions: One question to each.
        row_format: Tokenizer and layout.
        templates: Say whether questions are asked in chat form.

    Raises:
        ValueError: if a question with its answer is longer than the context.
    """
    renderings = [
        templates.asked(fact, question) for fact, question in zip(facts, questions, strict=True)
    ]
    return Evaluation(name, len(facts), QuestionCollate(facts, questions, row_format, renderings))


def completion_evaluation(
    name: str, facts: Sequence[Fact], statements: Sequence[Rendering], row_format: RowFormat
) -> Evaluation:
    """Return a validation set of statements to complete from where the answer begins.

    Args:
        name: Part of the log keys.
        facts: The facts to ask.
        statements: One statement of each fact.
        row_format: Tokenizer and layout.

    Raises:
        ValueError: if a statement is longer than the context.
    """
    prompts = [statement.prompt for statement in statements]
    collate = QuestionCollate(facts, prompts, row_format, statements)
    return Evaluation(name, len(facts), collate)
