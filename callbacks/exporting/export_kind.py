"""What an exported folder holds: a language model, a model of molecules, agents, or thoughts."""

from pathlib import Path
from typing import Literal

from triptych.models.adapter_folder import is_adapter_folder
from triptych.models.commune.agents import AGENTS_FILE
from triptych.models.commune.thought_system import SYSTEM_FILE
from triptych.models.diversify.molecules.smiles_rnn import is_smiles_rnn
from triptych.models.host.checked_folder import read_settings

ExportKind = Literal["text", "molecules", "agents", "thoughts", "other"]

# The unknown token of `smiles_tokenizer.atomwise_tokenizer`.
_SMILES_UNKNOWN = "<|unknown|>"


def kind_of_export(folder: Path) -> ExportKind:
    """Tell what an exported folder holds, by its files."""
    if (folder / SYSTEM_FILE).is_file():
        return "thoughts"
    if (folder / AGENTS_FILE).is_file():
        return "agents"
    if is_smiles_rnn(folder) or _unknown_token(folder) == _SMILES_UNKNOWN:
        return "molecules"
    is_text = (folder / "config.json").is_file() or is_adapter_folder(folder)
    return "text" if is_text else "other"


def _unknown_token(folder: Path) -> str | None:
    path = folder / "tokenizer_config.json"
    if not path.is_file():
        return None
    token: str | None = read_settings(path).get("unk_token")
    return token
