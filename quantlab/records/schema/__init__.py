"""The JSON Schemas of the files that quantlab writes, and whether a value follows one."""

import json
from collections.abc import Callable
from functools import cache
from importlib.resources import files
from typing import Any

import fastjsonschema


def require(name: str, value: Any) -> None:
    """Raise ValueError, naming the place, unless `value` follows the schema of this name."""
    try:
        _validator(name)(value)
    except fastjsonschema.JsonSchemaValueException as reason:
        where = reason.message.removeprefix("data")  # how fastjsonschema names the whole
        raise ValueError(where.removeprefix(".") if where[0] == "." else f"it{where}") from None


@cache
def _validator(name: str) -> Callable[[Any], Any]:
    text = files(__name__).joinpath(f"{name}.json").read_text()
    return fastjsonschema.compile(json.loads(text))
