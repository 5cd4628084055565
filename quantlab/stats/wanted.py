"""What a measurement wants of every block that goes through a format."""

from typing import NamedTuple

from quantlab.formats.element import FloatArray
from quantlab.stats.output_error import ColumnImportance


class Wanted(NamedTuple):
    """The settings of a measurement, and where a block leaves what has a place of its own.

    Maxima are of rows of `width` values as they come back; `maxima` is empty where those of the
    tensor tell them. Every `stride`-th error goes to `errors`. Where there is importance of
    `columns`, the error of the output is wanted.
    """

    rel_threshold: float
    width: int
    maxima: FloatArray
    stride: int
    errors: FloatArray
    columns: ColumnImportance | None
