"""The language model of a module, for callbacks that cannot work without one."""

from lightning.pytorch import LightningDataModule, LightningModule
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from triptych.protocols import HasTokenizer, HoldsModel, missing


def language_model_of(pl_module: LightningModule, needed_by: str) -> PreTrainedModel:
    """Return the module's `transformers` model.

    Args:
        pl_module: The module.
        needed_by: Name of the callback, for the message.

    Raises:
        ValueError: if the module has no `model`, or one of another kind.
    """
    if not isinstance(pl_module, HoldsModel):
        raise missing(HoldsModel, pl_module, needed_by)
    model = pl_module.model
    if not isinstance(model, PreTrainedModel):
        raise ValueError(
            f"{needed_by} needs a language model of transformers, but the `model` of "
            f"{type(pl_module).__name__} is a {type(model).__name__}"
        )
    return model


def tokenizer_of(data: LightningDataModule | None, needed_by: str) -> PreTrainedTokenizerFast:
    """Return the datamodule's tokenizer.

    Args:
        data: The datamodule.
        needed_by: Name of the callback, for the message.

    Raises:
        ValueError: if there is none, or one of another kind.
    """
    if not isinstance(data, HasTokenizer):
        raise missing(HasTokenizer, data, needed_by)
    tokenizer = data.tokenizer
    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        raise ValueError(
            f"{needed_by} needs a PreTrainedTokenizerFast, but the `tokenizer` of "
            f"{type(data).__name__} is a {type(tokenizer).__name__}"
        )
    return tokenizer
