"""The mixture for pretraining: running text and facts."""

from typing import Any

from jsonargparse.typing import OpenUnitInterval

from triptych.datamodules.batches.packed_datamodule import PackedDataModule
from triptych.datamodules.remember.facts.facts import FactsConfig, FactsPart
from triptych.datamodules.remember.text.text_corpus import TextConfig, TextPart


class TextAndFacts(PackedDataModule):
    """Training on rows of text and rows of facts, with one tokenizer trained on both.

    Validation has a loader for each text source, and one that asks the facts. An epoch is one pass
    over the text; streamed text needs `rows_per_epoch`.

    Args:
        text: Choice of the text.
        facts: Choice of facts, and how they are taught and asked.
        facts_share: Share of the training rows that hold facts, between 0 and 1. For one of them
            alone, use `TextCorpus` or `Facts`.
        data_dir: Folder of relative paths that lead nowhere from the working directory; null: the
            environment's TRIPTYCH_DATA, or ./data.
        **kwargs: Further settings, those of `PackedDataModule`.
    """

    def __init__(
        self,
        text: TextConfig = TextConfig(),  # noqa: B008 (frozen)
        facts: FactsConfig = FactsConfig(),  # noqa: B008 (frozen)
        facts_share: OpenUnitInterval = 0.5,
        *,
        data_dir: str | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(
            [TextPart(text, data_dir), FactsPart(facts, data_dir)],
            [1 - facts_share, facts_share],
            **kwargs,
        )
