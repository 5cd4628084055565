"""What a report says of quantized files."""

import pytest

from quantlab.report.bar import Bar
from quantlab.report.stored import (
    TYPES,
    remark_sentences,
    side_by_side,
    stored_rows,
    stored_sentences,
)
from quantlab.report.texts import Texts
from tests.report.samples import judged, row

T = Texts("en")
LEVELS = ["dist", "mode", "tensor", "mode.path"]
BAR = Bar(top_order=None, rel_err=None)  # 30 dB


def tensor(name, sqnr_db, dtype="Q4_K", file="m-Q4_K_M.gguf", **change):
    """A row of a tensor of a quantized file."""
    stored = {
        "dist": "file/gguf",
        "mode": "file/gguf",
        "tensor": name,
        "stored_file": file,
        "stored_dtype": dtype,
        "sqnr_db": sqnr_db,
        "bits_per_value": 4.5,
        "n_elements": 1000,
        "remark": None,
    }
    return row(None, **stored | change)


FILE = [
    tensor("a", 20.5),
    tensor("norm", None, "F32", bits_per_value=32.0, n_elements=8, max_err=0.0),
    tensor("b", 12.25),
    tensor("c", 31.0, "Q6_K", bits_per_value=6.5625),
]


def files(rows):
    return stored_rows(rows, LEVELS)


def said(rows, bar=BAR):
    return list(stored_sentences(files(judged(rows, bar)), T))


def test_a_sentence_says_what_a_file_costs_and_what_it_lost():
    assert said(FILE) == [
        "m-Q4_K_M.gguf: 2 of 4 tensors compared meet the bar; 5.259 bits per value, 1.98 kB in all "
        "(Q4_K: 2, Q6_K: 1, F32: 1); the median SQNR of those that lost anything is 20.50 dB, the "
        "worst is b (Q4_K): 12.25 dB"
    ]


def test_sizes_are_those_of_all_values_and_not_of_tensors():
    (file,) = files(FILE)
    assert file.n_bytes == (4500 + 4500 + 6562.5 + 256) / 8
    assert file.bits_per_value == pytest.approx(15818.5 / 3008)
    assert [each["tensor"] for each in file.rows] == ["b", "a", "c", "norm"]  # the worst first


def test_a_file_that_loses_nothing_says_so():
    exact = [tensor(name, None, "F16", max_err=0.0) for name in "ab"]
    (sentence,) = said(exact)
    assert sentence.startswith("m-Q4_K_M.gguf: 2 of 2 tensors compared meet the bar; ")
    assert sentence.endswith(
        "the median SQNR of those that lost anything is exact, the worst is a (F16): exact"
    )


def test_of_many_types_the_most_frequent_are_named():
    rows = [tensor(f"t{n}.{m}", 9.0, f"Q{n}") for n in range(1, TYPES + 3) for m in range(n)]
    (sentence,) = said(rows)
    assert "(Q8: 8, Q7: 7, Q6: 6, Q5: 5, Q4: 4, Q3: 3, others: 3)" in sentence
    assert "Q2" not in sentence


def test_only_rows_of_files_count():
    plain = row(8)
    assert files([plain, row(4, stored_file=None)]) == []
    (file,) = files([plain, *FILE])
    assert len(file.rows) == 4


def test_each_file_and_each_original_has_a_sentence():
    rows = [*FILE, tensor("a", 9.0, file="m-Q2_K.gguf"), tensor("a", 8.0, dist="file/npy")]
    found = files(rows)
    assert [(each.name, len(each.rows)) for each in found] == [
        ("m-Q4_K_M.gguf, dist=file/gguf", 4), ("m-Q2_K.gguf, dist=file/gguf", 1),
        ("m-Q4_K_M.gguf, dist=file/npy", 1),
    ]  # fmt: skip
    assert len(said(rows)) == 3


