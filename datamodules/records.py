"""Rows from anywhere: the embedded default, local files, or a hub name; checked as they are read.

Every row is checked where it is read, so that an error can name the file, the line and the field.
The checked rows are handed to `datasets`: in memory (`read_records`) or as a stream
(`stream_records`).
"""

import csv
import glob
import gzip
import hashlib
import json
import re
import warnings
import zlib
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from io import TextIOWrapper
from pathlib import Path
from typing import IO, Any, Literal, TextIO, get_args, get_origin

import datasets
import pyarrow.parquet

FORMATS = (".jsonl", ".csv", ".parquet", ".txt", ".smi")
# A text file is cut at line ends into rows of about this many characters.
TEXT_ROW_CHARACTERS = 100_000

EmbeddedRows = Callable[[], list[dict[str, Any]]]
# Looks at a row whose fields have their types; says what is wrong with it ("field 'answers' is
# empty"), or None.
RowCheck = Callable[[dict[str, Any]], str | None]


@dataclass(frozen=True)
class RecordSource:
    """Where rows come from.

    Args:
        path: "embedded" (the default that lies in the repository), a local file or pattern
            (.jsonl .csv .parquet .txt .smi, each also with .gz), several of them, or a hub name
            such as "allenai/c4" (write "hub:name" for a name without an owner).
        split: Split of a hub data set.
        subset: Subset (configuration) of a hub data set.
        revision: Commit of a hub data set. Without it the newest is read, and a run cannot be
            resumed once that has changed.
        columns: The data's own column for each field we ask for, where they differ, as in
            {text: body}. Dots reach into nested columns: {answers: answer.aliases}.
        limit: Use only the first so many rows.
        on_bad_row: What to do with a malformed row: "error" stops and names file, line and field;
            "skip" leaves it out, counts, and warns with the count.
    """

    path: str | list[str] = "embedded"
    split: str = "train"
    subset: str | None = None
    revision: str | None = None
    columns: dict[str, str] = field(default_factory=dict)
    limit: int | None = None
    on_bad_row: Literal["error", "skip"] = "error"

    @property
    def is_embedded(self) -> bool:
        """Whether the rows lie in the repository."""
        return self.path == "embedded"

    @property
    def hub_name(self) -> str | None:
        """The hub's name for this data set, or None if it is embedded or local."""
        if isinstance(self.path, list) or self.is_embedded:
            return None
        if self.path.startswith("hub:"):
            return self.path.removeprefix("hub:")
        is_file = Path(self.path).exists() or file_format(self.path) is not None
        return self.path if not is_file and re.fullmatch(r"[\w.-]+/[\w.-]+", self.path) else None

    def files(self) -> list[Path]:
        """List the local files, patterns expanded, in a fixed order.

        Raises:
            FileNotFoundError: if a file is missing or a pattern matches nothing.
            ValueError: if a file is of a format we cannot read.
        """
        files: list[Path] = []
        for path in [self.path] if isinstance(self.path, str) else self.path:
            matches = sorted(map(Path, glob.glob(path, recursive=True)))
            if Path(path).is_file():  # also where its name holds a bracket or a star
                matches = [Path(path)]
            if not matches:
                raise FileNotFoundError(
                    f"no file at {path!r}: give a file that exists (relative paths start at the "
                    "data folder, which is data_dir or the environment's TRIPTYCH_DATA, or at the "
                    'working directory), "hub:owner/name", or "embedded"'
                )
            files += matches
        for file in files:
            if file_format(file) is None:
                raise ValueError(
                    f"cannot read {str(file)!r}: its name must end in one of {', '.join(FORMATS)} "
                    "(or that and .gz)"
                )
        return files


@dataclass(frozen=True)
class _Row:
    """A raw row and where it stands, for errors."""

    place: str
    values: dict[str, Any]


class _BadRowError(ValueError):
    """A malformed row; the message names file, line and field."""


def read_records(
    source: RecordSource,
    required: dict[str, type],
    optional: dict[str, type] | None = None,
    embedded: EmbeddedRows | None = None,
    row_check: RowCheck | None = None,
) -> datasets.Dataset:
    """Read all rows of a source into memory.

    Args:
        source: Where to read.
        required: Fields every row must have, with their types: str, int, float, list[str].
        optional: Fields that may be missing or null, with their types; None where they are.
        embedded: Gives the rows of the embedded default.
        row_check: Finds what else is wrong with a row.

    Returns:
        A data set with exactly the required and optional fields as columns.

    Raises:
        FileNotFoundError: if a file is missing.
        ValueError: if a row is malformed (unless it is to be skipped) or no row is left.
    """
    optional = optional or {}
    columns: dict[str, list[Any]] = {name: [] for name in required | optional}
    for row in iterate_records(source, required, optional, embedded, row_check):
        for name, column in columns.items():
            column.append(row[name])
    if not next(iter(columns.values())):
        raise ValueError(
            f"no rows in {describe(source)}: the source is empty; give one with at least one row"
        )
    features = datasets.Features({k: _feature(t) for k, t in (required | optional).items()})
    return datasets.Dataset.from_dict(columns, features=features)


