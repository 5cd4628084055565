"""Draw the levels of every element grid on a number line: ``make levels`` writes levels.png."""

from pathlib import Path

import numpy as np

import quantlab.measurement as measurement
from quantlab.formats.element import Bounds, per_value
from quantlab.formats.format import as_element
from quantlab.formats.scales import FLOAT32
from quantlab.report import plots

GRIDS = {
    "sym, 4 bits": ("sym", 4),
    "asym, 4 bits": ("asym", 4),
    "log, 4 bits": ("log", 4),
    "nf4": ("nf4", None),
    "fp4": ("fp4", None),
    "fp6_e2m3": ("fp6_e2m3", None),
    "fp6_e3m2": ("fp6_e3m2", None),
    "fp8_e4m3": ("fp8_e4m3", None),
    "fp8_e5m2": ("fp8_e5m2", None),
}


def levels(mode: str, n_bits: int | None) -> np.ndarray:
    """Return the values of a grid whose block reaches from -1 to 1, its least magnitude 1/64."""
    element = as_element(measurement.load_mode(mode, n_bits))
    x = np.linspace(-1, 1, 2**16 + 1, dtype=np.float32)
    bounds = Bounds(*(np.array([end]) for end in (-1.0, 1.0, 1 / 64)))
    params = element.fit(bounds, FLOAT32.store).params
    return np.unique(element.reconstruct(x[None], per_value(params)))


def main() -> None:
    """Write the picture beside this file."""
    with plots.plot_style():
        drawn = plots.figure(3.4, width=7.5)
        panel = drawn.subplots()
        values = [levels(*grid) for grid in GRIDS.values()]
        rows = range(len(values), 0, -1)
        panel.eventplot(values, lineoffsets=list(rows), linelengths=0.6, colors=plots.BARS, lw=0.8)
        panel.set_yticks(list(rows), list(GRIDS))
        panel.set_xlabel("value, in units of the largest of the block")
        panel.spines["left"].set_visible(False)
        panel.tick_params(axis="y", length=0)
        Path(__file__).with_name("levels.png").write_bytes(plots.png(drawn))


if __name__ == "__main__":
    main()
