"""Rows of sweeps that were never run."""

from pathlib import Path

from hypothesis import strategies as st

from quantlab.formats.format import MODE_OPTIONS, PLAIN, FormatSpec
from quantlab.models.figures import FIGURES as ANSWER_FIGURES
from quantlab.models.figures import wilson
from quantlab.records.table import Aggregated
from quantlab.report.answers import find_outputs
from quantlab.report.bar import Bar
from quantlab.report.choices import (
    Findings,
    find_choices,
    find_widths,
    storage_choices,
    stored_rows,
)

LEVELS = ["dist", "mode", "n_bits"]
FORMAT_LEVELS = [*LEVELS, "block", "block_size"]
SQNR = Bar(top_order=None, rel_err=None)
HASHES = {"results.json": "0" * 64, "results.csv": "0" * 64}  # of an aggregate
GROUP = {"block": "group", "block_size": 32}
SIZE = 4  # values; the bits of a row drawn are then whole
ANY_WIDTH = ("symmetric", "asymmetric", "log")


def with_format(row, settings=None):
    """A row with the columns of its format, as the table has them."""
    columns = {key: row.get(key, value) for key, value in PLAIN.items()}
    mode, n_bits, settings = row["mode"], row["n_bits"], settings or {}
    if row.get("stored_file"):
        settings = settings | {"mode.path": row["stored_file"]}
        columns = dict.fromkeys(columns)
    spec = FormatSpec.of(
        MODE_OPTIONS.get(mode, mode), n_bits, columns, settings, fixes_width=mode not in ANY_WIDTH
    )
    return row | {key: spec.columns()[key] for key in ("settings", "format")}


def row(n_bits, settings=None, **change):
    """The figures of a width that meets the bar, but for what is changed."""
    figures = {
        "dist": "verb_probs",
        "mode": "symmetric",
        "tensor": "verb_probs",
        "n_bits": n_bits,
        **PLAIN,
        "top_k": 10,
        "top_merged": 0,
        "top_swapped": 0,
        "top_worst": 1.0,
        "top_best": 1.0,
        "rel_err": 0.001,
        "sqnr_db": 50.0,
        "max_err": 0.1,
        "zeroed": 0.0,
    } | change
    lost = figures["top_merged"] or figures["top_swapped"] or figures["top_worst"] < 1
    return with_format({"top_order_kept": not lost} | figures, settings)


def stored(mode, n_bits, bits, sqnr_db, **change):
    """A row of a sweep of formats."""
    return row(n_bits, **{"mode": mode, "bits_per_value": bits, "sqnr_db": sqnr_db} | change)


def some(**change):
    return [
        stored("symmetric", 4, 4.01, 10.0, **change),
        stored("symmetric", 8, 8.01, 34.0, **change),
        stored("symmetric", 8, 9.0, 44.0, **GROUP, **change),
        stored("nf4", 4, 4.5, 20.0, **GROUP, **change),
        stored("fp8_e4m3", 8, 8.01, 31.5, **change),
    ]


def judged(rows, bar=None):
    """Rows of runs that have a bar."""
    return [row | (bar or Bar()).columns() for row in rows]


def widths_of(rows, levels=LEVELS, bar=None):
    return find_widths(judged(rows, bar), levels)


def choices_of(rows, levels=FORMAT_LEVELS, bar=SQNR):
    return find_choices(judged(rows, bar), levels)


def storage_of(rows, levels=FORMAT_LEVELS, bar=SQNR):
    return storage_choices(judged(rows, bar), levels)


def findings_of(rows, levels=FORMAT_LEVELS, bar=SQNR, answers=()):
    """What there is to report of rows, and of rows of answers."""
    rest = {
        "mae": 0.1, "cos_sim": 0.9, "n_codes": 16, "scale": None, "zero_point": None,
        "n_elements": 600, "bits_above_bound": 1.0, "clip_share": 0.0, "zero_share": 0.1,
        "round_share": 0.9,
    }  # fmt: skip
    full = [rest | row for row in judged(rows, bar)]
    nothing = {"details": [], "histogram": [], "failures": {}, "skipped": {}, "unmeasured": []}
    return Findings(full, levels, **nothing, provenance={}, answers=judged(answers, bar))