def stream_records(
    source: RecordSource,
    required: dict[str, type],
    optional: dict[str, type] | None = None,
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
    required: dict[str, type],
    optional: dict[str, type],
    embedded: EmbeddedRows | None,
    row_check: RowCheck | None = None,
) -> Iterator[dict[str, Any]]:
    """Yield checked rows, with exactly the required and optional fields."""
    num_read, skipped = 0, []
    rows = _raw_rows(source, embedded)
    with closing(rows):
        while source.limit is None or num_read < source.limit:
            try:
                if (row := next(rows, None)) is None:
                    break
                checked = _check(row, source.columns, required, optional)
                if row_check is not None and (fault := row_check(checked)) is not None:
                    raise _BadRowError(f"{row.place}: {fault}")
            except _BadRowError as error:
                if source.on_bad_row == "error":
                    raise
                skipped.append(str(error))
                continue
            num_read += 1
            yield checked
    if skipped:
        warnings.warn(
            f"skipped {len(skipped)} malformed of {len(skipped) + num_read} rows in "
            f"{describe(source)}; the first: {skipped[0]}",
            stacklevel=2,
        )


def source_fingerprint(source: RecordSource, embedded: EmbeddedRows | None = None) -> str:
    """Hash what a source holds and how it is read (sha256, hexadecimal).

    Local files and embedded rows are hashed by content, wherever they lie; a hub data set by its
    name and revision.
    """
    digest = hashlib.sha256()
    digest.update(json.dumps([source.columns, source.limit, source.on_bad_row]).encode())
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


def describe(source: RecordSource) -> str:
    """Name a source in an error message."""
    return repr(source.path) if isinstance(source.path, str) else ", ".join(map(repr, source.path))


def file_format(path: str | Path) -> str | None:
    """Return the format in a file's name (without .gz), or None if it is none of ours.

    >>> file_format("books.jsonl.gz"), file_format("zinc.csv"), file_format("allenai/c4")
    ('.jsonl', '.csv', None)
    """
    suffix = Path(str(path).removesuffix(".gz")).suffix
    return suffix if suffix in FORMATS else None


def _raw_rows(source: RecordSource, embedded: EmbeddedRows | None) -> "_RawRows":
    if source.is_embedded:
        rows = enumerate(_embedded_rows(embedded), start=1)
        return _RawRows(_Row(f"embedded row {number}", row) for number, row in rows)
    if name := source.hub_name:
        return _RawRows(_hub_rows(source, name))
    return _RawRows(*[_file_rows(file) for file in source.files()])


class _RawRows:
    """Chain row iterators such that a bad row does not end the chain, as it ends a generator."""

    def __init__(self, *parts: Iterator["_Row | _BadRowError"]) -> None:
        self._parts = list(parts)

    def __next__(self) -> _Row:
        while self._parts:
            item = next(self._parts[0], None)
            if item is None:
                self._parts.pop(0)
            elif isinstance(item, _BadRowError):
                raise item
            else:
                return item
        raise StopIteration

    def __iter__(self) -> "_RawRows":
        return self

    def close(self) -> None:
        for part in self._parts:
            part.close()


def _embedded_rows(embedded: EmbeddedRows | None) -> list[dict[str, Any]]:
    if embedded is None:
        raise ValueError('there is no embedded default here: give a file or "hub:owner/name"')
    return embedded()


def _hub_rows(source: RecordSource, name: str) -> Iterator[_Row]:
    try:
        rows = datasets.load_dataset(
            name, source.subset, split=source.split, revision=source.revision, streaming=True
        )
    except (OSError, ValueError) as error:
        raise type(error)(
            f"cannot load {name!r} (subset {source.subset!r}, split {source.split!r}) from the "
            f"hub: {error}\nCheck the name and the network, or give a local file"
        ) from error
    for number, values in enumerate(rows, start=1):
        yield _Row(f"hub data set {name!r}, row {number}", values)


def _newest_revision(name: str) -> str:
    from huggingface_hub import HfApi

    try:
        return HfApi().dataset_info(name).sha or "unknown"
    except OSError:  # offline, or a mirror without the interface: the name has to do
        return "unknown"


def _file_rows(file: Path) -> Iterator["_Row | _BadRowError"]:
    suffix = file_format(file)
    if suffix == ".parquet":
        yield from _parquet_rows(file)
        return
    read = {".csv": _csv_rows, ".txt": _txt_rows, ".smi": _smi_rows}
    try:
        with _open(file) as stream:
            if suffix == ".jsonl":
                yield from _jsonl_rows(file, stream)
            else:
                # Only csv tells line ends within quotes from those between rows.
                newline = "" if suffix == ".csv" else None
                with TextIOWrapper(stream, "utf-8", newline=newline) as text:
                    yield from read[suffix](file, text)
    except UnicodeDecodeError as error:
        raise ValueError(f"{file} is not UTF-8 text ({error}): convert it to UTF-8") from error
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise ValueError(f"{file} is not a whole gzip file ({error}): fetch it again") from error


