"""The likelihood of running text."""

import math
from collections.abc import Sequence
from typing import Any, Literal

from transformers import PreTrainedModel

from triptych.callbacks.remember.probes.base import (
    DocumentScorer,
    NumRows,
    Probe,
    ProbeSetting,
    automatic_number,
    on_device,
    with_context,
)
from triptych.datamodules.batches.packed_datamodule import locate
from triptych.datamodules.batches.packing import Document, split_long
from triptych.datamodules.batches.token_file import encode_documents
from triptych.datamodules.batches.tokenizer import encode_texts
from triptych.datamodules.remember.probe_rows import draw_rows, read_texts
from triptych.datamodules.remember.wikitext_format import detokenised, num_words, rolling_windows
from triptych.datamodules.sources.records import RecordSource
from triptych.metrics.language_modeling import TokenNLL

MOST_WINDOWS = 256  # of an automatic number


class TextPerplexity(Probe):
    """The negative log-likelihood of texts, cut into windows of the context's length.

    Adjacent windows overlap by one token, which precedes the first prediction of the next window.
    So every token but the first is predicted once, and the end of each text too.

    Numbers: `nll_nats_per_token`, `bits_per_byte`, `perplexity`.

    With `wikitext` the texts are pages of WikiText, scored as the task `wikitext` of the LM
    Evaluation Harness 0.4 does: detokenised, in rolling windows, per byte and word of the page as
    it was. Further numbers are then `word_perplexity` and `byte_perplexity`.

    Args:
        source: Rows with `text`; the embedded articles' validation split by default.
        context_length: Longest window in tokens, limited by the model's context.
        num_windows: Largest number of windows used, drawn by `seed`; null: all; "auto": 256, on a
            CPU fewer of a large model. With `wikitext` all windows of `num_rows` pages are used.
        format: "windows" as described first, or "wikitext".
        **kwargs: Arguments of `Probe`.

    Raises:
        ValueError: if `context_length` is below 2.
    """

    headline = "nll_nats_per_token"
    higher_is_better = False

    def __init__(
        self,
        source: RecordSource = RecordSource(),  # noqa: B008 (frozen)
        context_length: int = 256,
        num_windows: NumRows = "auto",
        format: Literal["windows", "wikitext"] = "windows",
        **kwargs: Any,
    ) -> None:
        super().__init__(on_long_row="error", **kwargs)
        if context_length < 2:
            raise ValueError(f"the probe's context_length is {context_length}: set it to 2 or more")
        self.source = source
        self.context_length = context_length
        self.num_windows: NumRows = num_windows
        self.format: Literal["windows", "wikitext"] = format

    def prepare(self, setting: ProbeSetting) -> None:
        """Read, tokenise and cut the texts; see the base class."""
        if self.format == "windows":
            setting = with_context(setting, self.context_length)
        texts = draw_rows(
            read_texts(locate(self.source, self.data_dir)), self.most_rows(setting), self.seed
        )
        if self.format == "wikitext":
            drawn = self._pages(texts, setting)
        else:
            windows = [
                window
                for ids in encode_documents(texts, setting.row_format.tokenizer)
                for window in split_long(Document(ids, ids), setting.row_format.context_length)
            ]
            number = self.num_windows
            most = automatic_number(MOST_WINDOWS, setting) if number == "auto" else number
            drawn = draw_rows(windows, most, self.seed)
        self.num_rows_used = len(drawn)
        self._scorer = DocumentScorer(
            drawn, list(range(len(drawn))), setting, self.tokens_per_batch
        )

    def measure(self, model: PreTrainedModel, limit_batches: int | None = None) -> dict[str, float]:
        """Score the windows; see the base class."""
        metric = on_device(TokenNLL(), model)
        for score in self._scorer.score(model, limit_batches).values():
            metric.update(score.nll_nats, score.num_tokens, score.num_bytes)
        values = {name: float(value) for name, value in metric.compute().items()}
        if self.format == "wikitext":
            nats = values["nll_nats_per_token"]
            nats_per_byte = nats * self._tokens_per_byte
            values |= {
                "bits_per_byte": nats_per_byte / math.log(2),
                "byte_perplexity": math.exp(nats_per_byte),
                "word_perplexity": math.exp(nats * self._tokens_per_word),
            }
        return values

    def _pages(self, pages: Sequence[str], setting: ProbeSetting) -> list[Document]:
        """Cut pages into windows, and count their tokens, words and bytes."""
        tokenizer = setting.row_format.tokenizer
        encoded = encode_texts(tokenizer, [detokenised(page) for page in pages])
        # One token more is read than is given to the model.
        length = min(self.context_length, setting.row_format.context_length - 1)
        num_tokens = sum(map(len, encoded))
        self._tokens_per_word = num_tokens / sum(map(num_words, pages))
        self._tokens_per_byte = num_tokens / sum(len(page.encode()) for page in pages)
        start = tokenizer.bos_token_id
        return [window for ids in encoded for window in rolling_windows(ids, start, length)]
