"""Rows from the embedded default, local files or the hub, checked as they are read.

Every row is checked where it is read, so an error names the file, the line and the field. The
checked rows go to `datasets`: in memory (`read_records`) or as a stream (`stream_records`).
"""

import glob
import hashlib
import json
import re
import warnings
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import datasets

from triptych.datamodules.sources.data_paths import NoSuchDataError
from triptych.datamodules.sources.record_fields import Fields, pick_fields
from triptych.datamodules.sources.record_files import (
    FORMATS,
    BadRowError,
    Row,
    file_format,
    file_rows,
)

EmbeddedRows = Callable[[], list[dict[str, Any]]]
# Takes a row of converted fields; returns its fault ("field 'answers' is empty"), or None.
RowCheck = Callable[[dict[str, Any]], str | None]
# Takes a raw row and the source's `columns`; returns its values, in the fields that are read.
Adapt = Callable[[Row, Mapping[str, str]], dict[str, Any]]


@dataclass(frozen=True)
class RecordSource:
    """A source of rows.

    Args:
        path: "embedded" (the default, part of the repository), a local file or pattern
            (.jsonl .json .csv .parquet .txt .smi, each also with .gz), several of them, or a hub
            name such as "allenai/c4" (write "hub:name" for a name without an owner).
        split: Split of a hub data set.
        subset: Subset (configuration) of a hub data set; of the embedded default, where there are
            several.
        revision: Commit of a hub data set; null: the newest. A run without it cannot be resumed
            once the data set has changed.
        columns: The data's own name of a field, where it differs, as in {text: body}. Dots reach
            into nested columns: {answers: answer.aliases}.
        limit: Use only this many rows, the first ones.
        on_bad_row: What to do with a malformed row: "error" stops and names file, line and field;
            "skip" omits it and warns with the number of omitted rows.
        txt_lines: Field that each line of a .txt file holds; null: the file is one running text.
    """

    path: str | list[str] = "embedded"
    split: str = "train"
    subset: str | None = None
    revision: str | None = None
    columns: dict[str, str] = field(default_factory=dict)
    limit: int | None = None
    on_bad_row: Literal["error", "skip"] = "error"
    txt_lines: str | None = None

    def __post_init__(self) -> None:
        if self.limit is not None and self.limit < 1:
            raise ValueError(
                f"limit is {self.limit} for {describe(self)}: set it to at least 1, or null for all"
            )

    @property
    def is_embedded(self) -> bool:
        """Whether the rows are part of the repository."""
        return self.path == "embedded"

    @property
    def hub_name(self) -> str | None:
        """The data set's name on the hub, or None if it is embedded or local."""
        if isinstance(self.path, list) or self.is_embedded:
            return None
        if self.path.startswith("hub:"):
            return self.path.removeprefix("hub:")
        is_file = Path(self.path).exists() or file_format(self.path) is not None
        return self.path if not is_file and re.fullmatch(r"[\w.-]+/[\w.-]+", self.path) else None

    def files(self) -> list[Path]:
        """List the local files, patterns expanded, in a fixed order.

        Raises:
            NoSuchDataError: if a file is missing or a pattern matches nothing.
            ValueError: if a file has an unknown format.
        """
        files: list[Path] = []
        for path in [self.path] if isinstance(self.path, str) else self.path:
            matches = sorted(map(Path, glob.glob(path, recursive=True)))
            if Path(path).is_file():  # its name may contain a bracket or a star
                matches = [Path(path)]
            if not matches:
                raise NoSuchDataError(
                    f"no file at {path!r}: give a file that exists (relative paths start at the "
                    "working directory or at the data folder, which is data_dir or the "
                    'environment\'s TRIPTYCH_DATA), "hub:owner/name", or "embedded"'
                )
            files += matches
        for file in files:
            if file_format(file) is None:
                raise ValueError(
                    f"cannot read {str(file)!r}: its name must end in one of {', '.join(FORMATS)} "
                    "(or that and .gz)"
                )
        return files


def read_records(
    source: RecordSource,
    required: Fields,
    optional: Fields | None = None,
    embedded: EmbeddedRows | None = None,
    row_check: RowCheck | None = None,
    adapt: Adapt | None = None,
) -> datasets.Dataset:
    """Read all rows of a source into memory.

    Args:
        source: The source.
        required: Fields that every row must have, with their types: str, int, float, list[str].
        optional: Fields that may be missing or null, with their types; None where they are.
        embedded: Returns the rows of the embedded default.
        row_check: Finds further faults of a row.
        adapt: Brings rows of other formats to the fields.

    Returns:
        A data set with exactly the required and optional fields as columns.

    Raises:
        FileNotFoundError: if a file is missing.
        ValueError: if a row is malformed and not skipped, or no row is left.
    """
    optional = optional or {}
    kinds = {**required, **optional}
    columns: dict[str, list[Any]] = {name: [] for name in kinds}
    for row in iterate_records(source, required, optional, embedded, row_check, adapt):
        for name, column in columns.items():
            column.append(row[name])
    if not next(iter(columns.values())):
        raise ValueError(
            f"no rows in {describe(source)}: the source is empty; give one with at least one row"
        )
    features = datasets.Features({name: _feature(kind) for name, kind in kinds.items()})
    return datasets.Dataset.from_dict(columns, features=features)


