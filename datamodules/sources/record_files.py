"""Rows of local files with their places: .jsonl .json .csv .parquet .txt .smi, also with .gz."""

import csv
import gzip
import json
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from io import BufferedReader, TextIOWrapper
from itertools import chain
from pathlib import Path
from typing import Any, TextIO

import pyarrow.parquet

FORMATS = (".jsonl", ".json", ".csv", ".parquet", ".txt", ".smi")
# Rows of a text file have about this many characters and end with a line.
TEXT_ROW_CHARACTERS = 100_000


@dataclass(frozen=True)
class Row:
    """A raw row with its place (file and line), for errors."""

    place: str
    values: dict[str, Any]


class BadRowError(ValueError):
    """Error for a malformed row; the message names file, line and field."""


def file_format(path: str | Path) -> str | None:
    """Return the format in a file's name (without .gz), or None if it is not one of `FORMATS`.

    >>> file_format("books.jsonl.gz"), file_format("zinc.csv"), file_format("allenai/c4")
    ('.jsonl', '.csv', None)
    """
    suffix = Path(str(path).removesuffix(".gz")).suffix
    return suffix if suffix in FORMATS else None


def file_rows(file: Path, txt_lines: str | None = None) -> Iterator[Row | BadRowError]:
    """Yield the rows of a file; a malformed row is yielded as an error, which may be skipped.

    Args:
        file: The file.
        txt_lines: Field that each line of a .txt file holds; None: the file is one running text.

    Raises:
        ValueError: if the file as a whole cannot be read.
    """
    suffix = file_format(file)
    if suffix == ".parquet":
        yield from _parquet_rows(file)
        return
    try:
        with _open(file) as stream:
            if suffix == ".jsonl":
                yield from _jsonl_rows(file, stream)
            else:
                # csv needs the line ends as they are, to recognise those within quotes.
                newline = "" if suffix == ".csv" else None
                encoding = "utf-8-sig" if suffix in (".csv", ".txt", ".json") else "utf-8"
                with TextIOWrapper(stream, encoding, newline=newline) as text:
                    if suffix == ".json":
                        yield from _json_rows(file, text)
                    elif suffix == ".csv":
                        yield from _csv_rows(file, text)
                    elif suffix == ".smi":
                        yield from _smi_rows(file, text)
                    elif txt_lines is not None:
                        yield from _line_rows(file, text, txt_lines)
                    else:
                        yield from _txt_rows(file, text)
    except UnicodeDecodeError as error:
        raise ValueError(f"{file} is not UTF-8 text ({error}): convert it to UTF-8") from error
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise ValueError(f"{file} is not a whole gzip file ({error}): fetch it again") from error


def _open(file: Path) -> gzip.GzipFile | BufferedReader:
    return gzip.open(file, "rb") if file.suffix == ".gz" else open(file, "rb")


def _jsonl_rows(file: Path, stream: Iterable[bytes]) -> Iterator[Row | BadRowError]:
    for number, line in enumerate(stream, start=1):
        if not line.strip():
            continue
        place = f"{file}, line {number}"
        try:
            values = json.loads(line)
            _refuse_surrogates(values)
        except (ValueError, RecursionError) as error:
            cause = _short(error)
            yield BadRowError(f"{place}: not valid JSON ({cause}); each line must be one object")
            continue
        if isinstance(values, dict):
            yield Row(place, values)
        else:
            kind = type(values).__name__
            yield BadRowError(f"{place}: expected a JSON object with named fields, got {kind}")


def _json_rows(file: Path, text: TextIO) -> Iterator[Row | BadRowError]:
    """Yield the objects of a JSON array, or of the only array in a JSON object."""
    try:
        rows = json.load(text)
        _refuse_surrogates(rows)
    except json.JSONDecodeError as error:
        raise ValueError(
            f"{file}, line {error.lineno}: not valid JSON ({error.msg}): correct it; a file of one "
            "object a line is .jsonl"
        ) from error
    except UnicodeDecodeError:
        raise  # `file_rows` names the file
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{file}: not valid JSON ({_short(error)}): correct it") from error
    if isinstance(rows, dict):
        arrays = [value for value in rows.values() if isinstance(value, list)]
        rows = arrays[0] if len(arrays) == 1 else None
    if not isinstance(rows, list):
        raise ValueError(f"{file}: expected a JSON array of objects, one for each row")
    for number, values in enumerate(rows, start=1):
        place = f"{file}, item {number}"
        if isinstance(values, dict):
            yield Row(place, values)
        else:
            kind = type(values).__name__
            yield BadRowError(f"{place}: expected a JSON object with named fields, got {kind}")


def _csv_rows(file: Path, text: TextIO) -> Iterator[Row | BadRowError]:
    head = text.readline()
    # Spreadsheets write semicolons where the comma is the decimal mark.
    delimiter = next((mark for mark in ",;\t" if mark in head), ",")
    reader = csv.DictReader(chain([head], text), delimiter=delimiter, strict=True)
    begun = 1
    while True:
        try:
            _ = reader.fieldnames  # the head is a line of its own
            begun = reader.line_num + 1  # a quoted field may go on for many lines
            values = next(reader, None)
        except csv.Error as error:
            raise ValueError(
                f"{file}, line {begun}: not valid CSV ({error}): correct the line, such as a quote "
                "that is never closed, or write the rows as .jsonl"
            ) from error
        if values is None:
            return
        place = f"{file}, line {reader.line_num}"
        if None in values or None in values.values():
            names = reader.fieldnames or []
            yield BadRowError(
                f"{place}: the number of fields differs from the header's {len(names)} "
                f"({', '.join(names)})"
            )
        else:
            yield Row(place, {name: value or None for name, value in values.items()})


def _txt_rows(file: Path, text: TextIO) -> Iterator[Row]:
    """Yield the file as pieces of about `TEXT_ROW_CHARACTERS`, cut at line ends."""
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
            # Checksums of pages are compared where the file's writer made them.
            opened = pyarrow.parquet.ParquetFile(stream, page_checksum_verification=True)
            for batch in opened.iter_batches(batch_size=1024):
                for values in batch.to_pylist():
                    number += 1
                    yield Row(f"{file}, row {number}", values)
        except (ValueError, TypeError, OSError, pyarrow.ArrowException) as error:
            # Which one depends on the byte that is damaged.
            after = f", after row {number}" if number else ""
            raise ValueError(
                f"{file} is not a parquet file, or is damaged{after} ({_short(error)}): fetch it "
                "again"
            ) from error


def _refuse_surrogates(value: Any) -> None:
    """Refuse half characters, which are no text: no encoding and no tokenizer takes them.

    Raises:
        ValueError: if a string has one.
    """
    waiting = [value]
    while waiting:
        found = waiting.pop()
        if isinstance(found, str) and not found.isascii():
            half = next((c for c in found if "\ud800" <= c <= "\udfff"), None)
            if half is not None:
                raise ValueError(f"half a character, \\u{ord(half):04x}, without its other half")
        elif isinstance(found, dict):
            waiting += [*found, *found.values()]
        elif isinstance(found, list):
            waiting += found


def _short(error: Exception) -> str:
    """Return the first line of a message, of at most 200 characters."""
    text = str(error).partition("\n")[0]
    return text if len(text) <= 200 else text[:197] + "..."
