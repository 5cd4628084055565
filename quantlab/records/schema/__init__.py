"""The JSON Schemas of the files that quantlab writes, and whether a value follows one.

That of a record is generated from its type, `quantlab.records.record.RecordFile`.
"""

import json
import types
from collections.abc import Callable
from functools import cache
from importlib.resources import files
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

import fastjsonschema

SCALARS = {str: "string", int: "integer", float: "number", bool: "boolean", type(None): "null"}

STRICT = "http://json-schema.org/draft-04/schema#"  # to later drafts 1e300 is an integer


def require(schema: str | type, value: Any) -> None:
    """Raise ValueError, naming the place, unless a value follows a schema.

    `schema` is the name of a file beside this module, or a TypedDict.
    """
    try:
        _validator(schema)(value)
    except fastjsonschema.JsonSchemaValueException as reason:
        where = reason.message.removeprefix("data")  # how fastjsonschema names the whole
        raise ValueError(where.removeprefix(".") if where[0] == "." else f"it{where}") from None


@cache
def _validator(schema: str | type) -> Callable[[Any], Any]:
    if isinstance(schema, str):
        return fastjsonschema.compile(
            json.loads(files(__name__).joinpath(f"{schema}.json").read_text())
        )
    return fastjsonschema.compile({"$schema": STRICT} | from_type(schema))


def from_type(kind: Any) -> dict[str, Any]:
    """Make the JSON Schema of a type: scalars, unions, literals, lists, dicts, TypedDicts, Any.

    >>> from_type(list[int | None])
    {'type': 'array', 'items': {'type': ['integer', 'null']}}
    """
    origin, arguments = get_origin(kind), get_args(kind)
    if origin is Annotated:  # before a look-up: keywords may be mappings, which have no hash
        base, *keywords = arguments
        plain = json.loads(json.dumps(dict(keywords)))  # tuples, which can be hashed, as lists
        return from_type(base) | plain
    if kind in SCALARS:
        return {"type": SCALARS[kind]}
    if origin in (Union, types.UnionType):
        if all(argument in SCALARS for argument in arguments):
            return {"type": [SCALARS[argument] for argument in arguments]}  # anyOf takes ten times
        return {"anyOf": [from_type(argument) for argument in arguments]}
    if origin is Literal:
        return {"enum": list(arguments)}
    if origin is list:
        return {"type": "array", "items": from_type(arguments[0])}
    if origin is dict:
        return {"type": "object", "additionalProperties": from_type(arguments[1])}
    return _from_typed_dict(kind) if hasattr(kind, "__required_keys__") else {}


def _from_typed_dict(kind: Any) -> dict[str, Any]:
    hints = get_type_hints(kind, include_extras=True)
    return {
        "type": "object",
        "description": kind.__doc__,
        "additionalProperties": False,
        "required": sorted(kind.__required_keys__),
        "properties": {key: from_type(_without_qualifier(hint)) for key, hint in hints.items()},
    }


def _without_qualifier(hint: Any) -> Any:
    """Strip NotRequired from the type of a key."""
    return get_args(hint)[0] if "NotRequired" in str(get_origin(hint)) else hint
