"""JSON as dataclasses, strictly: every key known, none missing, every value of its type."""

import dataclasses
import json
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def read(kind: Any, file: Path, schema: int, most_bytes: int) -> Any:
    """A JSON file that holds a `kind` with that number under "schema".

    Raises:
        OSError: it cannot be read.
        ValueError: it is larger than `most_bytes`, no JSON, of another schema, or does not fit; no advice is given.
        RecursionError: it is nested too deeply.
    """
    if file.stat().st_size > most_bytes:
        raise ValueError(f"{file} has {file.stat().st_size} bytes, expected at most {most_bytes}")
    raw = json.loads(file.read_bytes())
    if not isinstance(raw, dict) or raw.get("schema") != schema:
        raise ValueError(f"{file} has not schema {schema}")
    return parse(kind, raw, str(file))


def parse(kind: Any, raw: Any, where: str) -> Any:
    """`raw` JSON as the type `kind`: dataclasses, tuples, mappings, scalars and unions of them with None.

    Args:
        kind: the type.
        raw: what `json.loads` gave.
        where: begins messages: the file.

    Raises:
        ValueError: it does not fit; the message says where, and no advice.
    """
    if dataclasses.is_dataclass(kind):
        return _parse_dataclass(kind, raw, where)
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is tuple and isinstance(raw, list):
        return tuple(parse(arguments[0], item, f"{where}[{i}]") for i, item in enumerate(raw))
    if origin is Mapping and isinstance(raw, dict):
        return {key: parse(arguments[1], value, f"{where}.{key}") for key, value in raw.items()}
    if type(None) in arguments:
        return None if raw is None else parse(arguments[0], raw, where)
    if kind is float and type(raw) is int:
        return float(raw)
    if type(raw) is not kind:
        raise ValueError(f"{where} is {raw!r}, expected {getattr(kind, '__name__', kind)}")
    return raw


def _parse_dataclass(kind: Any, raw: Any, where: str) -> Any:
    if not isinstance(raw, dict):
        raise ValueError(f"{where} is {raw!r}, expected an object")
    fields = {item.name: item for item in dataclasses.fields(kind)}
    if unknown := raw.keys() - fields.keys():
        raise ValueError(f"{where} has unknown keys {sorted(unknown)}")
    required = {name for name, item in fields.items() if item.default is item.default_factory is dataclasses.MISSING}
    if missing := required - raw.keys():
        raise ValueError(f"{where} lacks {sorted(missing)}")
    return kind(**{name: parse(fields[name].type, value, f"{where}: {name}") for name, value in raw.items()})
