"""Shows what a constructor said, where the parser would only say what it had expected."""

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any


class ConstructorErrors:
    """Keeps the first error raised by a constructor, to be shown in place of the parser's.

    jsonargparse tries every member of a union such as ``MemoryConfig | None`` and swallows the
    errors of each; all that is left of ``ValueError: k is larger than ...`` is ``Expected a
    <class 'NoneType'>``.
    """

    def __init__(self) -> None:
        self._first: Exception | None = None

    def watch(self, construct: Callable[..., Any]) -> Callable[..., Any]:
        """Make an instantiator for jsonargparse that remembers what ``construct`` raised first."""

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
        """Raise the remembered error in place of one that only follows from it."""
        try:
            yield
        except Exception as error:
            if self._first is None or self._first is error:
                raise
            raise self._first from None


def construct(class_type: type, *args: Any, **kwargs: Any) -> Any:
    """Construct an object in the plain way."""
    return class_type(*args, **kwargs)
