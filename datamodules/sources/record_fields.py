"""The requested fields of a raw row, converted to their types."""

import json
from collections.abc import Callable, Mapping
from typing import Any, get_args, get_origin

from triptych.datamodules.sources.record_files import BadRowError, Row

# Types of fields by name. `Any` stands for a type, since mypy takes `list[str]` for no `type`.
Fields = Mapping[str, Any]


def pick_fields(
    row: Row, columns: Mapping[str, str], required: Fields, optional: Fields
) -> dict[str, Any]:
    """Pick the requested fields and convert them to their types.

    An optional field is None where `columns` gives its name to another field: with
    {number: answer}, the column `answer` is the field `number` and nothing else.
    """
    checked: dict[str, Any] = {}
    for name, kind in {**required, **optional}.items():
        if name in optional and name not in columns and name in columns.values():
            checked[name] = None
            continue
        value: Any = row.values
        for key in columns.get(name, name).split("."):
            value = value.get(key) if isinstance(value, dict) else None
        if value is None and name in required:
            raise BadRowError(
                f"{row.place}: field {columns.get(name, name)!r} is missing; the row has "
                f"{_names(row) or 'no fields'} (`columns` renames fields)"
            )
        checked[name] = None if value is None else _convert(value, kind, row.place, name)
    return checked


def _names(row: Row) -> str:
    # A leading underscore marks what the reader added.
    return ", ".join(name for name in map(str, row.values) if not name.startswith("_"))


def _convert(value: Any, kind: Any, place: str, name: str) -> Any:
    if get_origin(kind) is list:
        converted = _as_list(value)
        if converted is not None and all(isinstance(i, get_args(kind)) for i in converted):
            return converted
    elif kind in (int, float):
        if (number := _as_number(value, kind)) is not None:
            return number
    elif kind is bool and isinstance(value, str) and value.lower() in ("true", "false"):
        return value.lower() == "true"  # as in a CSV cell
    elif isinstance(value, kind):
        return value
    wanted = str(kind) if get_origin(kind) else kind.__name__
    shown = repr(value) if len(repr(value)) <= 60 else repr(value)[:57] + "..."
    raise BadRowError(
        f"{place}: field {name!r} must be {wanted}, got {type(value).__name__} {shown}"
    )


def _as_list(value: Any) -> list[Any] | None:
    """Read a list, a list in JSON (as in a CSV cell), or a single item as a list of one."""
    if isinstance(value, str):
        try:
            value = json.loads(value) if value.startswith("[") else [value]
        except json.JSONDecodeError:
            value = [value]
    return value if isinstance(value, list) else None


def _as_number(value: Any, kind: Callable[[Any], int | float]) -> int | float | None:
    """Read a number, also one written as text; return None where digits would be lost."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        number = kind(value)
    except (ValueError, OverflowError):
        return None
    return None if isinstance(value, float) and number != value else number
