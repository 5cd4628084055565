"""A plan as a format: each tensor is stored in the format that plan.json gives it."""

import hashlib
import json
from collections.abc import Mapping
from copy import copy
from dataclasses import replace
from functools import cached_property
from math import prod
from pathlib import Path
from threading import Lock
from typing import Any, cast

from quantlab.conf import load_option
from quantlab.formats.blocks import UnfitError
from quantlab.formats.element import ContradictionError, FloatArray
from quantlab.formats.format import Codec, Format, FormatSpec, NamedTensor, Reconstruction, compose
from quantlab.formats.ranges import AbsMax
from quantlab.sources.file import existing_path, readable
from quantlab.sources.imatrix import Imatrix
from quantlab.sources.tensor import Tensor
from quantlab.stats.measure import reconstruct

Formats = Mapping[FormatSpec, Format | Codec]


class Planned(Codec):
    """The plan of ``quantlab plan``; raises ValueError, naming the file, where it is none.

    Its widths are its own: `n_bits` must be None.
    """

    def __init__(self, path: str, n_bits: int | None = None) -> None:
        if n_bits is not None:
            raise ContradictionError(
                f"n_bits={n_bits} does not go with mode=plan, which has a width for each tensor: "
                "leave it out"
            )
        self.path, self.n_bits = existing_path(path, "plan"), None
        with readable(self.path, "plan"):
            content = json.loads(Path(self.path).read_bytes())
            self._specs = {row["tensor"]: _read_spec(row) for row in content["tensors"]}
            self._dtypes = {row["tensor"]: row["dtype"] for row in content["tensors"]}
            self.predicted_kl: float | None = content.get("predicted_kl")
        self._formats: Formats = {
            spec: build_format(spec) for spec in dict.fromkeys(self._specs.values()) if spec
        }
        codecs = [form for form in self._formats.values() if isinstance(form, Codec)]
        self.versions = {name: v for codec in codecs for name, v in codec.versions.items()}

    def bind(self, source: Any) -> "Planned":
        """Return the plan for the tensors of one source."""
        bound = copy(self)
        bound._formats = {
            spec: form.bind(source) if isinstance(form, Codec) else form
            for spec, form in self._formats.items()
        }
        return bound

    def open(self, tensor: NamedTensor) -> Reconstruction:
        """Return a tensor in its format; raises UnfitError where the plan leaves it as it is."""
        if tensor.name not in self._specs:
            raise UnfitError(f"{self.path} does not name it")
        spec = self._specs[tensor.name]
        if spec is None:
            raise UnfitError(f"the plan leaves it in {self._dtypes[tensor.name]}")
        opened = self._formats[spec].open(tensor)
        if isinstance(opened, Format):
            opened = _as_reconstruction(tensor, opened)
        identity = hashlib.sha256(json.dumps(spec.to_json(), sort_keys=True).encode()).hexdigest()
        return replace(opened, dtype=spec.name, source=Path(self.path).name, sha256=identity)


def _read_spec(row: Mapping[str, Any]) -> FormatSpec | None:
    """Return the format of a tensor of plan.json; None where it stays as it is stored."""
    if "mode" not in row:
        return None
    return FormatSpec.from_row({"n_bits": None, "settings": None, **row})


def build_format(spec: FormatSpec) -> Format | Codec:
    """Make the format that a spec identifies, from the options that it names.

    Raises ValueError where there is no such option.
    """
    mode = _build_option(spec, "mode", spec.mode, n_bits=spec.n_bits)
    if isinstance(mode, Format | Codec):
        return mode
    size = {} if spec.block_size is None else {"size": spec.block_size}
    block = _build_option(spec, "block", spec.block, scale=spec.scale_dtype, **size)
    range_ = _build_option(spec, "range", spec.range) if spec.range else AbsMax()
    return compose(mode, block, range_)


def _build_option(spec: FormatSpec, group: str, option: str | None, **settings: Any) -> Any:
    """Instantiate an option of a config group with the settings of a spec."""
    from hydra.utils import instantiate  # which reading a plan does without

    config = load_option(group, option) if option else None
    if config is None:
        raise ValueError(
            f"the plan has a format of {group}={option}, which does not exist: --config-dir=DIR "
            "names the directory of your own options"
        )
    own = dict(config.get(group, config))
    for key, value in spec.settings:
        node, *keys = key.split(".")
        if node == group:
            _set_nested(own, keys, value)
    if own.get("imatrix"):
        own["imatrix"] = Imatrix(own["imatrix"])
    return instantiate(own, **settings)


def _set_nested(config: dict[str, Any], keys: list[str], value: Any) -> None:
    *nodes, last = keys
    for node in nodes:
        config = config.setdefault(node, {})
    config[last] = value


class _Quantized:
    """The values that a tensor comes back as in a format, computed when they are first read."""

    def __init__(self, tensor: Tensor, form: Format) -> None:
        self._tensor, self._form = tensor, form
        self._lock = Lock()

    @cached_property
    def _x_hat(self) -> FloatArray:
        # On this thread alone: it may be one of the pool's, which would wait for itself.
        return reconstruct(self._tensor, self._form, threads=1).reshape(-1)

    def read(self, start: int, stop: int) -> FloatArray:
        """Reconstruct elements `start` to `stop`."""
        with self._lock:
            return self._x_hat[start:stop]


def _as_reconstruction(tensor: NamedTensor, form: Format) -> Reconstruction:
    """Return a tensor in a format of ours as if a library had stored it."""
    bits_per_value = form.bits_per_value(form.block.layout(tensor.shape))
    bits = round(bits_per_value * prod(tensor.shape))
    return Reconstruction(_Quantized(cast("Tensor", tensor), form).read, "", bits)
