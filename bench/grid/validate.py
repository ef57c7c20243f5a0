"""What is wrong with a model, in one sentence."""

from collections.abc import Sequence
from typing import Any

from pydantic import BaseModel, ValidationError

from bench.core.errors import did_you_mean


def sentence(error: ValidationError, model: type[BaseModel], under: str = "") -> str:
    """Turn pydantic's first complaint into one sentence: key (below the key `under`), value, fix."""
    complaints = error.errors(include_url=False)
    first = complaints[0]
    path = list(first["loc"])
    message = first["msg"].removeprefix("Value error, ")
    if not path and first["type"] == "value_error":
        return message  # of the model as a whole: a sentence already
    if path and "[" in str(path[-1]) and first["type"] != "extra_forbidden":
        # Not a key: the branch of a union (`adaptive` or a share), or that a mapping's key itself is wrong.
        path.pop()
        others = [c["msg"][0].lower() + c["msg"][1:] for c in complaints[1:] if list(c["loc"][:-1]) == path]
        message = ", or ".join([message, *others])
    key = under + "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path)
    key = key.lstrip(".")
    if first["type"] == "extra_forbidden":
        return f"unknown key {key!r}{did_you_mean(str(path[-1]), _fields(model, path[:-1]))}"
    if first["type"] == "missing":
        return f"key {key!r} is missing"
    value = repr(first["input"])
    value = value if len(value) <= 80 else f"{value[:77]}..."
    return f"{key}: {value}: {message[0].lower()}{message[1:]}"


def _fields(model: type[BaseModel], path: Sequence[str | int]) -> list[str]:
    """Return the field names of the model that `path` leads to from `model`."""
    for part in path:
        if isinstance(part, str) and part in model.model_fields:
            inner = models_in(model.model_fields[part].annotation)
            if not inner:
                return []
            model = inner[0]
    return list(model.model_fields)


def models_in(annotation: Any) -> list[type[BaseModel]]:
    """Return the models that a type is or is made of."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for argument in getattr(annotation, "__args__", ()) for model in models_in(argument)]
