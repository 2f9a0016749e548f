"""How likely the worked answers to questions are, as in GSM8K."""

from transformers import PreTrainedModel

from triptych.callbacks.remember.probes.base import (
    DocumentScorer,
    Probe,
    ProbeSetting,
    Role,
    on_device,
)
from triptych.callbacks.remember.probes.closed_book import question_prompt
from triptych.datamodules.batches.packed_datamodule import locate
from triptych.datamodules.batches.prompted_documents import (
    Continuation,
    OnLongRow,
    encode_continuations,
)
from triptych.datamodules.remember.probe_rows import draw_rows, read_answered
from triptych.datamodules.sources.records import RecordSource
from triptych.metrics.language_modeling import TokenNLL


class AnswerNLL(Probe):
    """The negative log-likelihood of answers given their questions, over the answers' own tokens.

    Numbers: `nll_nats_per_token`, `bits_per_byte`. The end of the text is not among the tokens.

    Args:
        source: Rows with `question` and `answer`: GSM8K's test set by default; "embedded" for
            questions on the embedded facts.
        prompt: What the model is given, with {question} where the question goes. The answer
            follows after a space.
        role: "retained" where forgetting is measured, "learned" where learning is.
        num_rows: Use at most so many rows, drawn by `seed`; null: all.
        seed: Draws the rows, apart from the seed of training.
        data_dir: Where relative paths start; null: the environment's TRIPTYCH_DATA, or ./data.
        on_long_row: What becomes of a row longer than the model's context: "error", "cut" (the
            beginning of its question is taken away) or "skip".
        tokens_per_batch: Most tokens that go through the model at once, padding included.

    Raises:
        ValueError: if a setting is out of range.

    Source: 2510.15103, section 5: NLL on GSM8K; its prompt is not stated there.
    """

    headline = "nll_nats_per_token"
    higher_is_better = False

    def __init__(
        self,
        source: RecordSource = RecordSource("probes/gsm8k_test.jsonl.gz"),  # noqa: B008 (frozen)
        prompt: str = "Question: {question} Answer:",
        role: Role = "retained",
        num_rows: int | None = 200,
        seed: int = 0,
        data_dir: str | None = None,
        on_long_row: OnLongRow = "error",
        tokens_per_batch: int = 4096,
    ) -> None:
        super().__init__(role, num_rows, seed, data_dir, on_long_row, tokens_per_batch)
        self.source = source
        self.prompt = question_prompt(prompt)

    def prepare(self, setting: ProbeSetting) -> None:
        """Read and tokenise the rows; see the base class."""
        rows = read_answered(locate(self.source, self.data_dir))
        encoded = encode_continuations(
            setting.row_format.tokenizer,
            [
                [Continuation(self.prompt.replace("{question}", row.question), f" {row.answer}")]
                for row in draw_rows(rows, self.num_rows, self.seed)
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
