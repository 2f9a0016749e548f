"""Reports run guarded: a picture that fails costs the picture, never the run."""

import functools
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, ParamSpec

from lightning.pytorch.utilities.rank_zero import rank_zero_debug, rank_zero_warn

Arguments = ParamSpec("Arguments")


@contextmanager
def only_a_warning(what: str) -> Iterator[None]:
    """Turn an error of a report into a warning.

    Args:
        what: What is left out, as in "figures/anchors.png".
    """
    try:
        yield
    except Exception as error:  # whatever a drawing library meets in a user's numbers
        rank_zero_debug(traceback.format_exc())
        rank_zero_warn(
            f"{what} is left out ({type(error).__name__}: {error}). The run itself goes on, and "
            "its numbers are in metrics.csv"
        )


def reports(hook: Callable[Arguments, None]) -> Callable[Arguments, None]:
    """Guard a hook of a callback that only reports."""

    @functools.wraps(hook)
    def guarded(*args: Arguments.args, **kwargs: Arguments.kwargs) -> None:
        callback: Any = args[0]
        with only_a_warning(f"the report of {type(callback).__name__}"):
            hook(*args, **kwargs)

    return guarded
