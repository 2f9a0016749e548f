"""Upload of an exported folder to the hub; a failure is reported and never stops a run."""

from pathlib import Path

from huggingface_hub import HfApi
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]  # it does export it


def check_repository_name(name: str) -> None:
    """Refuse a name that the hub would refuse, before anything is trained.

    Raises:
        ValueError: if it is not of the form `owner/name` or `name`.
    """
    try:
        validate_repo_id(name)
    except HFValidationError as error:
        raise ValueError(
            f"export.push_to_hub is {name!r}, which is no name on the hub ({error}): give "
            "owner/name"
        ) from error


def upload(folder: Path, name: str, private: bool) -> str:
    """Create the repository unless it exists, and upload the folder in one commit.

    Args:
        folder: An exported folder.
        name: `owner/name`, or `name` for the owner of the token.
        private: Whether a new repository is private.

    Returns:
        Address of the commit.
    """
    api = HfApi()
    repository = api.create_repo(name, private=private, exist_ok=True)
    commit = api.upload_folder(
        folder_path=folder, repo_id=repository.repo_id, commit_message="Export of a training run"
    )
    return str(commit.commit_url)


def how_to_upload(folder: Path, name: str, private: bool) -> str:
    """Return the command that uploads the folder later.

    >>> how_to_upload(Path("runs/a/export"), "me/a", private=True)
    'hf upload me/a runs/a/export . --private'
    """
    return f"hf upload {name} {folder} ." + (" --private" if private else "")
