"""The likelihood of worked answers to questions, as in GSM8K."""

from typing import Any

from transformers import PreTrainedModel

from triptych.callbacks.remember.probes.base import (
    DocumentScorer,
    NumRows,
    Probe,
    ProbeSetting,
    on_device,
)
from triptych.callbacks.remember.probes.closed_book import question_prompt
from triptych.datamodules.batches.chat_replies import Form, asks_in_chat
from triptych.datamodules.batches.packed_datamodule import locate
from triptych.datamodules.batches.prompted_documents import (
    Continuation,
    encode_continuations,
)
from triptych.datamodules.remember.facts.question_template import PLAIN_FORMS
from triptych.datamodules.remember.probe_rows import draw_rows, read_answered
from triptych.datamodules.sources.records import RecordSource
from triptych.metrics.language_modeling import TokenNLL


class AnswerNLL(Probe):
    """The negative log-likelihood of answers given their questions, over the answers' own tokens.

    Numbers: `nll_nats_per_token`, `bits_per_byte`. The end of the text is not counted.

    Args:
        source: Rows with `question` and `answer`: GSM8K's test set by default; "embedded" for
            questions on the embedded facts.
        prompt: The model's prompt, with {question} in place of the question. The answer follows
            after a space.
        form: "chat" asks in the tokenizer's chat template, "plain" by `prompt`, "auto" in chat form
            where the tokenizer has a template.
        num_rows: Largest number of rows used, drawn by `seed`; null: all; "auto": 200, on
            a CPU fewer of a large model.
        **kwargs: Arguments of `Probe`.

    Raises:
        ValueError: if the prompt has no place for the question.

    Source: 2510.15103, section 5: NLL on GSM8K. The paper does not state the prompt.
    """

    headline = "nll_nats_per_token"
    auto_rows = 200
    higher_is_better = False

    def __init__(
        self,
        source: RecordSource = RecordSource("probes/gsm8k_test.jsonl.gz"),  # noqa: B008 (frozen)
        prompt: str = "Question: {question} Answer:",
        form: Form = "auto",
        num_rows: NumRows = "auto",
        **kwargs: Any,
    ) -> None:
        super().__init__(num_rows=num_rows, **kwargs)
        self.source = source
        self.prompt = question_prompt(prompt)
        self.form: Form = form

    def prepare(self, setting: ProbeSetting) -> None:
        """Read and tokenise the rows; see the base class."""
        rows = read_answered(locate(self.source, self.data_dir))
        tokenizer = setting.row_format.tokenizer
        chat = asks_in_chat(self.form, tokenizer, PLAIN_FORMS)
        prompt, space = ("{question}", "") if chat else (self.prompt, " ")
        encoded = encode_continuations(
            tokenizer,
            [
                [
                    Continuation(
                        prompt.replace("{question}", row.question), space + row.answer, chat=chat
                    )
                ]
                for row in draw_rows(rows, self.most_rows(setting), self.seed)
            ],
            setting.row_format.context_length,
            self.on_long_row,
        )
        self.num_rows_used, self.num_rows_left_out = len(encoded.items), encoded.num_left_out
        self._scorer = DocumentScorer(
            encoded.documents, encoded.item_of, setting, self.tokens_per_batch
        )

    def measure(self, model: PreTrainedModel, limit_batches: int | None = None) -> dict[str, float]:
        """Score the answers; see the base class."""
        metric = on_device(TokenNLL(), model)
        for score in self._scorer.score(model, limit_batches).values():
            metric.update(score.nll_nats, score.num_tokens, score.num_bytes)
        values = {name: float(value) for name, value in metric.compute().items()}
        del values["perplexity"]
        return values