def _open(file: Path) -> IO[bytes]:
    return gzip.open(file, "rb") if file.suffix == ".gz" else open(file, "rb")


def _jsonl_rows(file: Path, stream: IO[bytes]) -> Iterator["_Row | _BadRowError"]:
    for number, line in enumerate(stream, start=1):
        if not line.strip():
            continue
        place = f"{file}, line {number}"
        try:
            values = json.loads(line)
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            yield _BadRowError(f"{place}: not valid JSON ({error}); each line must be one object")
            continue
        if isinstance(values, dict):
            yield _Row(place, values)
        else:
            kind = type(values).__name__
            yield _BadRowError(f"{place}: expected a JSON object with named fields, got {kind}")


def _csv_rows(file: Path, text: TextIO) -> Iterator["_Row | _BadRowError"]:
    reader = csv.DictReader(text)
    while True:
        try:
            values = next(reader, None)
        except csv.Error as error:
            raise ValueError(
                f"{file}, line {reader.line_num + 1}: not valid CSV ({error}); mend the line, or "
                "write the rows as .jsonl"
            ) from error
        if values is None:
            return
        place = f"{file}, line {reader.line_num}"
        if None in values or None in values.values():
            yield _BadRowError(
                f"{place}: the number of fields differs from the head's {len(reader.fieldnames)} "
                f"({', '.join(reader.fieldnames)})"
            )
        else:
            yield _Row(place, {name: value or None for name, value in values.items()})


def _txt_rows(file: Path, text: TextIO) -> Iterator[_Row]:
    """Yield pieces of about `TEXT_ROW_CHARACTERS`, cut at line ends: the whole file is one text."""
    first_line = 1
    while lines := text.readlines(TEXT_ROW_CHARACTERS):
        yield _Row(f"{file}, line {first_line}", {"text": "".join(lines)})
        first_line += len(lines)


def _smi_rows(file: Path, text: TextIO) -> Iterator[_Row]:
    for number, line in enumerate(text, start=1):
        if line.strip():
            smiles, _, name = line.strip().partition(" ") if " " in line else line.partition("\t")
            yield _Row(f"{file}, line {number}", {"smiles": smiles.strip(), "name": name.strip()})


def _parquet_rows(file: Path) -> Iterator[_Row]:
    number = 0
    with _open(file) as stream:
        for batch in pyarrow.parquet.ParquetFile(stream).iter_batches(batch_size=1024):
            for values in batch.to_pylist():
                number += 1
                yield _Row(f"{file}, row {number}", values)


def _check(
    row: _Row, columns: dict[str, str], required: dict[str, type], optional: dict[str, type]
) -> dict[str, Any]:
    """Pick the fields we want and convert them to their types."""
    checked = {}
    for name, kind in (required | optional).items():
        value: Any = row.values
        for key in columns.get(name, name).split("."):
            value = value.get(key) if isinstance(value, dict) else None
        if value is None and name in required:
            raise _BadRowError(
                f"{row.place}: field {columns.get(name, name)!r} is missing; the row has "
                f"{', '.join(map(str, row.values)) or 'no fields'} (`columns` renames fields)"
            )
        checked[name] = None if value is None else _convert(value, kind, row.place, name)
    return checked


def _convert(value: Any, kind: type, place: str, name: str) -> Any:
    if get_origin(kind) is list:
        converted = _as_list(value)
        if converted is not None and all(isinstance(i, get_args(kind)) for i in converted):
            return converted
    elif kind in (int, float):
        if (number := _as_number(value, kind)) is not None:
            return number
    elif isinstance(value, kind):
        return value
    wanted = str(kind) if get_origin(kind) else kind.__name__
    shown = repr(value) if len(repr(value)) <= 60 else repr(value)[:57] + "..."
    raise _BadRowError(
        f"{place}: field {name!r} must be {wanted}, got {type(value).__name__} {shown}"
    )


def _as_list(value: Any) -> list[Any] | None:
    """Read a list, a list written as JSON (as in a CSV cell), or one item in place of a list."""
    if isinstance(value, str):
        try:
            value = json.loads(value) if value.startswith("[") else [value]
        except json.JSONDecodeError:
            value = [value]
    return value if isinstance(value, list) else None


def _as_number(value: Any, kind: type) -> int | float | None:
    """Read a number, also one written as text; None where something would be lost."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        number = kind(value)
    except (ValueError, OverflowError):
        return None
    return None if isinstance(value, float) and number != value else number


def _feature(kind: type) -> Any:
    names = {str: "large_string", int: "int64", float: "float64", bool: "bool"}
    if get_origin(kind) is list:
        return datasets.List(_feature(get_args(kind)[0]))
    return datasets.Value(names[kind])
