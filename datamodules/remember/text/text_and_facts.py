"""The mixture for pretraining: running text, and facts to learn among it."""

from triptych.datamodules.batches.packed_datamodule import PackedDataModule
from triptych.datamodules.batches.tokenizer import TokenizerConfig
from triptych.datamodules.remember.facts.facts import FactsConfig, FactsPart
from triptych.datamodules.remember.text.text_corpus import TextConfig, TextPart


class TextAndFacts(PackedDataModule):
    """Training on rows of text and rows of facts, with one tokenizer trained on both.

    Validation has a loader for each text source, and one that asks the facts.

    Args:
        text: Which text.
        facts: Which facts, and how they are taught and asked.
        facts_share: Share of the training rows that hold facts, between 0 and 1.
        tokenizer: Which tokenizer.
        data_dir: Where relative paths start; null: the environment's TRIPTYCH_DATA, or ./data.
            What is not there is looked for in the working directory.
        context_length: Tokens per row.
        batch_size: Training rows per process and batch.
        eval_batch_size: Validation rows per process and batch; null: as `batch_size`.
        rows_per_epoch: Rows of all processes after which an epoch ends; null: until the text was
            passed over once. Needed when streaming.
        num_workers: Worker processes that make training batches.
        seed: Seed of shuffles, wordings and the mixture.
        cache_dir: Where tokenizers and tokenised text are kept; null: `TRIPTYCH_CACHE` or
            ~/.cache/triptych.
    """

    def __init__(
        self,
        text: TextConfig = TextConfig(),  # noqa: B008 (frozen)
        facts: FactsConfig = FactsConfig(),  # noqa: B008 (frozen)
        facts_share: float = 0.5,
        tokenizer: TokenizerConfig = TokenizerConfig(),  # noqa: B008 (frozen)
        data_dir: str | None = None,
        context_length: int = 256,
        batch_size: int = 16,
        eval_batch_size: int | None = None,
        rows_per_epoch: int | None = None,
        num_workers: int = 0,
        seed: int = 0,
        cache_dir: str | None = None,
    ) -> None:
        if not 0 < facts_share < 1:
            raise ValueError(
                f"data.facts_share is {facts_share}: set it between 0 and 1, or use TextCorpus or "
                "Facts for one of them alone"
            )
        super().__init__(
            [TextPart(text, data_dir), FactsPart(facts, data_dir)],
            [1 - facts_share, facts_share],
            tokenizer=tokenizer,
            context_length=context_length,
            batch_size=batch_size,
            eval_batch_size=eval_batch_size,
            rows_per_epoch=rows_per_epoch,
            num_workers=num_workers,
            seed=seed,
            cache_dir=cache_dir,
        )
