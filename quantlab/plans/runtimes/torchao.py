"""torchao: the JSON of an ``FqnToConfig``, as ``torchao.core.config.config_from_dict`` reads it.

``mode=torchao/...`` is torchao's own rule, and its figures those of the result. ``mode=sym`` takes
7 steps in 4 bits where torchao takes 7.5, half the width of the range, so that its figures differ,
in 4 bits by 0.2 dB and in 2 bits by 3. torchao keeps integer codes in int8 until a backend packs
them: sizes are those of packed codes.
"""

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from quantlab.conf import load_option
from quantlab.formats.format import FormatSpec
from quantlab.formats.torchao import INTX_BITS, TorchaoInt4, TorchaoInt8, TorchaoIntx
from quantlab.plans.options import Assignment, float_width
from quantlab.plans.runtimes.runtime import Runtime, integer_spec, own_spec, standard_spec
from quantlab.records import disk

INTEGERS = {"sym": "SYMMETRIC", "asym": "ASYMMETRIC"}
FLOATS = {"fp8_e4m3": "float8_e4m3fn", "fp8_e5m2": "float8_e5m2"}
OWN_MODES = (TorchaoInt4.mode, TorchaoInt8.mode, TorchaoIntx.mode)
BLOCKS = ("channel", "group")  # that integers may have; floats may also have one scale a tensor


class Torchao(Runtime):
    """torchao's weight-only configs of integers and of fp8."""

    name = "torchao"
    file = "plan.torchao.json"
    hint = "mode=glob(torchao/*),fp8_e4m3 n_bits=3,4,8"
    scope = "a checkpoint of torch, whose linear layers have matrices named *.weight"

    def config(self, assignment: Assignment) -> dict[str, Any] | None:
        """Return the config of a format, None if torchao has none with the same codes."""
        own = own_spec(assignment, OWN_MODES)
        if own:
            return _own_config(own)
        spec = standard_spec(assignment)
        if spec is None:
            return None
        if spec.mode in FLOATS and spec.block in ("tensor", *BLOCKS):
            data = {
                "weight_dtype": _dtype(FLOATS[spec.mode]),
                "granularity": _granularity(spec, "PerRow", {"dim": -1}),
            }
            return _typed("Float8WeightOnlyConfig", data, version=2)
        if integer_spec(assignment, INTX_BITS, BLOCKS) is None:
            return None
        return _intx_config(spec, INTEGERS[spec.mode], spec.scale_dtype)

    def stored_bits(self, assignment: Assignment) -> int:
        """Return the size with the scales of fp8 in float32."""
        spec, row = assignment.spec, assignment.row
        if spec is None or row is None or spec.mode not in FLOATS:
            return assignment.bits
        return assignment.bits + (32 - float_width(str(spec.scale_dtype))) * row["n_scales"]

    def recipe(self, assignments: Iterable[Assignment]) -> bytes:
        """Return the mapping from modules to their configs; null leaves one as it is stored."""
        configs = self.module_configs(assignments)
        return disk.to_json(_typed("FqnToConfig", {"fqn_to_config": configs}, version=1))

    def usage(self, path: str) -> str:
        """Return the call."""
        return f"quantize_(model, config_from_dict(json.load(open({path!r}))), filter_fn=None)"


def _own_config(spec: FormatSpec) -> dict[str, Any]:
    """Return the config of a mode by torchao's own rule."""
    if spec.mode == TorchaoInt4.mode:
        packing = _enum("Int4PackingFormat", "TILE_PACKED_TO_4D")
        data = {"group_size": spec.block_size, "int4_packing_format": packing}
        return _typed("Int4WeightOnlyConfig", data, version=2)
    if spec.mode == TorchaoInt8.mode:
        data = {"granularity": _typed("PerRow", {"dim": -1})}
        return _typed("Int8WeightOnlyConfig", data, version=2)
    option = load_option("mode", spec.mode) or {}
    mapping = str(spec.setting("mode.mapping", option.get("mapping")))
    rows = spec if spec.block else replace(spec, block="channel")
    return _intx_config(rows, mapping.upper(), spec.setting("mode.dtype"))


def _intx_config(spec: FormatSpec, mapping: str, scale_dtype: str | None) -> dict[str, Any]:
    data = {
        "weight_dtype": _dtype(f"int{spec.n_bits}"),
        "granularity": _granularity(spec, "PerAxis", {"axis": 0}),
        "mapping_type": _enum("MappingType", mapping),
        "scale_dtype": scale_dtype and _dtype(scale_dtype),
    }
    return _typed("IntxWeightOnlyConfig", data, version=2)


def _granularity(spec: FormatSpec, channel_kind: str, axis: dict[str, int]) -> dict[str, Any]:
    if spec.block == "group":
        return _typed("PerGroup", {"group_size": spec.block_size})
    return _typed(channel_kind, axis) if spec.block == "channel" else _typed("PerTensor", {})


def _dtype(name: str) -> dict[str, Any]:
    return {"_type": "torch.dtype", "_data": name}


def _typed(kind: str, data: dict[str, Any], version: int = 1) -> dict[str, Any]:
    return {"_type": kind, "_version": version, "_data": data}


def _enum(kind: str, member: str) -> dict[str, Any]:
    return {"_type": kind, "_data": member}
