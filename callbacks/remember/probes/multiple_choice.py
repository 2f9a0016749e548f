"""Multiple choice: which of several endings is the likeliest, as in HellaSwag."""

from transformers import PreTrainedModel

from triptych.callbacks.remember.probes.base import (
    DocumentScorer,
    Probe,
    ProbeSetting,
    Role,
    on_device,
)
from triptych.datamodules.batches.packed_datamodule import locate
from triptych.datamodules.batches.prompted_documents import (
    Continuation,
    OnLongRow,
    encode_continuations,
)
from triptych.datamodules.remember import probe_rows
from triptych.datamodules.remember.probe_rows import draw_rows, read_choices
from triptych.datamodules.sources.records import RecordSource
from triptych.metrics.remember import multiple_choice


class MultipleChoice(Probe):
    """Scores every ending after its context, each joined by a space.

    Numbers: `accuracy`, `length_normalized_accuracy` (by bytes), `right_nll_nats_per_token`; see
    `triptych.metrics.remember.multiple_choice`.

    Args:
        source: Rows with `ctx`, `endings` (a list) and `label` (place of the right one, from 0):
            HellaSwag by default; "embedded" for statements of the embedded facts.
        role: "retained" where forgetting is measured, "learned" where learning is.
        num_rows: Ask at most so many questions, drawn by `seed`; null: all.
        seed: Draws the questions, apart from the seed of training.
        data_dir: Where relative paths start; null: the environment's TRIPTYCH_DATA, or ./data.
        on_long_row: What becomes of a row longer than the model's context: "error", "cut" (the
            beginning of its context is taken away) or "skip".
        tokens_per_batch: Most tokens that go through the model at once, padding included.

    Raises:
        ValueError: if a setting is out of range.

    Source: HellaSwag, 1905.07830; scored as by the LM Evaluation Harness. Deviation: the activity's
    name is not put before the context, whose bracketed marks are taken as they are.
    """

    headline = "accuracy"

    def __init__(
        self,
        source: RecordSource = RecordSource("probes/hellaswag_val_2k.jsonl.gz"),  # noqa: B008 (frozen)
        role: Role = "retained",
        num_rows: int | None = 500,
        seed: int = 0,
        data_dir: str | None = None,
        on_long_row: OnLongRow = "error",
        tokens_per_batch: int = 4096,
    ) -> None:
        super().__init__(role, num_rows, seed, data_dir, on_long_row, tokens_per_batch)
        self.source = source

    def prepare(self, setting: ProbeSetting) -> None:
        """Read and tokenise the questions; see the base class."""
        choices = read_choices(locate(self.source, self.data_dir))
        drawn = draw_rows(choices, self.num_rows, self.seed)
        encoded = encode_continuations(
            setting.row_format.tokenizer,
            [_continuations(choice) for choice in drawn],
            setting.row_format.context_length,
            self.on_long_row,
        )
        self._documents_of: dict[int, list[int]] = {item: [] for item in encoded.items}
        for document, item in enumerate(encoded.item_of):
            self._documents_of[item].append(document)
        self._num_bytes = {
            item: [len(ending.strip().encode()) for ending in drawn[item].endings]
            for item in encoded.items
        }
        self._labels = {item: drawn[item].label for item in encoded.items}
        self.num_rows_used, self.num_rows_left_out = len(encoded.items), encoded.num_left_out
        self._scorer = DocumentScorer(
            encoded.documents, encoded.item_of, setting, self.tokens_per_batch
        )

    def measure(self, model: PreTrainedModel, limit_batches: int | None = None) -> dict[str, float]:
        """Choose; see the base class."""
        scores = self._scorer.score(model, limit_batches)
        rows = []
        for item, documents in self._documents_of.items():
            if all(document in scores for document in documents):
                found = [scores[document] for document in documents]
                nats, tokens = [s.nll_nats for s in found], [s.num_tokens for s in found]
                rows.append((nats, self._num_bytes[item], tokens, self._labels[item]))
        metric = on_device(multiple_choice.MultipleChoice(), model)
        if rows:
            metric.update(*zip(*rows, strict=True))
        return {name: float(value) for name, value in metric.compute().items()}


def _continuations(choice: probe_rows.Choice) -> list[Continuation]:
    return [Continuation(choice.context, f" {ending.strip()}") for ending in choice.endings]
