"""From what a user names to the folder with the model."""

import json
from pathlib import Path

from huggingface_hub import snapshot_download

from triptych.callbacks.atomic_file import recover_folder
from triptych.callbacks.exporting.export_kind import ExportKind, kind_of_export
from triptych.callbacks.exporting.model_card import is_hub_name
from triptych.models.commune.agents import AGENTS_FILE

_FILES = ("*.json", "*.safetensors", "*.jinja", "*.txt", "*.model", "config.yaml")
_CHECKPOINTS = (".ckpt", ".pt", ".pth", ".safetensors", ".bin")


def find_export(source: str) -> Path:
    """Find the folder of a model.

    Args:
        source: The folder, the directory of its run, or a name on the hub, which is downloaded.

    Raises:
        FileNotFoundError: if there is no such folder, or the run has no export.
        ValueError: if it is a file, a folder without a model, or unknown to the hub.
    """
    path = Path(source)
    recover_folder(path)
    if path.is_file():
        raise ValueError(f"{source} is {_file_kind(path)}: give the folder `export` of its run")
    if not path.is_dir():
        return _download(source)
    if kind_of_export(path) != "other":
        return path
    inside = path / "export"
    recover_folder(inside)
    if inside.is_dir() and kind_of_export(inside) != "other":
        return inside
    if (path / "checkpoints").is_dir() or (path / "summary.json").is_file():
        raise FileNotFoundError(
            f"the run {source} has no export: it ended before its first one, or it exports nothing"
        )
    if path.name == "checkpoints":
        raise ValueError(f"{source} holds checkpoints: give the folder `export` beside it")
    raise ValueError(
        f"{source} has no model (config.json is missing): give the folder `export` of a run, or a "
        "folder that save_pretrained wrote"
    )


def refuse_other_kinds(folder: Path, accepted: ExportKind) -> None:
    """Say what to do with an export that a command cannot use.

    Raises:
        ValueError: if the folder is of another kind.
    """
    kind = kind_of_export(folder)
    if kind == accepted:
        return
    raise ValueError(f"{folder} holds {_OTHERS[kind](folder)}")


def _molecules(folder: Path) -> str:
    return (
        "a model of molecules, which answers no questions. To sample from it: python train.py "
        f"predict {folder} --samples 100 --output molecules.smi"
    )


def _agents(folder: Path) -> str:
    models = json.loads((folder / AGENTS_FILE).read_text())["models"]
    own = [str(folder / name) if (folder / name).is_dir() else name for name in models]
    return (
        "agents, which answer the questions of their task together: python train.py predict "
        f"{folder} --input questions.jsonl --output answers.jsonl, or python train.py ask {folder} "
        f"QUESTION. The language model of an agent "
        f"alone can be asked: {', '.join(dict.fromkeys(own))}"
    )


_OTHERS = {
    "molecules": _molecules,
    "agents": _agents,
    "thoughts": lambda folder: f"an autoencoder of thoughts and {_agents(folder)}",
    "text": lambda _: "a language model, not a model of molecules: give --input with its prompts",
}


def _file_kind(path: Path) -> str:
    if path.suffix == ".ckpt":
        return "a checkpoint"
    return "a file of weights" if path.suffix in _CHECKPOINTS else "a file"


def _download(name: str) -> Path:
    if not is_hub_name(name) and ("/" in name or name.startswith(".")):
        raise FileNotFoundError(f"there is no folder {name}: give the folder `export` of a run")
    try:
        return Path(snapshot_download(name, allow_patterns=list(_FILES)))
    except Exception as error:  # of the network, of the hub, or of the name
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise ValueError(
            f"there is no folder {name}, and the hub gives no model of this name ({reason})"
        ) from error
