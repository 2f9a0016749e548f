"""Replacement of a trained memory model's product keys by full keys with the same scores."""

from dataclasses import asdict

from transformers import PreTrainedModel

from triptych.models.remember.index.faiss_index import FaissSlotIndex
from triptych.models.remember.index.faiss_options import FaissOptions
from triptych.models.remember.index.product_keys import ProductKeyIndex
from triptych.models.remember.memory_blocks import memory_layers


def replace_index(model: PreTrainedModel, options: FaissOptions | None = None) -> PreTrainedModel:
    """Convert the product keys of every memory layer to full keys searched by faiss, in place.

    This is for finetuning with frozen keys, whose codes never go stale; slots can then be added and
    removed. Scores are equal up to rounding, and almost always the same slots are read. The model's
    config is updated, so the model is saved and loaded with its new index.

    Args:
        model: A memory model.
        options: Settings of the search.

    Raises:
        ValueError: if the model has no memory layers, or a layer with another index.

    Returns:
        The same model.
    """
    layers = memory_layers(model)
    if not layers:
        raise ValueError(
            "the model has no memory layers, so no index to replace: load a memory model, or put "
            "memory into this one (triptych.models.remember.memory_lm.insert_memory_layers)"
        )
    for layer in layers:
        if not isinstance(layer.index, ProductKeyIndex):
            raise ValueError(
                f"the model's index is a {type(layer.index).__name__}: only product keys can be "
                f"spelt out as full keys"
            )
    for layer in layers:
        assert isinstance(layer.index, ProductKeyIndex)
        layer.index = FaissSlotIndex.from_product_keys(layer.index, options)
    model.config.memory = model.config.memory | {
        "index": f"{FaissSlotIndex.__module__}.{FaissSlotIndex.__qualname__}",
        "index_args": {} if options is None else asdict(options),
    }
    return model
