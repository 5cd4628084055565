"""The JSON Schemas of the files that quantlab writes, and whether a value follows one.

That of a record is generated from its type, `quantlab.records.record.RecordFile`.
"""

import json
import math
import types
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from importlib.resources import files
from itertools import chain
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

import fastjsonschema

SCALARS = {str: "string", int: "integer", float: "number", bool: "boolean", type(None): "null"}

PYTHON_TYPES: dict[str, set[type]] = {
    **{name: {kind} for kind, name in SCALARS.items()},
    "number": {int, float},
    "array": {list},
    "object": {dict},
}
ColumnTest = Callable[[Sequence[Any]], bool]

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
def _quick_test(kind: type) -> Callable[[Any], bool]:
    return compile_test(from_type(kind))


# fastjsonschema looks at each value by itself, and takes twenty times as long.
def compile_test(schema: Mapping[str, Any]) -> Callable[[Any], bool]:
    """Compile a quick test that passes nothing but what follows a schema.

    It may fail what follows it all the same. Keywords that it does not know are fastjsonschema's.

    >>> test = compile_test(from_type(list[int]))
    >>> test([1, 2]), test([1, True])
    (True, False)
    """
    test = _column_test(schema)
    return lambda value: test([value])


def _column_test(schema: Mapping[str, Any]) -> ColumnTest:
    """Compile a test of all values that stand in one place, such as a figure of each tensor."""
    kinds, keywords = _python_types(schema), schema.keys() - {"type", "description"}
    if kinds == {dict} and keywords <= {"properties", "required", "additionalProperties"}:
        return _objects_test(schema)
    if kinds == {list} and keywords <= {"items", "minItems", "maxItems"}:
        return _arrays_test(schema)
    if kinds == {int} and keywords == {"minimum"}:
        least = schema["minimum"]
        return lambda values: {*map(type, values)} <= kinds and min(values, default=least) >= least
    if keywords == {"anyOf"}:
        return _options_test(schema["anyOf"])
    if not keywords:
        return lambda values: not kinds or kinds.issuperset(map(type, values))
    return _validity_test(schema)


def _python_types(schema: Mapping[str, Any]) -> set[type]:
    names: str | list[str] = schema.get("type", [])
    return {
        k for name in ([names] if isinstance(names, str) else names) for k in PYTHON_TYPES[name]
    }


def _validity_test(schema: Mapping[str, Any]) -> ColumnTest:
    validate = fastjsonschema.compile({"$schema": STRICT} | dict(schema))

    def test(values: Sequence[Any]) -> bool:
        try:
            for value in values:
                validate(value)
        except fastjsonschema.JsonSchemaValueException:
            return False
        return True

    return test


def _options_test(options: Sequence[Mapping[str, Any]]) -> ColumnTest:
    tests = [_column_test(option) for option in options]

    def test(values: Sequence[Any]) -> bool:
        if any(test_all(values) for test_all in tests):
            return True
        return all(any(test_all([value]) for test_all in tests) for value in values)

    return test


def _objects_test(schema: Mapping[str, Any]) -> ColumnTest:
    children, other = schema.get("properties", {}), schema.get("additionalProperties", {})
    required = frozenset(schema.get("required", ()))
    tests = {key: _column_test(child) for key, child in children.items()}
    test_other = _column_test(other) if other is not False else lambda _: False
    required_others = required - tests.keys()

    def test(values: Sequence[Any]) -> bool:
        if not {dict}.issuperset(map(type, values)):
            return False
        n_other = sum(map(len, values))
        for key, test_key in tests.items():
            column = [value[key] for value in values if key in value]
            if (key in required and len(column) < len(values)) or not test_key(column):
                return False
            n_other -= len(column)
        if not all(required_others <= value.keys() for value in values):
            return False
        return not n_other or test_other(
            [child for value in values for key, child in value.items() if key not in tests]
        )

    return test


def _arrays_test(schema: Mapping[str, Any]) -> ColumnTest:
    least, most = schema.get("minItems", 0), schema.get("maxItems", math.inf)
    test_items = _column_test(schema.get("items", {}))

    def test(values: Sequence[Any]) -> bool:
        if not {list}.issuperset(map(type, values)):
            return False
        has_sizes = all(least <= len(value) <= most for value in values)
        return has_sizes and test_items([*chain.from_iterable(values)])

    return test


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
