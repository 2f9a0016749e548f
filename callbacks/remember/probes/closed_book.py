"""Closed-book question answering on a data set such as NaturalQuestions."""

from typing import Any

from triptych.callbacks.remember.probes.base import NumRows, ProbeSetting
from triptych.callbacks.remember.probes.recall import Recall
from triptych.datamodules.batches.chat_replies import Form, asks_in_chat
from triptych.datamodules.remember.facts.asked_facts import AskedFact, ask_source
from triptych.datamodules.remember.facts.question_template import PLAIN_FORMS
from triptych.datamodules.sources.records import RecordSource


class ClosedBook(Recall):
    """Asks the questions of a source; `Recall` describes numbers and scorings.

    Args:
        source: Rows with `question` and `answers` (a list): NaturalQuestions' open questions by
            default; "embedded" for those of the embedded facts.
        prompt: The model's prompt, with {question} in place of the question. The answer follows
            after a space.
        form: "chat" sends the question as a message in the tokenizer's chat template, "plain" uses
            `prompt`, "auto" is chat form where the tokenizer has a template.
        num_rows: Largest number of questions asked, drawn by `seed`; null: all; "auto": 500, on
            a CPU fewer of a large model.
        **kwargs: Arguments of `Recall`.

    Raises:
        ValueError: if the prompt has no place for the question.

    Source: 2510.15103, section 5: F1 on NaturalQuestions. Deviation: the paper does not state the
    prompt; this is the one in which facts are taught here.
    """

    def __init__(
        self,
        source: RecordSource = RecordSource("qa/nq_open_dev_a.jsonl.gz"),  # noqa: B008 (frozen)
        prompt: str = "Question: {question} Answer:",
        form: Form = "auto",
        num_rows: NumRows = "auto",
        **kwargs: Any,
    ) -> None:
        super().__init__(num_rows=num_rows, **kwargs)
        self.source = source
        self.prompt = question_prompt(prompt)
        self.form: Form = form

    def ask(self, setting: ProbeSetting) -> list[AskedFact]:
        """Read the questions."""
        chat = asks_in_chat(self.form, setting.row_format.tokenizer, PLAIN_FORMS)
        prompt = "{question}" if chat else self.prompt
        return ask_source(self.source, prompt, self.data_dir, chat)


def question_prompt(prompt: str) -> str:
    """Check the prompt of a question, and remove the space at its end.

    Raises:
        ValueError: if there is no place for the question.
    """
    if "{question}" not in prompt:
        raise ValueError(
            f"the probe's prompt {prompt!r} has no place for the question: write {{question}} there"
        )
    return prompt.rstrip(" ")
