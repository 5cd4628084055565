"""The JSON Schemas of the files that quantlab writes, and whether a value follows one.

That of a record is generated from its type, `quantlab.records.record.RecordFile`.
"""

import json
import math
import types
from collections.abc import Callable, Mapping
from functools import cache
from importlib.resources import files
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

import fastjsonschema

SCALARS = {str: "string", int: "integer", float: "number", bool: "boolean", type(None): "null"}

PYTHON_TYPES: dict[str, set[type]] = {
    **{name: {kind} for kind, name in SCALARS.items()},
    "number": {int, float},
    "array": {list},
    "object": {dict},
}
Test = Callable[[Any], bool]

STRICT = "http://json-schema.org/draft-04/schema#"  # to later drafts 1e300 is an integer


def require(schema: str | type, value: Any) -> None:
    """Raise ValueError, naming the place, unless a value follows a schema.

    `schema` is the name of a file beside this module, or a TypedDict.
    """
    if not isinstance(schema, str) and _quick_test(schema)(value):
        return
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


@cache
def _quick_test(kind: type) -> Test:
    return compile_test(from_type(kind))


# fastjsonschema looks at each count of a histogram by itself, and takes ten times as long.
def compile_test(schema: Mapping[str, Any]) -> Test:
    """Compile a quick test that passes nothing but what follows a schema.

    It may fail what follows it all the same. Keywords that it does not know are fastjsonschema's.

    >>> test = compile_test(from_type(list[int]))
    >>> test([1, 2]), test([1, True])
    (True, False)
    """
    kinds, keywords = _python_types(schema), schema.keys() - {"type", "description"}
    if kinds == {dict} and keywords <= {"properties", "required", "additionalProperties"}:
        return _object_test(schema)
    if kinds == {list} and keywords <= {"items", "minItems", "maxItems"}:
        return _array_test(schema)
    if kinds == {int} and keywords == {"minimum"}:
        least = schema["minimum"]
        return lambda value: type(value) is int and value >= least
    if keywords == {"anyOf"}:
        options = [compile_test(option) for option in schema["anyOf"]]
        return lambda value: any(test(value) for test in options)
    if not keywords:
        return lambda value: not kinds or type(value) in kinds
    return _validity_test(schema)


def _python_types(schema: Mapping[str, Any]) -> set[type]:
    names: str | list[str] = schema.get("type", [])
    return {
        k for name in ([names] if isinstance(names, str) else names) for k in PYTHON_TYPES[name]
    }


def _validity_test(schema: Mapping[str, Any]) -> Test:
    validate = fastjsonschema.compile({"$schema": STRICT} | dict(schema))

    def test(value: Any) -> bool:
        try:
            validate(value)
        except fastjsonschema.JsonSchemaValueException:
            return False
        return True

    return test


def _object_test(schema: Mapping[str, Any]) -> Test:
    children, other = schema.get("properties", {}), schema.get("additionalProperties", {})
    required = frozenset(schema.get("required", ()))
    kinds = _scalar_types(other) if other and "minimum" not in other else set()
    tests = {key: compile_test(child) for key, child in children.items()}
    test_other = compile_test(other) if other is not False else lambda _: False

    def test(value: Any) -> bool:
        if type(value) is not dict or not required <= value.keys():
            return False
        if kinds:  # those of all keys at once
            keys = tests.keys() & value.keys()
            has_types = kinds.issuperset(map(type, value.values()))
            return has_types and all(tests[key](value[key]) for key in keys)
        return all(tests.get(key, test_other)(child) for key, child in value.items())

    return test


def _array_test(schema: Mapping[str, Any]) -> Test:
    items = schema.get("items", {})
    least, most = schema.get("minItems", 0), schema.get("maxItems", math.inf)
    kinds, minimum, test_item = _scalar_types(items), items.get("minimum"), compile_test(items)

    def test(value: Any) -> bool:
        if type(value) is not list or not least <= len(value) <= most:
            return False
        if kinds:
            has_types = kinds.issuperset(map(type, value))
            return has_types and (minimum is None or not value or min(value) >= minimum)
        return all(map(test_item, value))

    return test


def _scalar_types(schema: Mapping[str, Any]) -> set[type]:
    """Collect the types of a schema that demands no more than them, or a minimum of integers."""
    kinds, keywords = _python_types(schema), schema.keys() - {"type"}
    is_plain = not keywords or (kinds == {int} and keywords == {"minimum"})
    return kinds if is_plain and not kinds & {dict, list} else set()


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
