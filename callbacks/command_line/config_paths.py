"""Where relative paths on the command line and in configurations start.

- A path of a configuration starts at the folder of the file that names it, such as
  `data: ../data/x.yaml`. On the command line it starts at the working directory. For `init_from`
  the working directory comes first, and then the folder of the file.
- A path of data starts at the working directory and, if nothing is there, at the data folder:
  `triptych.datamodules.sources.data_paths`. Patterns such as `corpus/*.jsonl.gz` do so as well.
- `configs/...` on the command line, in a configuration and in `init_from` is also found in the
  package: `packaged_configs`.
- All other paths start at the working directory.
"""

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from jsonargparse import Namespace

from triptych import ROOT
from triptych.callbacks.command_line.packaged_configs import SHIPPED
from triptych.callbacks.command_line.yaml_place import config_files, folder_of
from triptych.datamodules.sources.data_paths import NoSuchDataError


@contextmanager
def importable_beside_configs(words: Sequence[str]) -> Iterator[None]:
    """Let Python also find modules in the folders of the configurations of a command line.

    They come last on Python's path, after the working directory and the installed packages.
    """
    folders = [str(file.parent.resolve()) for file in config_files(words)]
    new = [
        folder
        for folder in dict.fromkeys(folders)
        if folder not in sys.path and not Path(folder).is_relative_to(SHIPPED)
    ]
    sys.path += new
    try:
        yield
    finally:
        for folder in set(new) & set(sys.path):
            sys.path.remove(folder)


def locate_starts(options: Namespace, files: Sequence[Path]) -> None:
    """Replace each `init_from` that starts at the folder of its file; changed in place.

    Args:
        options: Options of a run, with what they start from at any depth.
        files: Its configuration files in order.
    """
    for key, start in options.items():
        if key.rpartition(".")[2] != "init_from" or not isinstance(start, str):
            continue
        if Path(start).exists():
            continue
        folder = _folder_of_part(options, key, start) or folder_of(key.split("."), start, files)
        if folder is not None and (folder / start).exists():
            options[key] = os.path.normpath(folder / start)


def _folder_of_part(options: Namespace, key: str, start: str) -> Path | None:
    """Return the folder of the file of a part, as in `--model x.yaml`, if the start is in it."""
    outer, _, inner = key.partition(".")
    part = options.get(outer)
    file = part.get("__path__") if isinstance(part, Namespace) else None
    if file is None or not inner:
        return None
    return folder_of(inner.split("."), start, [Path(file.absolute)])


@contextmanager
def built_in_data_offered(options: Namespace) -> Iterator[None]:
    """Name the embedded data if a configuration asks for local data that are not there.

    Args:
        options: Options of the run.

    Raises:
        NoSuchDataError: the error of the data, with the option that needs no files.
    """
    try:
        yield
    except NoSuchDataError as error:
        twin = _embedded_twin(options)
        if twin is None:
            raise
        raise NoSuchDataError(f"{error}. Without files of your own, use --data {twin}") from error


def _embedded_twin(options: Namespace) -> Path | None:
    """Return `x.yaml` or `x_embedded.yaml` beside the `x_local.yaml` that names the data."""
    file = options.data.get("__path__") if options.data else None
    if file is None or not Path(file).stem.endswith("_local"):
        return None
    local = Path(file.absolute).resolve()
    stem = local.stem.removesuffix("_local")
    for twin in (local.with_stem(stem), local.with_stem(f"{stem}_embedded")):
        if twin.is_file():
            return twin.relative_to(ROOT) if twin.is_relative_to(SHIPPED) else twin
    return None
