"""Columns hold what dicts hold, and write it as json and pandas do."""

import json
import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from quantlab.records import rows
from quantlab.records.rows import Rows
from quantlab.text import as_text

FLOATS = st.floats(allow_nan=False, allow_infinity=False)
TEXT = st.text(st.characters(exclude_categories=()), max_size=5)
VALUES = st.one_of(st.none(), st.booleans(), st.integers(-(2**63), 2**63 - 1), FLOATS, TEXT)
COLUMNS = st.one_of(
    st.lists(st.one_of(st.none(), FLOATS), min_size=1),
    st.lists(VALUES, min_size=1),
    st.lists(st.one_of(st.none(), st.sampled_from([1, 1.0, True, "1", 0.0, -0.0, "true"]))),
)


@given(COLUMNS)
def test_a_column_holds_its_values(values):
    column = rows.encode(values)
    assert repr([column[n] for n in range(len(column))]) == repr(values)
    assert column.json(slice(None)) == [json.dumps(value, ensure_ascii=False) for value in values]


@given(COLUMNS)
@example(["a\nb", 'a"b', "a,b", "a\rb", ""])
def test_cells_are_those_of_pandas(values):
    table = pd.DataFrame({"a": pd.Series(values, dtype=object), "b": 1})
    text = table.to_csv(index=False, header=False, lineterminator="\n")
    cells = rows.encode(values).csv(slice(None))
    assert "".join(f"{cell},1\n" for cell in cells) == text


@given(st.lists(FLOATS.filter(lambda x: x), min_size=1), st.integers(-20, 20))
def test_floats_are_written_as_python_writes_them(values, power):
    values += [10.0**power, math.nextafter(10.0**power, 0), -(10.0**power)]
    assert rows.Floats(np.array(values)).json(slice(None)) == [*map(repr, values)]


@given(COLUMNS, COLUMNS)
def test_joined_columns_hold_the_values_of_both(first, second):
    column = rows.concatenate([rows.encode(first), rows.encode(second)])
    assert repr([column[n] for n in range(len(column))]) == repr([*first, *second])


@given(st.lists(st.tuples(VALUES, st.sampled_from([8, "8", 8.0, None, "null"]))))
def test_rows_agree_where_their_texts_do(pairs):
    table = Rows.of([{"a": a, "b": b} for a, b in pairs])
    groups: dict = {}
    for n, pair in enumerate(pairs):
        groups.setdefault(tuple(map(as_text, pair)), []).append(n)
    assert rows.group_rows(table, ["a", "b"]) == list(groups.values())
    assert rows.group_rows([*table], ["a", "b"]) == list(groups.values())
    assert rows.count_groups(table, ["a", "b"]) == len(groups)


def test_rows_are_mappings_of_plain_values():
    table = Rows.of([{"a": 1.5, "b": 1}, {"a": None, "b": True}, {"c": "x"}])
    assert [*table] == [
        {"a": 1.5, "b": 1, "c": None},
        {"a": None, "b": True, "c": None},
        {"a": None, "b": None, "c": "x"},
    ]
    assert [type(value) for value in table[1].values()] == [type(None), bool, type(None)]
    assert table[-1] == table[2] == {**table[2]}
    assert table[:2] == [table[0], table[1]]
    assert table[0].get("other", 3) == 3
    with pytest.raises(IndexError):
        table[3]
    with pytest.raises(KeyError):
        table[0]["other"]


def test_joined_tables_have_the_columns_of_both():
    table = rows.join_rows([Rows.of([{"a": 1.0, "b": "x"}]), Rows.of([{"a": None, "c": 2}])])
    assert [*table] == [{"a": 1.0, "b": "x", "c": None}, {"a": None, "b": None, "c": 2}]
    assert isinstance(table.columns["a"], rows.Floats)
    assert len(rows.join_rows([])) == 0
