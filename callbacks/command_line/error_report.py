"""One message on stderr and an exit code for each user error."""

import functools
import os
import re
import sys
from argparse import ArgumentError
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lightning.fabric.utilities.exceptions import MisconfigurationException

from triptych.callbacks.command_line.init_from import StageError
from triptych.models.host.secrets import without_secrets

# Errors that a user can fix by changing a file or an option. All others are bugs of ours or of a
# library and keep their traceback.
USER_ERRORS = (
    ValueError,
    OSError,
    ModuleNotFoundError,
    MisconfigurationException,
    ArithmeticError,  # numbers that are not finite: of the loss, a parameter or a policy
    StageError,
)


@contextmanager
def one_message_per_error() -> Iterator[None]:
    """End the process at a user error: exit code 2 for options, 1 for all others.

    ``TRIPTYCH_DEBUG=1`` keeps the traceback.
    """
    try:
        yield
    except (ArgumentError, *USER_ERRORS) as error:
        if os.environ.get("TRIPTYCH_DEBUG", "0") not in ("", "0"):
            raise
        print(
            f"\nerror: {without_secrets(str(error))}\n(TRIPTYCH_DEBUG=1 shows the traceback)",
            file=sys.stderr,
        )
        sys.exit(2 if isinstance(error, ArgumentError) else 1)


class ConstructorErrors:
    """Keeps the first error of a constructor, to show it instead of the parser's.

    jsonargparse tries every member of a union such as ``MemoryConfig | None`` and hides the errors
    of each: ``ValueError: k is larger than ...`` becomes ``Expected a <class 'NoneType'>``.
    """

    def __init__(self) -> None:
        self._first: Exception | None = None

    def watch(self, construct: Callable[..., Any]) -> Callable[..., Any]:
        """Make an instantiator for jsonargparse that keeps the first error of ``construct``."""

        @functools.wraps(construct)
        def watched(*args: Any, **kwargs: Any) -> Any:
            try:
                return construct(*args, **kwargs)
            except Exception as error:
                self._first = self._first or error
                raise

        return watched

    @contextmanager
    def shown(self) -> Iterator[None]:
        """Raise the kept error instead of one that only follows from it."""
        try:
            yield
        except Exception as error:
            if self._first is None or self._first is error:
                raise
            raise self._first from None


def construct(class_type: type, *args: Any, **kwargs: Any) -> Any:
    """Call a class with its arguments."""
    return class_type(*args, **kwargs)


# Lightning accepts these names instead of a file.
NAMED_CHECKPOINTS = ("best", "last", "hpc", "registry")


def refuse_missing_checkpoint(ckpt_path: str | None) -> None:
    """Check for the checkpoint before anything is built.

    Raises:
        FileNotFoundError: if there is no such file.
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
    """Report in one sentence that a checkpoint belongs to another model.

    Raises:
        ValueError: instead of torch's message about each tensor.
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