def sweep(rows, levels=FORMAT_LEVELS, failures=(), directory="sweep", **change):
    """What a sweep of some rows holds; of each source and name there is one tensor."""
    names = dict.fromkeys((row["dist"], row["tensor"]) for row in rows)
    tensor = {"dtype": "float32", "shape": [SIZE], "sha256": "0" * 64}
    tensors = [tensor | {"dist": dist, "name": name} | change for dist, name in names]
    return Aggregated(Path(directory), rows, list(levels), tensors, dict(failures), HASHES)


FIGURES = st.fixed_dictionaries(
    {
        "n_bits": st.integers(2, 8),
        "bits": st.integers(2, 40).map(lambda n: n / 4),
        "sqnr_db": st.one_of(st.none(), st.floats(20, 40)),
        "rel_err": st.floats(0.001, 0.02),
        "top_order_kept": st.booleans(),
    }
)


def drawn_row(tensor, figures):
    """A row of drawn figures; without an SQNR nothing was lost."""
    exact = {"max_err": 0.0, "rel_err": 0.0} if figures["sqnr_db"] is None else {}
    return stored("symmetric", tensor=tensor, **figures | exact)


ROWS = st.lists(
    st.tuples(st.sampled_from("abc"), FIGURES),
    min_size=1,
    max_size=12,
    unique_by=lambda drawn: (drawn[0], drawn[1]["n_bits"]),
).map(lambda drawn: [drawn_row(*pair) for pair in drawn])


def stored_tensor(name, sqnr_db, dtype="Q4_K", file="m-Q4_K_M.gguf", **change):
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


FILE_ROWS = [
    stored_tensor("a", 20.5),
    stored_tensor("norm", None, "F32", bits_per_value=32.0, n_elements=8, max_err=0.0),
    stored_tensor("b", 12.25),
    stored_tensor("c", 31.0, "Q6_K", bits_per_value=6.5625),
]


def files_of(rows, bar=SQNR):
    """The quantized files of rows."""
    return stored_rows(judged(rows, bar), ["dist", "mode", "tensor", "mode.path"])


def answer(format, bits, kl=0.01, same=0.99, n=100, **change):
    """A row of answers.csv, of probabilities unless a `kind` is given, with its changes."""
    low, high = wilson(round(same * n), n)
    figures = dict.fromkeys(ANSWER_FIGURES) | {
        "kl": kl, "kl_median": kl / 2, "kl_p99": kl * 10, "kl_max": kl * 20, "top1_same": same,
        "top1_low": low, "top1_high": high, "top_same_set": 0.5, "top_same_order": 0.25,
        "top_worst": 0.9, "top_best": 0.9, "dp_rms": 0.01, "sqnr_db": 30.0, "cos_sim": 0.999,
    }  # fmt: skip
    if change.get("kind") == "values":
        figures = dict.fromkeys(ANSWER_FIGURES) | {"sqnr_db": 30.0, "cos_sim": 0.999}
    names = {"dist": "file/onnx", "mode": "symmetric", "n_bits": 4, "tensor": "", "output": "probs"}
    rest = {"rows": n, "samples": n, "bits_per_value": bits, "kind": "probabilities"}
    return names | rest | figures | {"format": format, "remark": None, "changes": []} | change


def first_change(sample, p_before=0.9, row=0):
    """A first answer that changed, from 1 to 2."""
    places = {"sample": sample, "row": row, "before": 1, "after": 2}
    return places | {"p_before": p_before, "p_after": 0.5}


def many_answers(output="probs"):
    """The answers in twelve formats, with each of two tensors stored alone, and what changed."""
    rows = []
    for n in range(2, 14):
        kl = 4.0**-n
        rows += [
            answer(f"sym {n} bits", float(n), kl * share, output=output, tensor=tensor)
            for tensor, share in (("a", 0.5), ("b", 0.7 / n))
        ]
        changes = [first_change(place, 0.9 - place / 100) for place in range(5)]
        rows.append(answer(f"sym {n} bits", float(n), kl, output=output, changes=changes))
    return rows


def outputs_of(rows, **bar):
    """The outputs of rows of answers, judged by a bar."""
    return find_outputs(judged(rows, Bar(top_order=None, rel_err=None, **bar)))
