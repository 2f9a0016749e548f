"""What to do about a checkpoint that cannot be gone on with."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

# Lightning takes these in place of a file.
NAMED_CHECKPOINTS = ("best", "last", "hpc", "registry")


def refuse_missing_checkpoint(ckpt_path: str | None) -> None:
    """Look for the checkpoint before anything is built.

    Raises:
        FileNotFoundError: if there is none.
    """
    if ckpt_path is None or "://" in ckpt_path or ckpt_path.startswith(NAMED_CHECKPOINTS):
        return
    if not Path(ckpt_path).exists():
        raise FileNotFoundError(
            f"--ckpt_path: there is no checkpoint {ckpt_path}; a run keeps its own as "
            "checkpoints/last.ckpt and, with checkpoint.monitor, checkpoints/best.ckpt"
        )


@contextmanager
def readable_checkpoint_errors(ckpt_path: str | None) -> Iterator[None]:
    """Say in one sentence that a checkpoint is of another model.

    Raises:
        ValueError: in place of what torch says about each tensor.
    """
    try:
        yield
    except RuntimeError as error:
        text = str(error)
        if ckpt_path is None or not text.startswith("Error(s) in loading state_dict"):
            raise
        raise ValueError(
            f"--ckpt_path: {ckpt_path} is of another model than this run's: {_difference(text)}. "
            "Use the model and data settings in the config.yaml of the checkpoint's run, or start "
            "a new run from its exported model with model.init_args.init_from"
        ) from error


def _difference(text: str) -> str:
    """Shorten torch's list of every parameter that differs."""
    sizes = re.findall(r"size mismatch for (\S+): .*?Size\((.*?)\).*?Size\((.*?)\)", text)
    if sizes:
        name, theirs, ours = sizes[0]
        return f"{len(sizes)} parameters differ in size; {name} is {theirs} there, {ours} here"
    kinds = {"Missing": "lacks", "Unexpected": "has"}
    for kind, verb in kinds.items():
        names = re.search(rf'{kind} key\(s\) in state_dict: "([^"]+)"', text)
        if names:
            return f"it {verb} {names[1]}"
    return text.splitlines()[-1].strip()
