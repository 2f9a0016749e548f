"""Rows of local files, each with its place: .jsonl .csv .parquet .txt .smi, and .gz of them."""

import csv
import gzip
import json
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from io import TextIOWrapper
from pathlib import Path
from typing import IO, Any, TextIO

import pyarrow.parquet

FORMATS = (".jsonl", ".csv", ".parquet", ".txt", ".smi")
# A text file is cut at line ends into rows of about this many characters.
TEXT_ROW_CHARACTERS = 100_000


@dataclass(frozen=True)
class Row:
    """A raw row and where it stands, for errors."""

    place: str
    values: dict[str, Any]


class BadRowError(ValueError):
    """A malformed row; the message names file, line and field."""


def file_format(path: str | Path) -> str | None:
    """Return the format in a file's name (without .gz), or None if it is none of ours.

    >>> file_format("books.jsonl.gz"), file_format("zinc.csv"), file_format("allenai/c4")
    ('.jsonl', '.csv', None)
    """
    suffix = Path(str(path).removesuffix(".gz")).suffix
    return suffix if suffix in FORMATS else None


def file_rows(file: Path, txt_lines: str | None = None) -> Iterator[Row | BadRowError]:
    """Yield the rows of a file; a malformed one as an error, which the caller may pass over.

    Args:
        file: The file.
        txt_lines: Field that each line of a .txt file holds; None: the file is one running text.

    Raises:
        ValueError: if the file as a whole cannot be read; it and what to do are named.
    """
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
                    if suffix == ".txt" and txt_lines is not None:
                        yield from _line_rows(file, text, txt_lines)
                    else:
                        yield from read[suffix](file, text)
    except UnicodeDecodeError as error:
        raise ValueError(f"{file} is not UTF-8 text ({error}): convert it to UTF-8") from error
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise ValueError(f"{file} is not a whole gzip file ({error}): fetch it again") from error


def _open(file: Path) -> IO[bytes]:
    return gzip.open(file, "rb") if file.suffix == ".gz" else open(file, "rb")


def _jsonl_rows(file: Path, stream: IO[bytes]) -> Iterator[Row | BadRowError]:
    for number, line in enumerate(stream, start=1):
        if not line.strip():
            continue
        place = f"{file}, line {number}"
        try:
            values = json.loads(line)
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            yield BadRowError(f"{place}: not valid JSON ({error}); each line must be one object")
            continue
        if isinstance(values, dict):
            yield Row(place, values)
        else:
            kind = type(values).__name__
            yield BadRowError(f"{place}: expected a JSON object with named fields, got {kind}")


def _csv_rows(file: Path, text: TextIO) -> Iterator[Row | BadRowError]:
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
            yield BadRowError(
                f"{place}: the number of fields differs from the head's {len(reader.fieldnames)} "
                f"({', '.join(reader.fieldnames)})"
            )
        else:
            yield Row(place, {name: value or None for name, value in values.items()})


def _txt_rows(file: Path, text: TextIO) -> Iterator[Row]:
    """Yield pieces of about `TEXT_ROW_CHARACTERS`, cut at line ends: the whole file is one text."""
    first_line = 1
    while lines := text.readlines(TEXT_ROW_CHARACTERS):
        yield Row(f"{file}, line {first_line}", {"text": "".join(lines)})
        first_line += len(lines)


def _line_rows(file: Path, text: TextIO, field: str) -> Iterator[Row]:
    for number, line in enumerate(text, start=1):
        if line.strip():
            yield Row(f"{file}, line {number}", {field: line.strip()})


def _smi_rows(file: Path, text: TextIO) -> Iterator[Row]:
    for number, line in enumerate(text, start=1):
        if line.strip():
            smiles, *name = line.split(maxsplit=1)
            yield Row(f"{file}, line {number}", {"smiles": smiles, "name": "".join(name).strip()})


def _parquet_rows(file: Path) -> Iterator[Row]:
    number = 0
    with _open(file) as stream:
        try:
            batches = pyarrow.parquet.ParquetFile(stream).iter_batches(batch_size=1024)
            for batch in batches:
                for values in batch.to_pylist():
                    number += 1
                    yield Row(f"{file}, row {number}", values)
        except pyarrow.ArrowInvalid as error:
            raise ValueError(f"{file} is not a parquet file ({error}): fetch it again") from error
