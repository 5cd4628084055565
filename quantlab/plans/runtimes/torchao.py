"""torchao: the JSON of an ``FqnToConfig``, as ``torchao.core.config.config_from_dict`` reads it.

torchao takes the scale of symmetric codes from half the width of their range, 7.5 steps in 4 bits
where quantlab takes 7, so that its figures differ from those of the sweep, in 4 bits by 0.2 dB and
in 2 bits by 3. It keeps integer codes in int8 until a backend packs them: sizes are those of packed
codes.
"""

from collections.abc import Iterable
from typing import Any

from quantlab.plans.originals import Original, width
from quantlab.plans.runtimes.runtime import (
    Runtime,
    Taken,
    bits_of,
    has_whole_groups,
    is_plain_range,
    module_name,
)
from quantlab.records import disk
from quantlab.records.record import Row

INTEGERS = {"symmetric": "SYMMETRIC", "asymmetric": "ASYMMETRIC"}
FLOATS = {"fp8_e4m3": "float8_e4m3fn", "fp8_e5m2": "float8_e5m2"}
WIDEST = 8  # bits of an integer code


class Torchao(Runtime):
    """torchao's weight-only configs of integers (``IntxWeightOnlyConfig``) and of fp8."""

    name = "torchao"
    file = "plan.torchao.json"
    hint = "mode=sym,asym,fp8_e4m3 block=channel,group"

    def takes(self, tensor: Original) -> bool:
        """Return whether it is the weight of a linear layer or of an embedding."""
        return len(tensor.shape) == 2 and tensor.name.endswith(".weight")

    def settings(self, row: Row) -> dict[str, Any] | None:
        """Return the config of a row's format."""
        cut = row.get("block") == "group" and not has_whole_groups(row, row["block_size"])
        if cut or not is_plain_range(row):
            return None
        if row["mode"] in FLOATS:
            kind, granularity = FLOATS[row["mode"]], _granularity(row, "PerRow", {"dim": -1})
            data = {"weight_dtype": _dtype(kind), "granularity": granularity}
            return _typed("Float8WeightOnlyConfig", data, version=2)
        per_tensor = row.get("block") not in ("channel", "group")
        if row["mode"] not in INTEGERS or row["n_bits"] > WIDEST or per_tensor:
            return None
        data = {
            "weight_dtype": _dtype(f"int{row['n_bits']}"),
            "granularity": _granularity(row, "PerAxis", {"axis": 0}),
            "mapping_type": {"_type": "MappingType", "_data": INTEGERS[row["mode"]]},
            "scale_dtype": _dtype(row["scale_dtype"]),
        }
        return _typed("IntxWeightOnlyConfig", data, version=2)

    def bits(self, row: Row) -> int:
        """Return the size with the scales of fp8 in float32."""
        wider = 32 - width(row["scale_dtype"]) if row["mode"] in FLOATS else 0
        return bits_of(row) + wider * row["n_scales"]

    def recipe(self, taken: Iterable[Taken]) -> bytes:
        """Return the mapping from modules to their configs; null keeps one as it is."""
        configs = {
            module_name(each.tensor.name): each.row and self.settings(each.row)
            for each in taken
            if self.takes(each.tensor)
        }
        return disk.to_json(_typed("FqnToConfig", {"fqn_to_config": configs}, version=1))

    def usage(self, path: str) -> str:
        """Return what to call."""
        return f"quantize_(model, config_from_dict(json.load(open({path!r}))), filter_fn=None)"


def _granularity(row: Row, by_channel: str, where: dict[str, int]) -> dict[str, Any]:
    if row["block"] == "group":
        return _typed("PerGroup", {"group_size": row["block_size"]})
    return _typed(by_channel, where) if row["block"] == "channel" else _typed("PerTensor", {})


def _dtype(name: str) -> dict[str, Any]:
    return {"_type": "torch.dtype", "_data": name}


def _typed(kind: str, data: dict[str, Any], version: int = 1) -> dict[str, Any]:
    return {"_type": kind, "_version": version, "_data": data}
