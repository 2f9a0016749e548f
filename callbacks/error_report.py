"""Turns an error of the user's into one message on stderr and an exit code."""

import os
import sys
from argparse import ArgumentError
from collections.abc import Iterator
from contextlib import contextmanager

from lightning.fabric.utilities.exceptions import MisconfigurationException

from callbacks.init_from import StageError
from callbacks.nan_guard import NonFiniteError

# What a user can mend by changing a file or an option. Anything else is a bug of ours or of a
# library, and keeps its traceback.
USER_ERRORS = (
    ValueError,
    OSError,
    ModuleNotFoundError,
    MisconfigurationException,
    NonFiniteError,
    StageError,
)


@contextmanager
def one_message_per_error() -> Iterator[None]:
    """End the process on a user's error: exit code 2 for options, 1 for everything else.

    ``TRIPTYCH_DEBUG=1`` keeps the traceback.
    """
    try:
        yield
    except (ArgumentError, *USER_ERRORS) as error:
        if os.environ.get("TRIPTYCH_DEBUG", "0") not in ("", "0"):
            raise
        print(f"\nerror: {error}\n(TRIPTYCH_DEBUG=1 shows the traceback)", file=sys.stderr)
        sys.exit(2 if isinstance(error, ArgumentError) else 1)
