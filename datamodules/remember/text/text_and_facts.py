"""The mixture for pretraining: running text, and facts to learn among it."""

from typing import Any

from triptych.datamodules.batches.packed_datamodule import PackedDataModule
from triptych.datamodules.remember.facts.facts import FactsConfig, FactsPart
from triptych.datamodules.remember.text.text_corpus import TextConfig, TextPart


class TextAndFacts(PackedDataModule):
    """Training on rows of text and rows of facts, with one tokenizer trained on both.

    Validation has a loader for each text source, and one that asks the facts. An epoch is one pass
    over the text; streamed text needs `rows_per_epoch`.

    Args:
        text: Which text.
        facts: Which facts, and how they are taught and asked.
        facts_share: Share of the training rows that hold facts, between 0 and 1.
        data_dir: Where relative paths start; null: the environment's TRIPTYCH_DATA, or ./data.
            What is not there is looked for in the working directory.
        **kwargs: Further settings, those of `PackedDataModule`.
    """

    def __init__(
        self,
        text: TextConfig = TextConfig(),  # noqa: B008 (frozen)
        facts: FactsConfig = FactsConfig(),  # noqa: B008 (frozen)
        facts_share: float = 0.5,
        data_dir: str | None = None,
        **kwargs: Any,
    ) -> None:
        if not 0 < facts_share < 1:
            raise ValueError(
                f"data.facts_share is {facts_share}: set it between 0 and 1, or use TextCorpus or "
                "Facts for one of them alone"
            )
        super().__init__(
            [TextPart(text, data_dir), FactsPart(facts, data_dir)],
            [1 - facts_share, facts_share],
            **kwargs,
        )
