import json

import fastjsonschema
import pytest

from quantlab.records import manifest, record, schema
from quantlab.stats.result import CodeBins, Count, Result
from tests.conftest import ROOT
from tests.records.test_hostile import VALUES, places, replaced

FOLDER = ROOT / "quantlab" / "records" / "schema"


def read(name):
    return json.loads((FOLDER / f"{name}.json").read_text())


def test_the_versions_are_those_of_the_code():
    of_record = schema.from_type(record.RecordFile)
    assert of_record["properties"]["schema"]["enum"][-1] == record.SCHEMA
    assert read("manifest")["properties"]["schema"]["enum"][-1] == manifest.SCHEMA


def test_what_a_sweep_writes_follows_its_schema(lab_sweep):
    directory, _ = lab_sweep
    for name in ("manifest", "results"):
        schema.require(name, json.loads((directory / f"{name}.json").read_bytes()))
    for path in directory.glob("*/record.json"):
        schema.require(record.RecordFile, json.loads(path.read_bytes()))


@pytest.mark.parametrize(
    ("file", "name"), [("record.json", record.RecordFile), ("manifest.json", "manifest")]
)
def test_every_key_is_demanded(lab_sweep, file, name):
    path = next(lab_sweep[0].rglob(file))
    content = json.loads(path.read_bytes())
    for key in content:
        with pytest.raises(ValueError, match="it must contain"):
            schema.require(name, {each: content[each] for each in content if each != key})
    with pytest.raises(ValueError, match=r"must not contain .*'other'"):
        schema.require(name, content | {"other": 1})


@pytest.mark.parametrize(
    ("place", "wrong"),
    [
        (("measured", "mae"), "0.1"),
        (("rank", "top_k"), []),
        (("params", "scale"), {}),
        (("error_histogram", "counts"), [-1]),
        (("error_histogram", "stride"), 0),
        (("sha256",), "abc"),
        (("range",), [1]),
        (("shape",), [1.5]),
        (("n_elements",), 1e300),
        (("rank", "top_k"), None),
    ],
)
def test_a_wrong_figure_is_named(lab_sweep, place, wrong):
    (path,) = lab_sweep[0].glob("hidden-sym-*/record.json")
    content = json.loads(path.read_bytes())
    *inner, last = place
    node = content["tensors"]["hidden"]
    for key in inner:
        node = node[key]
    node[last] = wrong
    with pytest.raises(ValueError, match=rf"^tensors\.hidden\.{'.'.join(place)}"):
        schema.require(record.RecordFile, content)


@pytest.mark.parametrize(
    ("place", "wrong"),
    [
        ("n_bits", "8"),
        ("n_bits", -3),
        ("n_bits", 65),
        ("n_bits", 8.0),
        ("seconds", 1e300),
        ("started", "2026-13-01"),
        ("config.report.bar.sqnr_db", 0),
        ("config.report.bar.rel_err", 2),
        ("config.report.bar.top_order", 1),
        ("config.mode", None),
    ],
)
def test_a_value_out_of_range_is_named(lab_sweep, place, wrong):
    (path,) = lab_sweep[0].glob("hidden-sym-*/record.json")
    content = json.loads(path.read_bytes())
    *inner, last = place.split(".")
    node = content
    for key in inner:
        node = node[key]
    node[last] = wrong
    with pytest.raises(ValueError, match=rf"^{place} must be"):
        schema.require(record.RecordFile, content)


def test_what_passes_the_quick_test_follows_the_schema(lab_sweep):
    quick = schema.compile_test(schema.from_type(record.RecordFile))
    follows = fastjsonschema.compile(
        {"$schema": schema.STRICT} | schema.from_type(record.RecordFile)
    )
    (path,) = lab_sweep[0].glob("hidden-sym-*/record.json")
    content = json.loads(path.read_bytes())
    assert quick(content)
    for place in places(content):
        for value in VALUES:
            changed = replaced(content, place, value)
            if quick(changed):
                follows(changed)


def test_a_quick_test_takes_what_a_type_takes():
    quick = schema.compile_test(schema.from_type(Result))
    assert not quick({})
    counts = schema.compile_test(schema.from_type(list[Count]))
    assert [counts(value) for value in ([], [0, 3], [0, -1], [True], [1.0], (1,))] == [
        True, True, False, False, False, False
    ]  # fmt: skip
    sizes = schema.compile_test(schema.from_type(dict[str, Count]))
    assert [sizes(value) for value in ({"a": 0}, {"a": -1}, {"a": 1.0})] == [True, False, False]
    bins = schema.compile_test(schema.from_type(CodeBins | None))
    full = {"first": -7, "width": 1, "counts": [1]}
    assert [bins(value) for value in (None, full, full | {"counts": []}, full | {"a": 1})] == [
        True, True, False, False
    ]  # fmt: skip
