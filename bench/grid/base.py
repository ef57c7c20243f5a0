"""What the models of a grid and of records are made of."""

import json
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

MAX_NAME = 200  # bytes: names of files end at 255

Budget = Annotated[float, Field(ge=1e-6, le=1)]
Seed = Annotated[int, Field(ge=0)]
Size = Annotated[int, Field(ge=4, le=1024)]
Precision = Literal["fp32", "bf16", "fp16"]  # of forward passes; weights are fp32


def plain(params: dict[str, Any]) -> dict[str, Any]:
    """Refuse what JSON cannot hold: a record has to."""
    try:
        json.dumps(params, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueError("must be finite numbers, strings, true, false, null, or lists and mappings of them") from error
    return params


def _printable(name: str) -> str:
    """Refuse a name that would not fit into a line or a file's name."""
    if not name.isprintable() or not 0 < len(name.encode()) <= MAX_NAME:
        raise ValueError(f"must be 1 to {MAX_NAME} bytes of printable text")
    return name


Name = Annotated[str, AfterValidator(_printable)]
Option = bool | float | str  # a value of a key of Recipe
Space = Annotated[tuple[Option, ...], Field(strict=False)]  # of its values
Params = Annotated[dict[str, Any], AfterValidator(plain)]


class Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)
