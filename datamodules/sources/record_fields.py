"""From a raw row to the fields that were asked for, in their types."""

import json
from typing import Any, get_args, get_origin

from triptych.datamodules.sources.record_files import BadRowError, Row


def pick_fields(
    row: Row, columns: dict[str, str], required: dict[str, type], optional: dict[str, type]
) -> dict[str, Any]:
    """Pick the fields we want and convert them to their types."""
    checked = {}
    for name, kind in (required | optional).items():
        value: Any = row.values
        for key in columns.get(name, name).split("."):
            value = value.get(key) if isinstance(value, dict) else None
        if value is None and name in required:
            raise BadRowError(
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
