"""Slot deltas in folders and on the Hugging Face hub, each with a card that says what it is."""

from pathlib import Path

from huggingface_hub import HfApi, ModelCard, ModelCardData

DELTA_FILE = "slot_delta.safetensors"
CARD_FILE = "README.md"
_FACTS_SHOWN = 20

_USE = """\
```python
from triptych.models.remember.ledger.slot_deltas import SlotDelta
from triptych.models.remember.memory_lm import load_memory_lm

model = load_memory_lm("runs/base/export")
SlotDelta.from_pretrained("{name}").apply(model)
```"""


def delta_file(source: str | Path, file: str | None, revision: str | None) -> Path:
    """Find the file of a delta; one on the hub is downloaded.

    Args:
        source: A file, a folder, or a name on the hub.
        file: File in the folder or repository; None: `slot_delta.safetensors`, or the only entry in
            a folder.
        revision: Commit, tag or branch on the hub; None: the newest.

    Raises:
        FileNotFoundError: if the folder has no such file.
        ValueError: if the folder has several entries, or the hub gives no such file.
    """
    path = Path(source)
    if path.is_file():
        return path
    if path.is_dir():
        return _in_folder(path, file)
    try:
        return Path(HfApi().hf_hub_download(str(source), file or DELTA_FILE, revision=revision))
    except Exception as error:  # of the network, of the hub, or of the name
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise ValueError(
            f"there is no folder {source}, and the hub gives no {file or DELTA_FILE} of this name "
            f"({reason})"
        ) from error


def _in_folder(folder: Path, file: str | None) -> Path:
    if (found := folder / (file or DELTA_FILE)).is_file():
        return found
    entries = sorted(folder.glob("entry_*.safetensors"))
    if file is not None or not entries:
        raise FileNotFoundError(f"there is no slot delta {found}")
    if len(entries) > 1:
        raise ValueError(
            f"{folder} has {len(entries)} entries: name one by file={entries[0].name!r}, or give "
            "Ledger.open(folder).squashed(), which is all of them as one delta"
        )
    return entries[0]


def delta_card(name: str, summary: str, facts: tuple[str, ...], around: str) -> ModelCard:
    """Write the card of a delta.

    Args:
        name: Its name on the hub, or a folder.
        summary: What it holds.
        facts: What its facts say, or else their ids.
        around: Fingerprint of the models that it fits.
    """
    data = ModelCardData(library_name="triptych", tags=["triptych", "memory-layers", "slot-delta"])
    listed = [f"- {fact}" for fact in facts[:_FACTS_SHOWN]]
    if len(facts) > _FACTS_SHOWN:
        listed.append(f"- and {len(facts) - _FACTS_SHOWN:,} more")
    parts = [
        "# A slot delta",
        f"{summary} It fits models with memory layers whose parameters around the value tables "
        f"have the fingerprint `{around}`; any other model is refused.",
        "## How to apply it",
        "```bash\npip install triptych\n```",
        _USE.format(name=name),
        "`SlotDelta.revert` takes it back, to the bit.",
        *(["## Facts", "\n".join(listed)] if facts else []),
    ]
    text = "\n\n".join(parts)
    return ModelCard(f"---\n{data.to_yaml()}\n---\n\n{text}\n", ignore_metadata_errors=False)


def push_folder(folder: str | Path, name: str, private: bool) -> str:
    """Upload a folder with a delta in one commit; return the address of the commit."""
    api = HfApi()
    repository = api.create_repo(name, private=private, exist_ok=True)
    commit = api.upload_folder(
        folder_path=folder, repo_id=repository.repo_id, commit_message="A slot delta"
    )
    return str(commit.commit_url)
