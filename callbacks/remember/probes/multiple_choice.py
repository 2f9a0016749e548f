"""Multiple choice: the most likely of several endings, as in HellaSwag."""

from typing import Any

from transformers import PreTrainedModel

from triptych.callbacks.remember.probes.base import (
    DocumentScorer,
    NumRows,
    Probe,
    ProbeSetting,
    on_device,
)
from triptych.datamodules.batches.packed_datamodule import locate
from triptych.datamodules.batches.prompted_documents import (
    Continuation,
    encode_continuations,
)
from triptych.datamodules.remember import probe_rows
from triptych.datamodules.remember.probe_rows import draw_rows, read_choices
from triptych.datamodules.sources.records import RecordSource
from triptych.metrics.remember import multiple_choice


class MultipleChoice(Probe):
    """Scores every ending after its context, joined by a space.

    Numbers: `accuracy`, `length_normalized_accuracy` (by characters), `right_nll_nats_per_token`;
    see `triptych.metrics.remember.multiple_choice`. On HellaSwag the first two are `acc` and
    `acc_norm` of the LM Evaluation Harness 0.4.

    Args:
        source: Rows with `ctx`, `endings` (a list), `label` (index of the right one, from 0) and
            perhaps `activity_label`: HellaSwag by default; "embedded" for statements of the
            embedded facts.
        num_rows: Largest number of questions asked, drawn by `seed`; null: all; "auto": 500, on
            a CPU fewer of a large model.
        **kwargs: Arguments of `Probe`.

    Source: HellaSwag, 1905.07830; worded and scored as in the LM Evaluation Harness.
    """

    headline = "accuracy"

    def __init__(
        self,
        source: RecordSource = RecordSource("probes/hellaswag_val_2k.jsonl.gz"),  # noqa: B008 (frozen)
        num_rows: NumRows = "auto",
        **kwargs: Any,
    ) -> None:
        super().__init__(num_rows=num_rows, **kwargs)
        self.source = source

    def prepare(self, setting: ProbeSetting) -> None:
        """Read and tokenise the questions; see the base class."""
        choices = read_choices(locate(self.source, self.data_dir))
        drawn = draw_rows(choices, self.most_rows(setting), self.seed)
        encoded = encode_continuations(
            setting.row_format.tokenizer,
            [_continuations(choice) for choice in drawn],
            setting.row_format.context_length,
            self.on_long_row,
        )
        self._documents_of: dict[int, list[int]] = {item: [] for item in encoded.items}
        for document, item in enumerate(encoded.item_of):
            self._documents_of[item].append(document)
        self._lengths = {
            item: [len(ending.strip()) for ending in drawn[item].endings] for item in encoded.items
        }
        self._labels = {item: drawn[item].label for item in encoded.items}
        self.num_rows_used, self.num_rows_left_out = len(encoded.items), encoded.num_left_out
        self._scorer = DocumentScorer(
            encoded.documents, encoded.item_of, setting, self.tokens_per_batch
        )

    def measure(self, model: PreTrainedModel, limit_batches: int | None = None) -> dict[str, float]:
        """Score the endings; see the base class."""
        scores = self._scorer.score(model, limit_batches)
        rows = []
        for item, documents in self._documents_of.items():
            if all(document in scores for document in documents):
                found = [scores[document] for document in documents]
                nats, tokens = [s.nll_nats for s in found], [s.num_tokens for s in found]
                rows.append((nats, self._lengths[item], tokens, self._labels[item]))
        metric = on_device(multiple_choice.MultipleChoice(), model)
        if rows:
            metric.update(*zip(*rows, strict=True))
        return {name: float(value) for name, value in metric.compute().items()}


def _continuations(choice: probe_rows.Choice) -> list[Continuation]:
    return [Continuation(choice.context, f" {ending.strip()}") for ending in choice.endings]
