"""Reading a model from a JSON file that anyone may have written."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

SCHEMA = 1
MAX_BYTES = 10_000_000
Filed = TypeVar("Filed", bound=BaseModel)


@dataclass(frozen=True)
class Damaged:
    """A file that is no record, and why."""

    path: Path
    reason: str


def read_model(
    path: Path, kind: Callable[[dict[str, Any]], type[Filed]], is_its_own: Callable[[Filed], bool], schema: int = SCHEMA
) -> Filed | Damaged:
    """Return the model of a kind that a file holds, or why it holds none; `is_its_own` tells if its id is right."""
    try:
        if path.exists() and not path.is_file():
            return Damaged(path, "not a file")
        if path.stat().st_size > MAX_BYTES:
            return Damaged(path, f"over {MAX_BYTES:,} bytes")
        content = path.read_bytes()
        raw = json.loads(content)
        if not isinstance(raw, dict):
            return Damaged(path, "not a record")
        if raw.get("schema_version") != schema:
            return Damaged(path, f"schema version {raw.get('schema_version')!r} where {schema} is known")
        keys = len(raw)
        model = kind(raw)
        record = model.model_validate_json(content if len(raw) == keys else json.dumps(raw))
        if not is_its_own(record):
            return Damaged(path, "its settings do not hash to its id")
    except OSError as error:
        return Damaged(path, error.strerror or "cannot be read")
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        return Damaged(path, f"{'.'.join(map(str, first['loc']))}: {first['msg']}")
    except (ValueError, RecursionError):
        return Damaged(path, "not valid JSON")
    return record