def test_a_remark_is_made_once_of_all_its_tensors():
    wrong, other = "read v2 it fits the original far better", "read transposed it fits"
    rows = [
        tensor("a", 1.0, remark=wrong), tensor("b", 2.0, remark=wrong), tensor("c", 3.0),
        tensor("d", 4.0, remark=other), tensor("e", 5.0, remark=wrong),
    ]  # fmt: skip
    expected = [
        f"m-Q4_K_M.gguf: a and 2 more tensors: {wrong}",
        f"m-Q4_K_M.gguf: d: {other}",
    ]
    assert list(remark_sentences(files(rows), T)) == expected
    assert said(rows)[1:] == expected
    assert list(remark_sentences(files(rows[:2]), T)) == [
        f"m-Q4_K_M.gguf: a and one more tensor: {wrong}"
    ]


def test_names_can_play_no_tricks():
    sentences = said([tensor("\x1b[2J", 1.0, file="m\n.gguf", remark="wrong")])
    assert len(sentences) == 2
    assert all(each.isprintable() for each in sentences)
    heads, rows = side_by_side(files([tensor("\x1b[2J", 1.0, file="m\n.gguf")]), T)
    assert all(cell.isprintable() for cell in [*heads, *rows[0]])


def test_of_one_file_those_come_first_that_lost_most():
    heads, rows = side_by_side(files(FILE), T)
    assert [each.partition(": ")[2] for each in heads[1:]] == [
        "stored as", T("storage_bits"), T("storage_sqnr"),
    ]  # fmt: skip
    assert rows == [
        ["b", "Q4_K", "4.5", "12.25"],
        ["a", "Q4_K", "4.5", "20.50"],
        ["c", "Q6_K", "6.562", "31.00"],
        ["norm", "F32", "32", "exact"],
    ]


def test_of_two_files_those_come_first_that_differ_most():
    other = [
        tensor("a", 21.0, "IQ4_XS", "other.gguf"),
        tensor("b", 15.0, "IQ4_XS", "other.gguf"),
        tensor("c", 11.0, "IQ4_XS", "other.gguf"),
        tensor("mine", 10.0, "IQ4_XS", "other.gguf"),
    ]
    heads, rows = side_by_side(files([*FILE, *other]), T)
    assert len(heads) == 7
    assert [each[0] for each in rows] == ["c", "b", "a", "mine", "norm"]
    assert rows[0][1:] == ["Q6_K", "6.562", "31.00", "IQ4_XS", "4.5", "11.00"]
    assert rows[3][1:] == ["–", "–", "–", "IQ4_XS", "4.5", "10.00"]
    assert rows[4][4:] == ["–", "–", "–"]


def test_an_exact_tensor_differs_most_from_one_that_is_not():
    rows = [tensor("a", 10.0), tensor("b", None, max_err=0.0), tensor("a", 60.0, file="o")]
    rows.append(tensor("b", 60.0, file="o"))
    _, cells = side_by_side(files(rows), T)
    assert [each[0] for each in cells] == ["b", "a"]


def test_the_error_of_the_output_stands_beside_where_it_is_known():
    rows = [tensor("a", 20.0, out_sqnr_db=23.456), tensor("b", 10.0, out_sqnr_db=None)]
    rows.append(tensor("c", 30.0, file="other.gguf"))
    heads, cells = side_by_side(files(rows), T)
    assert [heads[4], heads[8]] == [
        f"m-Q4_K_M.gguf: {T('stored_out')}", f"other.gguf: {T('stored_out')}",
    ]  # fmt: skip
    assert [each[4] for each in cells] == ["–", "23.46", "–"]
    assert [len(each) for each in cells] == [9, 9, 9]


@pytest.mark.parametrize("language", ["en", "es"])
def test_every_sentence_is_in_every_language(language):
    found = files([*FILE, tensor("x", 1.0, remark="wrong")])
    sentences = list(stored_sentences(found, Texts(language)))
    assert len(sentences) == 2
    assert "{" not in "".join(sentences)
