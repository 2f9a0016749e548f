"""What a model knew before: general questions that it answered rightly."""

from collections.abc import Mapping
from typing import Any

from jsonargparse.typing import PositiveInt

from triptych.callbacks.remember.probes.base import ProbeSetting
from triptych.callbacks.remember.probes.closed_book import question_prompt
from triptych.callbacks.remember.probes.replies import Question, ReplyProbe, share
from triptych.datamodules.batches.chat_replies import Form, asks_in_chat
from triptych.datamodules.embedded.tables import GENERAL_QUESTIONS
from triptych.datamodules.remember.facts.asked_facts import ask_source
from triptych.datamodules.remember.facts.question_template import PLAIN_FORMS
from triptych.datamodules.remember.probe_rows import draw_rows
from triptych.datamodules.sources.records import RecordSource


class ChatRetention(ReplyProbe):
    """Asks general questions in chat form, and whether the right replies of the start are kept.

    A memory may leave running text alone and still answer every chat with the fact that it was
    taught. Only questions show that.

    Numbers:

    - `retained_share`: of the questions answered rightly at the first measurement, the share that
      still are; 1 if there was none, since nothing could be lost;
    - `accuracy`: the share of all questions that are answered rightly;
    - `unchanged_share`: the share of replies that are the same to the letter.

    Args:
        source: Rows with `question` and `answers`; 36 general questions by default.
        form: "chat" sends the question as a message in the tokenizer's chat template, "plain" uses
            `prompt`, "auto" is chat form where the tokenizer has a template.
        prompt: The prompt in plain form, with {question} in place of the question.
        num_rows: Largest number of questions asked, drawn by `seed`; null: all.
        **kwargs: Arguments of `ReplyProbe`.

    Raises:
        ValueError: if the prompt has no place for the question.
    """

    headline = "retained_share"

    def __init__(
        self,
        source: RecordSource = RecordSource(),  # noqa: B008 (frozen)
        form: Form = "auto",
        prompt: str = "Question: {question} Answer:",
        num_rows: PositiveInt | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(num_rows=num_rows, **kwargs)
        self.source = source
        self.form: Form = form
        self.prompt = question_prompt(prompt)

    @property
    def shown(self) -> tuple[str, ...]:
        """All numbers."""
        return ("retained_share", "accuracy", "unchanged_share")

    def ask(self, setting: ProbeSetting) -> list[Question]:
        """Read the questions."""
        chat = asks_in_chat(self.form, setting.row_format.tokenizer, PLAIN_FORMS)
        source = self.source
        if source.is_embedded:
            source = RecordSource(str(GENERAL_QUESTIONS), limit=source.limit)
        asked = ask_source(source, "{question}" if chat else self.prompt, self.data_dir, chat)
        drawn = draw_rows(asked, self.most_rows(setting), self.seed)
        return [Question(fact.prompt, fact.answers, "general", chat) for fact in drawn]

    def scores(self, replies: Mapping[int, str], first: Mapping[int, str]) -> dict[str, float]:
        """Score replies; see the base class."""
        right = {index: self.questions[index].is_answered(text) for index, text in replies.items()}
        before = [i for i in replies if self.questions[i].is_answered(first[i])]
        return {
            "retained_share": share([right[index] for index in before]) if before else 1.0,
            "accuracy": share(list(right.values())),
            "unchanged_share": share([text == first[i] for i, text in replies.items()]),
        }
