"""A plan as a format: each tensor is stored in the format that plan.json gives it."""

import hashlib
import json
from collections.abc import Callable, Collection, Mapping
from copy import copy
from dataclasses import replace
from functools import cached_property, partial
from math import prod
from pathlib import Path
from threading import Lock
from typing import Any, cast

from quantlab.conf import instantiate_with, load_option, own_settings
from quantlab.formats.blocks import Group, PerTensor, UnfitError
from quantlab.formats.element import FloatArray, require_no_width
from quantlab.formats.format import (
    CALIBRATION,
    Codec,
    Format,
    FormatSpec,
    NamedTensor,
    Reconstruction,
    compose,
)
from quantlab.formats.ranges import AbsMax
from quantlab.models.activations import open_inputs
from quantlab.records import disk
from quantlab.sources.file import existing_path, file_sha256
from quantlab.sources.imatrix import Imatrix
from quantlab.sources.onnx import Onnx
from quantlab.sources.tensor import Tensor
from quantlab.stats.measure import reconstruct
from quantlab.text import label

Formats = dict[FormatSpec, Format | Codec]


class Planned(Codec):
    """The plan of ``quantlab plan``; raises ValueError, naming the file, where it is none.

    Its widths are its own: `n_bits` must be None.
    """

    def __init__(self, path: str, n_bits: int | None = None) -> None:
        require_no_width(n_bits, "plan", "which has a width for each tensor")
        self.path, self.n_bits = existing_path(path, "plan"), None
        try:
            content = disk.read_json(Path(self.path))
            rows = {str(row["tensor"]): row for row in content["tensors"]}
            self.specs = {name: _read_spec(row) for name, row in rows.items()}
            self._stored = {name: (row["dtype"], row["n_elements"]) for name, row in rows.items()}
            kl = content.get("predicted_kl")
            self._predicted_kl = None if kl is None else float(kl)
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
            raise ValueError(f"{path} is no plan: quantlab plan writes one") from None
        if len(rows) != len(content["tensors"]):
            raise ValueError(f"{path} has two tensors of one name: a plan is of one checkpoint")
        specs = dict.fromkeys(spec for spec in self.specs.values() if spec)
        self._with_inputs = [spec for spec in specs if spec.setting(CALIBRATION)]
        self._formats: Formats = {
            spec: build_format(spec) for spec in specs if spec not in self._with_inputs
        }
        codecs = [form for form in self._formats.values() if isinstance(form, Codec)]
        self.versions = {name: v for codec in codecs for name, v in codec.versions.items()}

    def bind(self, source: Any) -> "Planned":
        """Return the plan for the tensors of one source; raises ValueError as `Planned` does.

        What inputs a rounding takes depends on the source: see `open_inputs`.
        """
        bound, model = copy(self), source.path if isinstance(source, Onnx) else None
        bound._formats = {
            spec: form.bind(source) if isinstance(form, Codec) else form
            for spec, form in self._formats.items()
        }
        bound._formats |= {spec: build_format(spec, model) for spec in self._with_inputs}
        return bound

    def open_format(self, tensor: NamedTensor) -> Format | Reconstruction:
        """Open the format of a tensor; raises UnfitError where the plan leaves it as it is."""
        if tensor.name not in self.specs:
            raise UnfitError(f"{self.path} does not name it")
        spec, (dtype, size) = self.specs[tensor.name], self._stored[tensor.name]
        if size != prod(tensor.shape):
            raise ValueError(
                f"{self.path} has '{label(tensor.name)}' with {size} values, not "
                f"{prod(tensor.shape)}: it is the plan of another checkpoint"
            )
        if spec is None:
            raise UnfitError(f"the plan leaves it in {dtype}")
        return self._formats[spec].open(tensor)

    def open(self, tensor: NamedTensor) -> Reconstruction:
        """Return a tensor in its format; raises UnfitError where the plan leaves it as it is."""
        opened, spec = self.open_format(tensor), cast("FormatSpec", self.specs[tensor.name])
        if isinstance(opened, Format):
            identity = str(opened.block.axis if isinstance(opened.block, Group) else None)
            identity += "".join(map(str, opened.identity(tensor).values()))
            opened = replace(_as_reconstruction(tensor, opened), sha256=identity)
        imatrix = spec.setting("mode.imatrix")
        content = [
            spec.to_json(),
            opened.sha256,
            file_sha256(existing_path(imatrix)) if imatrix else None,
        ]
        identity = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
        return replace(opened, dtype=spec.name, source=Path(self.path).name, sha256=identity)

    def add_prediction(self, answers: list[dict[str, Any]], replaced: Collection[str]) -> None:
        """Add what the plan is predicted to lose to the output that loses most.

        There is no prediction unless all tensors that it stores in a format were replaced.
        """
        planned = {name for name, spec in self.specs.items() if spec}
        ranked = [answer for answer in answers if answer["figures"]["kl"] is not None]
        if self._predicted_kl is not None and ranked and planned <= set(replaced):
            worst = max(ranked, key=lambda answer: answer["figures"]["kl"])
            worst["predicted_kl"] = self._predicted_kl


