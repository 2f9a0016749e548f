"""Closed-book question answering: questions in their own words, such as NaturalQuestions'."""

from triptych.callbacks.remember.probes.base import ProbeSetting, Role
from triptych.callbacks.remember.probes.recall import Recall, Scoring
from triptych.datamodules.batches.prompted_documents import OnLongRow
from triptych.datamodules.remember.facts.asked_facts import AskedFact, ask_source
from triptych.datamodules.sources.records import RecordSource


class ClosedBook(Recall):
    """Asks the questions of a source; numbers and scorings are those of `recall.Recall`.

    Args:
        source: Rows with `question` and `answers` (a list): NaturalQuestions' open questions by
            default; "embedded" for those of the embedded facts.
        prompt: What the model is given, with {question} where the question goes. The answer
            follows after a space.
        scoring: "generate" writes answers and scores their text (exact match and F1);
            "teacher_forced" finds out whether the accepted answers would be written (exact match in
            tokens), far cheaper.
        max_new_tokens: Longest answer that is generated.
        role: "retained" where forgetting is measured, "learned" where learning is.
        num_rows: Ask at most so many questions, drawn by `seed`; null: all.
        seed: Draws the questions, apart from the seed of training.
        data_dir: Where relative paths start; null: the environment's TRIPTYCH_DATA, or ./data.
        on_long_row: What becomes of a question longer than the model's context: "error", "cut" (its
            beginning is taken away) or "skip".
        tokens_per_batch: Most tokens that go through the model at once, padding included.

    Raises:
        ValueError: if a setting is out of range.

    Source: 2510.15103, section 5: F1 on NaturalQuestions. Deviation: the prompt, which the paper
    does not state, is the one in which facts are taught here.
    """

    def __init__(
        self,
        source: RecordSource = RecordSource("qa/nq_open_dev_a.jsonl.gz"),  # noqa: B008 (frozen)
        prompt: str = "Question: {question} Answer:",
        scoring: Scoring = "teacher_forced",
        max_new_tokens: int = 16,
        role: Role = "retained",
        num_rows: int | None = 500,
        seed: int = 0,
        data_dir: str | None = None,
        on_long_row: OnLongRow = "error",
        tokens_per_batch: int = 4096,
    ) -> None:
        super().__init__(
            scoring, max_new_tokens, role, num_rows, seed, data_dir, on_long_row, tokens_per_batch
        )
        self.source = source
        self.prompt = question_prompt(prompt)

    def ask(self, setting: ProbeSetting) -> list[AskedFact]:
        """Read the questions."""
        return ask_source(self.source, self.prompt, self.data_dir)


def question_prompt(prompt: str) -> str:
    """Check a prompt that a question is put into.

    Raises:
        ValueError: if there is no place for the question.
    """
    if "{question}" not in prompt:
        raise ValueError(
            f"the probe's prompt {prompt!r} has no place for the question: write {{question}} there"
        )
    return prompt.rstrip(" ")
