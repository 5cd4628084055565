"""One array measured, for notebooks and scripts."""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from quantlab.formats import uniform
from quantlab.records import record
from quantlab.report.run_summary import run_summary
from quantlab.report.texts import Texts
from quantlab.sources.tensor import Tensor
from quantlab.stats.stream import measure as measure_tensor
from quantlab.stats.stream import usable_cores

NAME = "x"


class Measurement(Mapping[str, Any]):
    """What the round trip of one array costs: its figures under their keys, as in results.csv.

    ``dict(result)`` holds them all; a notebook shows them as a page does.
    """

    def __init__(self, tensor: dict[str, Any], mode: str, n_bits: int) -> None:
        """Take what a record says of a tensor."""
        self._tensor, self._mode, self._n_bits = tensor, mode, n_bits
        self._figures = record.figures(tensor)

    def __getitem__(self, key: str) -> Any:
        """Return a figure; None where it does not exist, and `reasons` says why."""
        return self._figures[key]

    def __iter__(self) -> Iterator[str]:
        """Go through the keys."""
        return iter(self._figures)

    def __len__(self) -> int:
        """Return how many figures there are."""
        return len(self._figures)

    def __repr__(self) -> str:
        """Return every figure, a line each."""
        run = {"mode": self._mode, "n_bits": self._n_bits, "tensors": {NAME: self._tensor}}
        return run_summary(run, Texts("en"))

    def _repr_html_(self) -> str:
        from quantlab.report import page  # Matplotlib, which only a notebook needs

        name = f"{NAME}, {self._mode}"
        return page.measurement(name, self._n_bits, self._tensor, Texts("en"))


def measure(x: ArrayLike, mode: str = "sym", n_bits: int = 8) -> Measurement:
    """Measure what it costs to store an array in n bits.

    Parameters
    ----------
    x
        Real numbers of any shape and dtype; they are measured as float32.
    mode
        ``"sym"`` or ``"asym"``.
    n_bits
        Width of the codes, 2 to 16.

    Raises
    ------
    ValueError
        When `x` is empty, not finite or no real numbers, or `mode` or `n_bits` is unknown.

    Examples
    --------
    >>> result = measure([0.0, 0.5, -3.5], n_bits=4)
    >>> result["scale"], result["max_err"], result["n_codes"]
    (0.5, 0.0, 3)
    """
    if mode not in uniform.MODES:
        raise ValueError(f"mode must be one of {', '.join(uniform.MODES)}, got {mode!r}")
    quantizer = uniform.MODES[mode](n_bits)
    if np.ma.isMaskedArray(x):
        raise ValueError(
            "x is a masked array: measure x.compressed(), or x.data to ignore the mask"
        )
    array = np.asarray(x)
    if not np.can_cast(array.dtype, np.float32, "same_kind"):
        raise ValueError(f"x must hold real numbers, got dtype {array.dtype}")
    tensor = measure_tensor(Tensor(NAME, array), quantizer, threads=usable_cores())
    return Measurement(tensor | {"predicted": None}, uniform.mode_name(mode), n_bits)
