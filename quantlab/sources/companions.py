"""Scales that stand beside weights, of activations, KV caches and fused layers, and their faults.

They change no weight, but what a runtime computes with it. Each fault is a sentence of the weight
beside which the scale stands. Nothing is read before a weight is opened.
"""

from collections.abc import Iterable, Iterator
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quantlab.sources.file import MappedArray

OF_INPUTS = ("input_scale", "input_global_scale", "scale_input", "activation_scale", "qscale_act")
OF_CACHE = ("k_scale", "v_scale")
OF_TENSOR = ("weight_scale_2", "weight_global_scale")
FUSED = (  # layers that runtimes join to one
    ("q_proj", "k_proj", "v_proj"),
    ("gate_proj", "up_proj"),
    ("w1", "w3"),
)


class Companions:
    """The scales of a file that belong to no weight's own values."""

    def __init__(self, arrays: Iterable[MappedArray]) -> None:
        self._arrays = {array.name: array for array in arrays if array.dtype is not None}

    def find_faults(self, name: str) -> Iterator[str]:
        """Yield what is wrong with the scales beside a weight, each a sentence."""
        layer = name.removesuffix(".weight")
        for key in OF_INPUTS:
            values = self._read(f"{layer}.{key}")
            bad = values[(values == 0) | ~np.isfinite(values)]
            if bad.size:
                yield f"its {key} is {bad[0]:g}, with which no activation is computed"
        if layer.endswith(("k_proj", "v_proj")) and self._has_unit_cache:
            yield "every k_scale and v_scale of the file is 1, as where no KV cache was calibrated"
        yield from self._compare_fused(layer)

    def _compare_fused(self, layer: str) -> Iterator[str]:
        """Yield that the scales of layers that runtimes join are not the same."""
        path, dot, projection = layer.rpartition(".")
        names = next((names for names in FUSED if projection in names), ())
        for key in OF_TENSOR:
            scales = {name: self._read(f"{path}{dot}{name}.{key}") for name in names}
            sizes = {values.size for values in scales.values()} - {0}
            if not scales or sizes != {1} or not scales[projection].size:
                continue
            others = [
                name
                for name, values in scales.items()
                if values.size and values.item() != scales[projection].item()
            ]
            if others:
                listed = " and ".join(others)
                yield (
                    f"its {key} is not that of {listed}: vLLM joins the layers and takes the "
                    "largest for all"
                )

    @cached_property
    def _has_unit_cache(self) -> bool:
        """True where there are scales of KV caches, and all of them are 1."""
        names = [name for name in self._arrays if name.rpartition(".")[2] in OF_CACHE]
        return bool(names) and all((self._read(name) == 1).all() for name in names)

    def _read(self, name: str) -> NDArray[Any]:
        """Read a scale as float32; it is empty where there is none."""
        array = self._arrays.get(name)
        if array is None:
            return np.empty(0, np.float32)
        return array.open().array.astype(np.float32).reshape(-1)