def stream_records(
    source: RecordSource,
    required: Fields,
    optional: Fields | None = None,
    embedded: EmbeddedRows | None = None,
) -> datasets.IterableDataset:
    """Read the rows of a source one at a time; arguments and errors are those of `read_records`."""
    arguments = {
        "source": source,
        "required": required,
        "optional": optional or {},
        "embedded": embedded,
    }
    return datasets.IterableDataset.from_generator(iterate_records, gen_kwargs=arguments)


def iterate_records(
    source: RecordSource,
    required: Fields,
    optional: Fields,
    embedded: EmbeddedRows | None,
    row_check: RowCheck | None = None,
    adapt: Adapt | None = None,
) -> Iterator[dict[str, Any]]:
    """Yield checked rows, with exactly the required and optional fields."""
    num_read = 0
    skipped: list[str] = []
    with closing(_raw_rows(source, embedded)) as rows:
        for row in rows:
            try:
                if isinstance(row, BadRowError):
                    raise row
                if adapt is not None:
                    row = Row(row.place, adapt(row, source.columns))
                checked = pick_fields(row, source.columns, required, optional)
                if row_check is not None and (fault := row_check(checked)) is not None:
                    raise BadRowError(f"{row.place}: {fault}")
            except BadRowError as error:
                if source.on_bad_row == "error":
                    raise
                skipped.append(str(error))
                continue
            num_read += 1
            yield checked
            if num_read == source.limit:
                break
    if skipped:
        warnings.warn(
            f"skipped {len(skipped)} malformed of {len(skipped) + num_read} rows in "
            f"{describe(source)}; the first: {skipped[0]}",
            stacklevel=2,
        )


def source_fingerprint(source: RecordSource, embedded: EmbeddedRows | None = None) -> str:
    """Hash the contents of a source and its reading settings (sha256, hexadecimal).

    Local files and embedded rows are hashed by content, not by place; a hub data set is hashed by
    its name and revision.
    """
    digest = hashlib.sha256()
    how = [source.columns, source.limit, source.on_bad_row]
    digest.update(json.dumps(how + ([source.txt_lines] if source.txt_lines else [])).encode())
    if source.is_embedded:
        digest.update(json.dumps(_embedded_rows(embedded), sort_keys=True).encode())
    elif name := source.hub_name:
        revision = source.revision or _newest_revision(name)
        digest.update(json.dumps([name, source.subset, source.split, revision]).encode())
    else:
        for file in source.files():
            digest.update(f"{file_format(file)} {file.stat().st_size}\n".encode())
            with open(file, "rb") as stream:
                while block := stream.read(1 << 20):
                    digest.update(block)
    return digest.hexdigest()


def refuse_shared_files(
    train: Iterable[RecordSource], validation: Iterable[RecordSource] = ()
) -> None:
    """Refuse a local file that trains twice, or that both trains and validates.

    Args:
        train: Sources that train.
        validation: Sources that validate, except those that test recall of the training data.

    Raises:
        FileNotFoundError: if a local file is missing.
        ValueError: if a file is given twice for training, or for both.
    """
    train_files = [file for source in train for file in _local_files(source)]
    validation_files = {file for source in validation for file in _local_files(source)}
    for file in train_files:
        if train_files.count(file) > 1:
            raise ValueError(f"{file} is given twice for training: name it once")
        if file in validation_files:
            raise ValueError(
                f"{file} is given for both training and validation, which would validate on text "
                "seen in training: give another file for one of them"
            )


def _local_files(source: RecordSource) -> list[Path]:
    if source.is_embedded or source.hub_name:
        return []
    return [file.resolve() for file in source.files()]


def describe(source: RecordSource) -> str:
    """Name a source in an error message."""
    return repr(source.path) if isinstance(source.path, str) else ", ".join(map(repr, source.path))


def _raw_rows(
    source: RecordSource, embedded: EmbeddedRows | None
) -> Generator[Row | BadRowError, None, None]:
    if source.is_embedded:
        for number, values in enumerate(_embedded_rows(embedded), start=1):
            yield Row(f"embedded row {number}", values)
    elif name := source.hub_name:
        yield from _hub_rows(source, name)
    else:
        for file in source.files():
            yield from file_rows(file, source.txt_lines)


def _embedded_rows(embedded: EmbeddedRows | None) -> list[dict[str, Any]]:
    if embedded is None:
        raise ValueError('there is no embedded default here: give a file or "hub:owner/name"')
    return embedded()


def _hub_rows(source: RecordSource, name: str) -> Iterator[Row]:
    try:
        rows = datasets.load_dataset(
            name, source.subset, split=source.split, revision=source.revision, streaming=True
        )
    except Exception as error:  # the transport's error types differ between releases
        raise ValueError(
            f"cannot load {name!r} (subset {source.subset!r}, split {source.split!r}) from the hub "
            f"({error}): check the name and the network, or give a local file"
        ) from error
    for number, values in enumerate(rows, start=1):
        yield Row(f"hub data set {name!r}, row {number}", values)


def _newest_revision(name: str) -> str:
    from huggingface_hub import HfApi

    try:
        return HfApi().dataset_info(name).sha or "unknown"
    except Exception:  # offline; the error types differ between releases
        return "unknown"


def _feature(kind: type) -> Any:
    names = {str: "large_string", int: "int64", float: "float64", bool: "bool"}
    if get_origin(kind) is list:
        return datasets.List(_feature(get_args(kind)[0]))
    return datasets.Value(names[kind])
