"""`--data FILE` replaces the data of the configuration, also where both are of one class."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from jsonargparse._typehints import ActionTypeHint

_REPLACED = "--data"


@contextmanager
def data_files_replace() -> Iterator[None]:
    """Let `--data FILE` begin anew instead of being merged over the data said before it.

    Merged, the settings that only the former data have would stay: text from the hub replaced by
    local files would still be streamed, and read the hub's split of them. Options such as
    `--data.init_args.batch_size 4` are merged over the file as before.
    """
    action_type: Any = ActionTypeHint
    parsers_own = action_type.__call__

    def call(action: Any, *args: Any, **options: Any) -> Any:
        if len(args) == 4:
            _, parsed, value, option = args
            if option == _REPLACED and isinstance(value, str) and Path(value).is_file():
                parsed.pop(action.dest, None)
        return parsers_own(action, *args, **options)

    action_type.__call__ = call
    try:
        yield
    finally:
        action_type.__call__ = parsers_own
