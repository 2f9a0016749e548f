"""The model card of an exported folder, made from the run: `README.md`, as the hub shows it."""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import ModelCard, ModelCardData, hf_hub_download
from transformers import PreTrainedTokenizerBase

from triptych.callbacks.exporting.asking_form import TRAINING_TEMPLATE
from triptych.callbacks.exporting.export_kind import ExportKind
from triptych.callbacks.exporting.loading_snippets import EXAMPLE_QUESTION, loading_snippet
from triptych.models.pretrained_source import PACKAGED

CARD_FILE = "README.md"
# Settings that say where this run wrote, not how it trained. An address may hold a password.
_OF_THIS_MACHINE = ("tracking", "run_dir", "run_name", "export", "ckpt_path")


def training_settings(composed: str) -> dict[str, Any]:
    """Read a run's composed configuration, without what concerns this machine alone."""
    settings: dict[str, Any] = yaml.safe_load(composed) or {}
    return {name: value for name, value in settings.items() if name not in _OF_THIS_MACHINE}


def model_card(
    kind: ExportKind,
    name: str,
    settings: Mapping[str, Any],
    *,
    metrics: Mapping[str, float],
    steps: int,
    fingerprint: str | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
    init_from: str | None = None,
    has_memory: bool = False,
) -> ModelCard:
    """Write the card.

    Args:
        kind: What the folder holds.
        name: Name of the folder in the snippet: its name on the hub, or a path.
        settings: The run's configuration (`training_settings`).
        metrics: Log key -> value of the last validation.
        steps: Training steps.
        fingerprint: Hash of the training data.
        tokenizer: The exported tokenizer.
        init_from: The folder that training started from; its card names the base model.
        has_memory: Whether the model has memory layers.
    """
    model, data = dict(settings.get("model") or {}), dict(settings.get("data") or {})
    base, licence = base_model(model, init_from)
    sources = sorted(set(data_sources(data)))
    hub_base = base if base is not None and is_hub_name(base) else None
    card_data = ModelCardData(
        base_model=hub_base,
        license=licence,
        datasets=[source for source in sources if is_hub_name(source)] or None,
        library_name="transformers" if kind == "text" else "triptych",
        pipeline_tag="text-generation" if kind == "text" else None,
        tags=["triptych", *(["memory-layers"] if has_memory else [])],
    )
    parts = [
        f"# {settings.get('experiment') or _class_name(model) or 'A model'}",
        "A model trained with Triptych"
        + (
            f", starting from `{base}`."
            if base
            else "."
            if init_from is None
            else ", starting from another model that was trained with Triptych."
        ),
        "## How to load it",
        "```bash\npip install triptych\n```" if has_memory or kind != "text" else "",
        f"```python\n{loading_snippet(kind, name, tokenizer, has_memory)}```",
        "## How it was asked",
        how_asked(kind, tokenizer),
        "## Training",
        f"Class `{model.get('class_path')}`, {steps:,} steps. The complete settings are in "
        "`config.yaml`. `python train.py fit --config config.yaml` repeats the run.",
        "## Data",
        f"Class `{data.get('class_path')}`. Sources: "
        + (", ".join(f"`{source}`" for source in sources) or "those of the class")
        + "."
        + (f" Fingerprint of the training data: `{fingerprint}`." if fingerprint else ""),
        "## Validation",
        _table(metrics) if metrics else "The run did not validate.",
    ]
    text = "\n\n".join(part for part in parts if part)
    return ModelCard(f"---\n{card_data.to_yaml()}\n---\n\n{text}\n", ignore_metadata_errors=False)


def how_asked(kind: ExportKind, tokenizer: PreTrainedTokenizerBase | None) -> str:
    """Describe the form of the prompts in training."""
    if kind == "molecules":
        return "Nothing is asked: the model samples SMILES strings."
    if kind in ("agents", "thoughts"):
        return (
            "The task in `config.yaml` (`data.init_args.task`) writes the prompts of the agents. "
            "Each agent's model is a language model in a folder of its own."
        )
    template = tokenizer.chat_template if tokenizer is not None else None
    if tokenizer is None or template is None:
        return "Nothing was asked: the model continues text."
    named = isinstance(template, dict) and TRAINING_TEMPLATE in template
    messages = [{"role": "user", "content": EXAMPLE_QUESTION}]
    prompt = tokenizer.apply_chat_template(
        messages,
        tokenize=False,
        add_generation_prompt=True,
        chat_template=TRAINING_TEMPLATE if named else None,
    )
    how = "The tokenizer's chat template writes this form."
    if named:
        how = (
            "The tokenizer has this form under the name `training`: "
            '`apply_chat_template(..., chat_template="training")`. Its default is the chat '
            "template of the base model."
        )
    return f"```\n{prompt}\n```\n\n{how}"


# -- facts about the run --------------------------------------------------------------------------


def base_model(model: Mapping[str, Any], init_from: str | None) -> tuple[str | None, str | None]:
    """Return the pretrained model that a run started from, and its licence.

    Either is None if it is unknown. The licence is the one that the base model's card states.
    """
    named = next((str(value) for key, value in _walk(model) if key == "pretrained" and value), None)
    if named is not None:
        return named, _card_of(named).get("license")
    if init_from is None:
        return None, None
    card = _card_of(init_from)
    base = card.get("base_model")
    return (base[0] if isinstance(base, list) else base), card.get("license")


def data_sources(data: Mapping[str, Any]) -> Iterator[str]:
    """Yield the files and hub names that the data's settings name."""
    for _, value in _walk({"data": data}):
        if isinstance(value, dict) and {"path", "split", "columns"} <= value.keys():
            paths = value["path"] if isinstance(value["path"], list) else [value["path"]]
            yield from (str(path).removeprefix("hub:") for path in paths)


def is_hub_name(name: str) -> bool:
    """Tell whether a name is one on the hub, with its owner.

    >>> is_hub_name("allenai/c4"), is_hub_name("embedded"), is_hub_name("data/facts.jsonl")
    (True, False, False)
    """
    looks_so = re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", name) is not None
    is_file = Path(name).exists() or re.search(r"\.(jsonl|csv|parquet|txt|smi|json|gz)$", name)
    return looks_so and not is_file


def _card_of(name: str) -> dict[str, Any]:
    """Return the metadata on the card of a model, from its folder or the hub; empty if unknown."""
    if name in PACKAGED:  # a file that came with a Python package, without a card
        return {}
    path = Path(name) / CARD_FILE
    try:
        if not Path(name).is_dir():
            path = Path(hf_hub_download(name, CARD_FILE, etag_timeout=3))
        metadata: dict[str, Any] = ModelCard.load(path).data.to_dict()
    except Exception:  # no card, no network, no such name: all mean that nothing is known
        return {}
    return metadata


def _walk(node: Any) -> Iterator[tuple[str, Any]]:
    """Yield keys and values at all depths, the outermost first."""
    for key, value in node.items() if isinstance(node, dict) else enumerate(node):
        yield str(key), value
        if isinstance(value, dict | list):
            yield from _walk(value)


def _class_name(section: Mapping[str, Any]) -> str | None:
    return str(section["class_path"]).rpartition(".")[2] if section.get("class_path") else None


def _table(metrics: Mapping[str, float]) -> str:
    rows = [f"| `{name}` | {value:.4g} |" for name, value in metrics.items()]
    return "\n".join(["| metric | value |", "|---|---:|", *rows])