def _read_spec(row: Mapping[str, Any]) -> FormatSpec | None:
    """Return the format of a tensor of plan.json; None where it stays as it is stored."""
    if "mode" not in row:
        return None
    return FormatSpec.from_row({"n_bits": None, "settings": None, **row})


def build_format(spec: FormatSpec, model: str | None = None) -> Format | Codec:
    """Make the format that a spec identifies, from the options that it names, as `make_format`.

    Raises ValueError where there is no such option.
    """
    options = {
        group: _option_config(spec, group, name)
        for group in ("transform", "rounding")
        if (name := spec.setting(group))
    }
    mode = _make_option("mode", _option_config(spec, "mode", spec.mode, n_bits=spec.n_bits))
    if not isinstance(mode, Format | Codec):  # which fix their blocks and ranges
        size = {} if spec.block_size is None else {"size": spec.block_size}
        options["block"] = _option_config(spec, "block", spec.block, scale=spec.scale_dtype, **size)
        if spec.range:
            options["range"] = _option_config(spec, "range", spec.range)
    return make_format({"mode": mode, **options}, model)


def _option_config(
    spec: FormatSpec, group: str, option: str | None, **settings: Any
) -> dict[str, Any]:
    """Return the config of an option of a group, with the settings of a spec."""
    config = load_option(group, option) if option else None
    if config is None:
        raise ValueError(
            f"the plan has a format of {group}={option}, which does not exist: --config-dir=DIR "
            "names the directory of your own options"
        )
    own = dict(config.get(group, config)) | settings
    for key, value in spec.settings:
        node, *keys = key.split(".")
        if node == group and keys:  # without keys it is the name of the option
            _set_nested(own, keys, value)
    return own


def _set_nested(config: dict[str, Any], keys: list[str], value: Any) -> None:
    *nodes, last = keys
    for node in nodes:
        config = config.setdefault(node, {})
    config[last] = value


def make_format(options: Mapping[str, Any], model: str | None = None) -> Format | Codec:
    """Make the format of options of config groups, which are configs or made already.

    Without a block there is one scale a tensor, without a range all of it is covered. With the path
    of an ONNX `model` a rounding takes the inputs that its layers have there.
    """
    made = {group: _make_option(group, option, model) for group, option in options.items()}
    defaults: dict[str, Any] = {"block": PerTensor(), "range": AbsMax()}
    return compose(**(defaults | made))


def _make_option(group: str, option: Any, model: str | None = None) -> Any:
    """Instantiate an option of a config group, and open the file that says what inputs count."""
    if not isinstance(option, Mapping):
        return option
    own = own_settings(group, option)
    readers: dict[str, tuple[str, Callable[[str], Any]]] = {
        "mode": ("imatrix", Imatrix),
        "rounding": ("inputs", partial(open_inputs, model=model)),
    }
    key, read = readers.get(group, ("", str))
    return instantiate_with(own, **({key: read(own[key])} if own.get(key) else {}))


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
    read = _Quantized(cast("Tensor", tensor), form).read
    return Reconstruction(read, "", form.storage_bits(tensor.shape))
