"""Sweeps made by hand for the tests of plans."""

from pathlib import Path

from quantlab.formats.format import FormatSpec
from quantlab.plans.mixture import plan_for_bar, plan_within_budget
from quantlab.plans.options import Assignment, Option, Original
from quantlab.plans.problem import Request, build_problem
from quantlab.records.table import Aggregated
from quantlab.report.choices import FormatResult

FORMATS = {  # of a name the mode, width, block and size of its row
    "sym 4 bits, group 32": ("symmetric", 4, "group", 32),
    "asym 4 bits, group 64": ("asymmetric", 4, "group", 64),
    "sym 8 bits, channel": ("symmetric", 8, "channel", None),
    "sym 8 bits": ("symmetric", 8, "tensor", None),
    "fp8_e4m3, channel": ("fp8_e4m3", 8, "channel", None),
    "mx/fp4": ("mx/fp4", 4, "group", 32),
    "nf4, group 64": ("nf4", 4, "group", 64),
    "ggml/q4_k": ("ggml/q4_k", 4, "group", 256),
    "ggml/q8_0": ("ggml/q8_0", 8, "group", 32),
}
LEVELS = ["dist", "mode", "n_bits", "tensor", "block", "block_size"]
HASHES = {"results.json": "0" * 64, "results.csv": "0" * 64}  # of an aggregate


def row(tensor, form, bits, sqnr_db, size=1000, **change):
    """A row of a sweep's table."""
    mode, n_bits, block, block_size = FORMATS[form]
    stored = {"stored_dtype": mode[5:]} if mode.startswith("ggml/") else {}
    return {
        "dist": "file/safetensors", "tensor": tensor, "mode": mode, "n_bits": n_bits,
        "block": block, "block_size": block_size, "scale_dtype": "float32", "range": "absmax",
        "bits_per_value": bits, "n_elements": size, "sqnr_db": sqnr_db, "dtype": "float32",
        "max_err": 0.1, "rel_err": 0.001, "top_order_kept": True, "top_k": 5, "zeroed": 0.0,
        "n_scales": size // (block_size or size), "out_sqnr_db": None, "settings": None,
        "format": form,
    } | stored | change  # fmt: skip


def original(name, shape=(10, 100), **change):
    """A tensor as a manifest lists it."""
    return {
        "dist": "file/safetensors", "name": name, "dtype": "float32", "shape": list(shape),
        "sha256": "0" * 64,
    } | change  # fmt: skip


def sweep(rows, tensors=None, levels=LEVELS, failures=None, directory="sweep"):
    """A sweep of some rows, of tensors of 10 x 100 values."""
    names = dict.fromkeys(each["tensor"] for each in rows)
    listed = tensors or [original(name) for name in names]
    return Aggregated(Path(directory), rows, list(levels), listed, failures or {}, HASHES)


def two(**change):
    """Two tensors in three formats each, which suffer differently."""
    return [
        row(name, form, bits, sqnr_db - less, **change)
        for name, less in (("a.weight", 0), ("b.weight", 9))
        for form, bits, sqnr_db in (
            ("sym 4 bits, group 32", 4.5, 19.0),
            ("sym 8 bits, channel", 8.25, 42.0),
            ("sym 8 bits", 8.0, 36.0),
        )
    ]


def spec(name):
    """The spec of a format of a name."""
    return FormatSpec(name, None, None, None, None, None, name=name)


def assigned(name, bits, noise, tensor=None, row=None):
    """A tensor in a format of a name."""
    tensor = tensor or Original("file/gguf", "w", "float16", (10, 10), 1600)
    return Assignment(tensor, bits, noise, FormatResult(spec(name), row or {}))


def stored(bits, dtype="float32", name="w"):
    """A tensor as it is stored."""
    return Assignment(Original("file/gguf", name, dtype, (10, 10), bits), bits)


def option(*assignments):
    """The option of tensors in the format of the first."""
    return Option.of(assignments, assignments[0].spec)


def make(rows=None, budget=13_000, tensors=None, bar=None, **asked):
    """The plan of rows, those of `two` if there are none, for a budget in bits or a bar."""
    rows = [row | (bar.columns() if bar else {}) for row in rows or two()]
    problem = build_problem(sweep(rows, tensors), Request(**asked))
    return plan_for_bar(problem) if bar else plan_within_budget(problem, budget)


def chosen(plan):
    """The format of each tensor."""
    return {each.tensor.name: each.format for each in plan.assignments}
