"""`configs/...yaml` of this package, found from any folder."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jsonargparse._typehints
from jsonargparse.typing import Path_fr

from triptych import ROOT

SHIPPED = ROOT / "configs"
_parser: Any = jsonargparse._typehints


def shipped(word: str) -> str:
    """Locate `configs/...yaml` in this package where the working directory has no such file."""
    option, equals, path = word.rpartition("=")
    is_shipped = path.startswith("configs/") and (ROOT / path).is_file()
    return f"{option}{equals}{ROOT / path}" if is_shipped and not Path(path).exists() else word


def included_file(name: str, folder: Path, here: Path | None = None) -> Path:
    """Return the configuration that a value of another configuration names.

    Args:
        name: The value, such as `../data/x.yaml`.
        folder: Folder of the configuration with the value.
        here: The working directory of the command; None: that of the process.

    Returns:
        The file in that folder. If there is none, `configs/...` is also looked for in the working
        directory and in the package.
    """
    beside = folder / name
    if name.startswith("configs/"):
        places = (beside, (here or Path.cwd()) / name, ROOT / name)
        return next((place for place in places if place.is_file()), beside)
    return beside


@contextmanager
def packaged_configs_found() -> Iterator[None]:
    """Let `data: configs/data/x.yaml` in a configuration be found as `included_file` does."""
    here = Path.cwd()  # while it reads a file, the parser is in the folder of that file
    parsers_own = _parser.parse_value_or_config

    def parse(value: Any, *args: Any, **options: Any) -> Any:
        if isinstance(value, str) and value.startswith("configs/"):
            try:
                Path_fr(value)  # beside the file that names it
            except TypeError:
                found = included_file(value, Path(), here)
                value = str(found) if found.is_file() else value
        return parsers_own(value, *args, **options)

    _parser.parse_value_or_config = parse
    try:
        yield
    finally:
        _parser.parse_value_or_config = parsers_own
