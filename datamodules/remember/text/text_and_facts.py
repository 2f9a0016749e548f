"""The mixture for pretraining: running text and facts, and chats for a chat model."""

from typing import Any

from jsonargparse.typing import OpenUnitInterval

from triptych.datamodules.batches.packed_datamodule import DataPart, PackedDataModule
from triptych.datamodules.batches.tokenizer import TokenizerConfig
from triptych.datamodules.remember.facts.facts import FactsConfig, FactsPart
from triptych.datamodules.remember.text.chats import ChatsConfig, ChatsPart
from triptych.datamodules.remember.text.text_corpus import TextConfig, TextPart


class TextAndFacts(PackedDataModule):
    """Training on rows of text and rows of facts, with one tokenizer trained on both.

    Validation has a loader for each text source, and one that asks the facts. An epoch is one pass
    over the text; streamed text needs `rows_per_epoch`.

    With `chats`, a chat model also reads conversations in its own chat template. A memory that is
    put into it then knows the slots that every chat reads, and takes none of them for a fact. A
    tokenizer without a chat template of its own takes no chats.

    Args:
        text: Choice of the text.
        facts: Choice of facts, and how they are taught and asked.
        facts_share: Share of the rows of text and facts that hold facts, between 0 and 1. For one
            of them alone, use `TextCorpus` or `Facts`.
        chats: Choice of chats; null: none.
        chats_share: Share of all training rows that hold chats, between 0 and 1.
        data_dir: Folder of relative paths that lead nowhere from the working directory; null: the
            environment's TRIPTYCH_DATA, or ./data.
        tokenizer: The tokenizer of all parts. A model that the run starts from (`init_from`) brings
            its own.
        **kwargs: Further settings, those of `PackedDataModule`.
    """

    def __init__(
        self,
        text: TextConfig = TextConfig(),  # noqa: B008 (frozen)
        facts: FactsConfig = FactsConfig(),  # noqa: B008 (frozen)
        facts_share: OpenUnitInterval = 0.5,
        chats: ChatsConfig | None = None,
        chats_share: OpenUnitInterval = 0.3,
        *,
        data_dir: str | None = None,
        tokenizer: TokenizerConfig = TokenizerConfig(),  # noqa: B008 (frozen)
        **kwargs: Any,
    ) -> None:
        parts: list[DataPart] = [TextPart(text, data_dir), FactsPart(facts, data_dir)]
        shares = [1 - facts_share, facts_share]
        if chats is not None:
            parts.append(ChatsPart(chats, tokenizer.path, data_dir))
            shares = [*((1 - chats_share) * share for share in shares), chats_share]
        super().__init__(parts, shares, tokenizer=tokenizer, **kwargs)

    def shares_of_rows(self) -> list[float]:
        """Return the share of the training rows for each part; of chats 0 without a template."""
        if not isinstance(self.parts[-1], ChatsPart) or ChatsPart.has_form(self.tokenizer):
            return self.shares
        *others, chats = self.shares
        return [*(share / (1 - chats) for share in others), 0.0]
