"""The answers of the models of a sweep: its records -> answers.csv -> pandas again."""

from collections.abc import Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import pandas as pd

from quantlab.models.figures import FIGURES
from quantlab.records.collection import require_directory
from quantlab.records.manifest import read_artefact, read_artefact_hashes
from quantlab.records.record import BAR_PREFIX, CHANGES, Record, Row, Run, answer_figures
from quantlab.records.rows import Rows
from quantlab.records.table import (
    FACTORS,
    Aggregated,
    bar_columns,
    file_names,
    format_columns,
    setting,
    swept_axes,
)
from quantlab.records.table import rows as table_rows
from quantlab.text import as_text

NAME = "answers.csv"
ANSWER_KL = "answer_kl"  # beside the kl of a tensor that is a probability vector itself
TEXT = ("dist", "mode", "tensor", "output", "kind", "format", "remark")
COUNTS = ("n_bits", "rows", "samples")


def answer_rows(runs: Sequence[Run], figures: Rows) -> list[Row]:
    """List one row for each output of each run that answered, and its `CHANGES`."""
    records = [run.record for run in runs if run.record]
    axes = swept_axes(records)
    files = file_names(records, figures)
    return [row for content in records for row in _rows(content, figures, axes, files)]


def answers_csv(rows: Sequence[Row]) -> bytes:
    """Write answers.csv."""
    table = pd.DataFrame(rows, dtype=object).drop(columns=CHANGES)
    text: str = table.to_csv(index=False, lineterminator="\n")
    return text.encode(errors="backslashreplace")


def _rows(
    content: Record, figures: Rows, axes: Sequence[str], files: Mapping[str, str]
) -> list[dict[str, Any]]:
    if "answers" not in content:
        return []
    factors = {key: content[key] for key in FACTORS if key != "tensor"}
    settings = {axis: setting(content, axis) for axis in axes}
    file = files.get(str(setting(content, "mode.path")))
    name = format_columns(content["spec"], file)["format"] if content["spec"] else None
    tensors = {tensor: figures[row] for tensor, row in content["tensors"].items()}
    return [
        factors | settings | answer_figures(answer, tensors, name) | bar_columns(content)
        for answer in content["answers"]
    ]


def read_rows(sweep: Aggregated) -> list[Row]:
    """Read the rows of the answers.csv of a sweep; there are none where no model answered."""
    if NAME not in sweep.artefacts:
        return []
    return table_rows(_read_table(sweep.directory, sweep.artefacts))


def with_answer_kl(sweep: Aggregated) -> Aggregated:
    """Add to the rows of a sweep the KL of the answers with the one tensor replaced, in bits.

    It is `ANSWER_KL`, the largest of the outputs that have one. Raises ValueError where none has.
    """
    table = _read_table(sweep.directory, sweep.artefacts)
    alone = table[(table["tensor"] != "") & table["kl"].notna()]
    if alone.empty:
        raise ValueError(
            f"{sweep.directory} has no answers with each tensor alone: sweep with model=... "
            "model.each=true"
        )
    columns = list(table.columns)
    keys = [*columns[: columns.index("output")], "format"]
    kl: dict[tuple[str, ...], float] = {}
    for row in table_rows(alone):
        kl[_key(row, keys)] = max(row["kl"], kl.get(_key(row, keys), 0.0))
    rows: list[Row] = [{**row, ANSWER_KL: kl.get(_key(row, keys))} for row in sweep.rows]
    return sweep._replace(rows=rows)


def _key(row: Row, columns: Sequence[str]) -> tuple[str, ...]:
    return tuple(as_text(row[column]) for column in columns)


def answers(directory: str | Path) -> pd.DataFrame:
    """Load the answers of a sweep, one row a run and output, from its answers.csv.

    `tensor` is empty where all weights were replaced. Text is ``string``, counts are ``Int64``,
    everything else is ``float64``; a figure that does not exist is missing. What the sweep varied
    stands after the first three columns.

    ==============================  ================================================================
    columns                         unit
    ==============================  ================================================================
    rows, samples                   counts of answers, and of inputs
    kl, kl_median, kl_p99, kl_max   bits: divergence of the answers from the original's; the mean of
                                    all samples, their median, 99th percentile and largest
    top1_same                       share of rows whose first answer is the same, and the ends of
    top1_low, top1_high             its 95 % interval (Wilson)
    top_same_set, top_same_order    share of rows whose k first answers are the same, and in order
    top_worst, top_best             share of the k first that stay, however ties are broken
    dp_rms                          root of the mean square of the change in probability of the
                                    original's first answer
    sqnr_db, cos_sim                dB; none: of the numbers themselves
    accuracy, accuracy_before       shares of first answers that are right, with labels
    bits_per_value                  bits of what was replaced, over its values
    kind                            probabilities, logits or values
    format, remark                  the name of the format; what makes figures doubtful
    predicted_kl                    bits: what a plan is predicted to lose
    bar_...                         criteria of the bar that the run is judged by, as in `load`
    ==============================  ================================================================

    Raises ValueError if the directory holds no answers, or such as are not as they were aggregated.
    """
    require_directory(Path(directory))
    return _read_table(Path(directory), read_artefact_hashes(Path(directory)))


def _read_table(directory: Path, hashes: Mapping[str, str] | None) -> pd.DataFrame:
    """Read answers.csv, with these `hashes` in the manifest beside it."""
    path = directory / NAME
    if not path.exists():
        raise ValueError(
            f"{path} does not exist: sweep with model=... (docs/answers.md), then quantlab "
            f"aggregate {directory} writes it"
        )
    table = pd.read_csv(
        BytesIO(read_artefact(directory, NAME, hashes)),
        dtype=dict.fromkeys(TEXT, "string") | dict.fromkeys(COUNTS, "Int64"),
        keep_default_na=False,  # a tensor may be called NA
        na_values=[""],
        dtype_backend="numpy_nullable",
        lineterminator="\n",
    )
    columns = (key for key in map(str, table) if key.startswith(BAR_PREFIX))
    limits = [key for key in columns if str(table[key].dtype) != "boolean"]
    figures = [*FIGURES, "bits_per_value", "predicted_kl", *limits]
    return table.astype(dict.fromkeys(figures, "float64")).fillna({"tensor": ""})
