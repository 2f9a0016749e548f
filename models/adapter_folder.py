"""Folders that hold an adapter of a model, as PEFT writes them: read by merging, and written.

    adapter_config.json          kind and size of the adapter, and the name of its base model
    adapter_model.safetensors    its weights

A model that starts from such a folder is the base with the adapter merged, so that whatever is
trained or compared next starts where the adapter's training ended.
"""

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from safetensors import safe_open
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, GenerationConfig, PreTrainedModel
from transformers.utils.peft_utils import find_adapter_config_file

from triptych.models.host.checked_folder import (
    check_folder,
    named_in_errors,
    read_settings,
    refresh_checksums,
)
from triptych.models.lora import adapter_settings, adapter_state_dict, only_adapters_learn
from triptych.models.pretrained_source import pretrained_source
from triptych.models.progress_bars import no_progress_bars

CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"


def is_adapter_folder(folder: str | Path) -> bool:
    """Return whether a local folder holds an adapter instead of a model."""
    return (Path(folder) / CONFIG_FILE).is_file()


def adapter_base(folder: str | Path) -> str:
    """Return what transformers can load as the base of an adapter.

    Args:
        folder: Local folder of the adapter.

    Raises:
        ValueError: if the folder does not name a base, or names a folder that is gone.
    """
    file = Path(folder) / CONFIG_FILE
    name = read_settings(file).get("base_model_name_or_path")
    if not name:
        raise ValueError(f"{file} names no base model: set base_model_name_or_path in it")
    beside = file.parent / name
    source = str(beside) if beside.is_dir() and not Path(name).is_dir() else name
    if Path(source).is_absolute() and not Path(source).exists():
        raise ValueError(
            f"the adapter in {folder} belongs to the model {source}, which is not there: correct "
            f"base_model_name_or_path in {file}"
        )
    return pretrained_source(source)


def tokenizer_source(source: str) -> str:
    """Return where the tokenizer of a model is: an adapter's own, or that of its base."""
    is_bare = is_adapter_folder(source) and not (Path(source) / "tokenizer_config.json").is_file()
    return tokenizer_source(adapter_base(source)) if is_bare else source


def load_causal_lm(source: str, **options: Any) -> PreTrainedModel:
    """Load a causal language model; an adapter is merged into its base.

    Args:
        source: Hub name or folder of a model or of an adapter.
        **options: Of `from_pretrained`.

    Raises:
        ValueError: if an adapter cannot be merged.
    """
    config_file = find_adapter_config_file(source)
    if config_file is None:
        if Path(source).is_dir():
            check_folder(source)
        with named_in_errors(source):
            model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
                source, trust_remote_code=False, **options
            )
        return model
    folder = Path(config_file).parent
    return merge_adapter(load_causal_lm(adapter_base(folder), **options), folder)


def merge_adapter(model: PreTrainedModel, folder: str | Path) -> PreTrainedModel:
    """Merge an adapter into its base.

    Args:
        model: The base; it must not be used afterwards.
        folder: Local folder of the adapter.

    Raises:
        ValueError: if the adapter is of a kind that cannot be merged, such as a soft prompt, or
            does not fit the base.
    """
    from peft import PeftModel

    folder = Path(folder)
    check_folder(folder)
    rows = _rows_of_embedding(model, folder)
    embedding: Any = model.get_input_embeddings()
    if rows is not None and rows != embedding.weight.shape[0]:
        model.resize_token_embeddings(rows)  # the adapter's training added tokens
    try:
        with no_progress_bars(), warnings.catch_warnings():
            # peft 0.21 asks transformers 5.23 by a name that is about to go.
            warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated")
            adapted: Any = PeftModel.from_pretrained(model, str(folder))
        merge: Callable[..., PreTrainedModel] = adapted.merge_and_unload
        merged = merge(safe_merge=True)
    except (AttributeError, RuntimeError, ValueError, NotImplementedError) as error:
        raise ValueError(
            f"the adapter in {folder} cannot be merged into its base ({error}): merge it with "
            "peft, save the model with save_pretrained, and start from that folder"
        ) from error
    if hasattr(merged, "peft_config"):
        del merged.peft_config
    merged.config.name_or_path = ""  # it is no longer the model of this name
    if (folder / "generation_config.json").is_file():
        merged.generation_config = GenerationConfig.from_pretrained(folder)
    return merged.requires_grad_(True)


def _rows_of_embedding(model: PreTrainedModel, folder: Path) -> int | None:
    """Return the number of tokens of an embedding that the adapter brings; None without one."""
    if not (folder / WEIGHTS_FILE).is_file():
        return None
    own = model.get_input_embeddings()
    name = next(name for name, module in model.named_modules() if module is own)
    with safe_open(folder / WEIGHTS_FILE, "pt") as weights:
        for key in weights.keys():  # noqa: SIM118 (not a mapping)
            if key.endswith((f"{name}.weight", f"{name}.modules_to_save.weight")):
                return int(weights.get_slice(key).get_shape()[0])
    return None


def named_base(model: PreTrainedModel) -> str | None:
    """Return the base that a saved adapter of this model can name; None if there is none.

    None also for a model whose weights are in no folder: built from sizes, with memory inserted
    after it was loaded, or with a merged adapter, and for one where more than adapters learns.
    """
    name: str = getattr(model.config, "name_or_path", "") or ""
    if not name or not only_adapters_learn(model):
        return None
    return str(Path(name).resolve()) if Path(name).is_dir() else name


def save_adapter(model: PreTrainedModel, folder: str | Path) -> None:
    """Write the adapters of a model as PEFT does, without the model.

    `peft.PeftModel.from_pretrained(base, folder)`, `load_causal_lm(folder)` and vLLM load it.

    Args:
        model: A model with adapters of `add_lora` and a `named_base`.
        folder: Where to write.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    settings = adapter_settings(model)
    settings.base_model_name_or_path = named_base(model)
    settings.save_pretrained(str(folder))
    save_file(adapter_state_dict(model), folder / WEIGHTS_FILE, metadata={"format": "pt"})
    if model.generation_config is not None:
        model.generation_config.save_pretrained(folder)
    refresh_checksums(folder)
