"""Tools that quantize a checkpoint of torch, each by a config that names its modules.

Most have plain integers, a scale in the type of the model a channel or group: `_integer_spec` tells
which formats are such. To add a tool: a subclass of `Runtime` here, and its instance in `RUNTIMES`.
"""

import re
from collections.abc import Collection, Iterable, Iterator
from dataclasses import replace
from typing import Any

import yaml

from quantlab.conf import load_option
from quantlab.formats.floats import float_width
from quantlab.formats.format import FormatSpec
from quantlab.formats.rounding import INDEX_BITS
from quantlab.formats.torchao import TorchaoInt4, TorchaoInt8, TorchaoIntx
from quantlab.plans.options import Assignment, Original
from quantlab.plans.runtimes.runtime import Runtime, own_spec, standard_spec
from quantlab.plans.runtimes.safetensors_file import (
    SafetensorsRuntime,
    StoredArray,
    scale_kind,
    word_count,
)
from quantlab.records import disk

LINEAR_LAYERS = "a checkpoint of torch, whose linear layers have matrices named *.weight"
INTEGER_WIDTHS = range(2, 9)
INTEGER_BLOCKS = ("channel", "group")  # floats may also have one scale a tensor
SCALE_BITS = 16  # of scales in the type of a model, which is float16 or bfloat16
AUTO_ROUND_SIDE = 32  # a matrix whose sides are no multiples of it stays as it is
AUTO_ROUND_PRESETS: dict[str, dict[str, Any]] = {
    "mx/fp4": {"bits": 4, "group_size": 32, "sym": True, "data_type": "mx_fp"},
    "mx/fp8_e4m3": {"bits": 8, "group_size": 32, "sym": True, "data_type": "mx_fp"},
    "nv/fp4": {"bits": 4, "group_size": 16, "sym": True, "data_type": "nv_fp"},
}
AUTO_ROUND_STORED = {"bits": 16, "act_bits": 16}
COMPRESSED_FP8 = {"num_bits": 8, "type": "float", "symmetric": True}
COMPRESSED_PRESETS: dict[str, dict[str, Any]] = {
    "mx/fp4": {"num_bits": 4, "type": "float", "symmetric": True, "strategy": "group",
               "group_size": 32, "scale_dtype": "torch.uint8", "zp_dtype": "torch.uint8"},
    "nv/fp4": {"num_bits": 4, "type": "float", "symmetric": True, "strategy": "tensor_group",
               "group_size": 16, "scale_dtype": "torch.float8_e4m3fn",
               "zp_dtype": "torch.float8_e4m3fn"},
}  # fmt: skip
GPTQ_WIDTHS = (2, 3, 4, 5, 6, 8)
GPTQ_GROUPS = (16, 32, 64, 128, 256, 512, 1024)
OF_A_LAYER = re.compile(r"\.\d+\.")  # only linear modules in the layers of a model are quantized
MODELOPT_BLOCKS = ("tensor", "channel", "group")
MODELOPT_ELEMENTS = {  # of preset and format, the bits of exponent and mantissa
    "fp8_e4m3": [4, 3], "mx/fp8_e4m3": [4, 3], "mx/fp6_e3m2": [3, 2], "mx/fp6_e2m3": [2, 3],
    "mx/fp4": [2, 1], "nv/fp4": [2, 1],
}  # fmt: skip
MODELOPT_SCALES = {  # size of a block, and the type of its scale
    "mx": (32, [8, 0]),
    "nv": (16, [4, 3]),
}
TORCHAO_MAPPINGS = {"sym": "SYMMETRIC", "asym": "ASYMMETRIC"}
TORCHAO_FLOATS = {"fp8_e4m3": "float8_e4m3fn", "fp8_e5m2": "float8_e5m2"}
TORCHAO_MODES = (TorchaoInt4.mode, TorchaoInt8.mode, TorchaoIntx.mode)


class AutoRound(Runtime):
    """AutoRound's integers, by channel or group, MX and NVFP4: a ``layer_config``, as JSON.

    It learns how to round, so that its error is smaller: a plan says what widths and groups cost
    when they are rounded to the nearest. Symmetric integers use the whole range, 8 steps in 4 bits
    where ``mode=sym`` takes 7. Scales are float16, and zero points of `n_bits`, of symmetric ones
    too.
    """

    name = "auto-round"
    file = "plan.auto_round.json"
    hint = "mode=sym,asym block=group n_bits=3,4,8"
    scope = "a checkpoint of transformers, whose linear layers have matrices named *.weight"
    call = "AutoRound(MODEL, layer_config=json.load(open({path!r}))).quantize_and_save(OUT)"

    def refuse_tensor(self, tensor: Original) -> str | None:
        """Return the reason why AutoRound does not quantize a tensor, None if it does."""
        refusal = super().refuse_tensor(tensor)
        is_excluded = _is_embedding(tensor) or any(side % AUTO_ROUND_SIDE for side in tensor.shape)
        return refusal or ("rule" if is_excluded else None)

    def config(self, assignment: Assignment) -> dict[str, Any] | None:
        """Return the settings of a layer, None if AutoRound has no such format."""
        preset = standard_spec(assignment)
        if preset and preset.mode in AUTO_ROUND_PRESETS and preset.block == "group":
            return {**AUTO_ROUND_PRESETS[preset.mode], "act_bits": 16}
        spec = _integer_spec(assignment, INTEGER_WIDTHS)
        if spec is None:
            return None
        return {
            "bits": spec.n_bits, "group_size": _group_size(spec), "sym": spec.mode == "sym",
            "data_type": "int", "act_bits": 16,
        }  # fmt: skip

    def stored_bits(self, assignment: Assignment) -> int:
        """Return the size with scales in float16, and zero points."""
        return _integer_bits(assignment, has_zero_points=True)

    def recipe(self, assignments: Iterable[Assignment]) -> bytes:
        """Return the mapping from layers to their settings; 16 bits leave one as it is stored."""
        configs = self.module_configs(assignments)
        return disk.to_json(
            {module: config or AUTO_ROUND_STORED for module, config in configs.items()}
        )


class CompressedTensors(SafetensorsRuntime):
    """llm-compressor's weight-only schemes of integers, fp8, MXFP4 and NVFP4: a recipe, as YAML.

    Its ``config_groups`` are schemes of compressed-tensors. Symmetric integers take half the width
    of their range, 7.5 steps in 4 bits where ``mode=sym`` takes 7; asymmetric ones are those of
    ``mode=asym``. `QuantizationModifier` rounds to the nearest. Scales are of the type of the
    model, and zero points packed as codes are.
    """

    name = "llm-compressor"
    file = "plan.llmcompressor.yaml"
    hint = "mode=sym,asym,fp8_e4m3 block=group,channel n_bits=4,8"
    scope = LINEAR_LAYERS
    call = "oneshot(model=MODEL, recipe={path!r})"

    def config(self, assignment: Assignment) -> dict[str, Any] | None:
        """Return the ``weights`` of a scheme, None if there is none with the same codes."""
        spec = standard_spec(assignment)
        if spec is None:
            return None
        if spec.mode in COMPRESSED_PRESETS and spec.block == "group":
            return COMPRESSED_PRESETS[spec.mode]
        if spec.mode == "fp8_e4m3" and spec.block in ("tensor", "channel"):
            return {**COMPRESSED_FP8, "strategy": spec.block}
        return _compressed_integers(spec) if _integer_spec(assignment, INTEGER_WIDTHS) else None

    def stored_bits(self, assignment: Assignment) -> int:
        """Return the size with scales in the type of the model, and packed zero points."""
        spec = assignment.spec
        return _integer_bits(assignment, has_zero_points=spec is not None and spec.mode == "asym")

    def quantized_arrays(
        self, assignment: Assignment, config: dict[str, Any]
    ) -> Iterator[StoredArray]:
        """Yield the arrays of ``pack-quantized``, ``naive-quantized`` and the formats of fp4."""
        rows, width = assignment.tensor.shape
        kind, n_bits = scale_kind(assignment), config["num_bits"]
        groups = rows, width // config.get("group_size", width)
        if config["type"] == "int":
            yield StoredArray("weight_shape", "I64", (2,))
            yield StoredArray("weight_packed", "I32", (rows, word_count(width, n_bits)))
            yield StoredArray("weight_scale", kind, groups)
            if not config["symmetric"]:
                words = word_count(rows, n_bits), groups[1]
                yield StoredArray("weight_zero_point", "I32", words)
        elif "group_size" not in config:
            yield StoredArray("weight", "F8_E4M3", (rows, width))
            yield StoredArray(
                "weight_scale", kind, (1,) if config["strategy"] == "tensor" else groups
            )
        else:
            yield StoredArray("weight_packed", "U8", (rows, width // 2))
            is_global = config["strategy"] == "tensor_group"
            yield StoredArray("weight_scale", "F8_E4M3" if is_global else "U8", groups)
            if is_global:
                yield StoredArray("weight_global_scale", "F32", (1,))

    def recipe(self, assignments: Iterable[Assignment]) -> bytes:
        """Return the recipe, of one group for each format; modules in no group stay."""
        groups: dict[str, dict[str, Any]] = {}
        for module, weights in self.module_configs(assignments).items():
            if weights:
                group = groups.setdefault(str(weights), {"weights": weights, "targets": []})
                group["targets"].append(module)
        named = {f"group_{number}": group for number, group in enumerate(groups.values())}
        modifier = {"QuantizationModifier": {"config_groups": named}}
        return _to_yaml({"plan_stage": {"plan_modifiers": modifier}})


def _compressed_integers(spec: FormatSpec) -> dict[str, Any]:
    size = {"group_size": spec.block_size} if spec.block == "group" else {}
    return {
        "num_bits": spec.n_bits, "type": "int", "symmetric": spec.mode == "sym",
        "strategy": spec.block, **size,
    }  # fmt: skip


class GptqModel(SafetensorsRuntime):
    """GPTQModel's integers: a ``QuantizeConfig`` with a pattern a module in its ``dynamic``.

    GPTQ rounds with regard to the inputs that it is calibrated with, so that its error is another:
    a plan says what widths and groups cost when they are rounded to the nearest. A group has a
    scale in float16 and a zero point of `n_bits`, also a symmetric one, and an input the number of
    its group.
    """

    name = "gptqmodel"
    file = "plan.gptqmodel.json"
    hint = "mode=sym,asym block=group n_bits=3,4,8"
    scope = "a checkpoint of transformers, whose layers have matrices named *.N.*.weight"
    call = (
        "GPTQModel.load(MODEL, QuantizeConfig(**json.load(open({path!r})))).quantize(CALIBRATION)"
    )

    def refuse_tensor(self, tensor: Original) -> str | None:
        """Return the reason why GPTQModel does not quantize a tensor, None if it does."""
        outside = None if OF_A_LAYER.search(tensor.name) else "rule"
        return super().refuse_tensor(tensor) or outside

    def config(self, assignment: Assignment) -> dict[str, Any] | None:
        """Return the overrides of a module, None if GPTQ has no such integers."""
        spec = _integer_spec(assignment, GPTQ_WIDTHS)
        if spec is None or (spec.block == "group" and spec.block_size not in GPTQ_GROUPS):
            return None
        symmetric = spec.mode == "sym"
        return {"bits": spec.n_bits, "group_size": _group_size(spec), "sym": symmetric}

    def stored_bits(self, assignment: Assignment) -> int:
        """Return the size with zero points, and the group of each input."""
        if assignment.spec is None:
            return assignment.bits
        bits = _integer_bits(assignment, has_zero_points=True)
        return bits + INDEX_BITS * assignment.tensor.shape[-1]

    def quantized_arrays(
        self, assignment: Assignment, config: dict[str, Any]
    ) -> Iterator[StoredArray]:
        """Yield codes with those of an output in a column, and the group of each input."""
        columns, inputs = assignment.tensor.shape
        size = inputs if config["group_size"] < 0 else config["group_size"]
        n_groups, n_bits = -(-inputs // size), config["bits"]
        yield StoredArray("qweight", "I32", (word_count(inputs, n_bits), columns))
        yield StoredArray("qzeros", "I32", (n_groups, word_count(columns, n_bits)))
        yield StoredArray("scales", "F16", (n_groups, columns))
        yield StoredArray("g_idx", "I32", (inputs,))

    def recipe(self, assignments: Iterable[Assignment]) -> bytes:
        """Return the arguments; a pattern after ``-:`` leaves a module as it is."""
        configs = self.module_configs(assignments)
        dynamic = {
            f"{'+' if config else '-'}:^{re.escape(module)}$": config or {}
            for module, config in configs.items()
        }
        default: dict[str, Any] = next(filter(None, configs.values()), {})
        return disk.to_json({**default, "dynamic": dynamic})


class ModelOpt(Runtime):
    """Weights of NVIDIA's Model Optimizer in integers, fp8, MX and NVFP4: a config, as YAML.

    Entries of its ``quant_cfg`` override those before them: the first disables every quantizer, and
    each module of the plan enables that of its weight. Integers are symmetric, with the steps of
    ``mode=sym``, whose figures are those of the result.
    """

    name = "modelopt"
    file = "plan.modelopt.yaml"
    hint = "mode=sym,fp8_e4m3 block=group,channel n_bits=4,8"
    scope = LINEAR_LAYERS
    call = "mtq.quantize(model, yaml.safe_load(open({path!r})))"

    def refuse_tensor(self, tensor: Original) -> str | None:
        """Return the reason why a tensor is not quantized, None if it is."""
        return super().refuse_tensor(tensor) or ("rule" if _is_embedding(tensor) else None)

    def config(self, assignment: Assignment) -> dict[str, Any] | None:
        """Return the attributes of a quantizer, None if there are none with the same codes."""
        spec = standard_spec(assignment)
        if spec is None:
            return None
        if spec.mode in MODELOPT_ELEMENTS and spec.block in MODELOPT_BLOCKS:
            return _modelopt_floats(spec)
        if spec.mode != "sym" or not _integer_spec(assignment, INTEGER_WIDTHS, MODELOPT_BLOCKS):
            return None
        return {"num_bits": spec.n_bits, **_modelopt_blocks(spec)}

    def stored_bits(self, assignment: Assignment) -> int:
        """Return the size with scales in the type of the model."""
        return _integer_bits(assignment, has_zero_points=False)

    def recipe(self, assignments: Iterable[Assignment]) -> bytes:
        """Return the config."""
        disabled: dict[str, Any] = {"quantizer_name": "*", "enable": False}
        enabled = [
            {"quantizer_name": f"{module}.weight_quantizer", "cfg": config}
            for module, config in self.module_configs(assignments).items()
            if config
        ]
        return _to_yaml({"quant_cfg": [disabled, *enabled], "algorithm": "max"})


def _modelopt_floats(spec: FormatSpec) -> dict[str, Any] | None:
    family = spec.mode.partition("/")[0]
    if family in MODELOPT_SCALES:
        size, scale = MODELOPT_SCALES[family]
        block = {-1: size, "type": "dynamic", "scale_bits": scale}
        return {"num_bits": MODELOPT_ELEMENTS[spec.mode], "block_sizes": block}
    if spec.block == "group":
        return None
    return {"num_bits": MODELOPT_ELEMENTS[spec.mode], **_modelopt_blocks(spec)}


def _modelopt_blocks(spec: FormatSpec) -> dict[str, Any]:
    if spec.block == "group":
        return {"block_sizes": {-1: spec.block_size, "type": "static"}}
    return {"axis": 0 if spec.block == "channel" else None}


class Torchao(Runtime):
    """torchao's weight-only configs of integers and of fp8: the JSON of an ``FqnToConfig``.

    ``torchao.core.config.config_from_dict`` reads it. ``mode=torchao/...`` is torchao's own rule,
    and its figures those of the result. ``mode=sym`` takes 7 steps in 4 bits where torchao takes
    7.5, half the width of the range, so that its figures differ, in 4 bits by 0.2 dB and in 2 bits
    by 3. torchao keeps integer codes in int8 until a backend packs them: sizes are those of packed
    codes.
    """

    name = "torchao"
    file = "plan.torchao.json"
    hint = "'mode=glob(torchao/*),fp8_e4m3' n_bits=3,4,8"
    scope = LINEAR_LAYERS
    call = "quantize_(model, config_from_dict(json.load(open({path!r}))), filter_fn=None)"

    def config(self, assignment: Assignment) -> dict[str, Any] | None:
        """Return the config of a format, None if torchao has none with the same codes."""
        own = own_spec(assignment, TORCHAO_MODES)
        if own:
            return _torchao_config(own)
        spec = standard_spec(assignment)
        if spec is None:
            return None
        if spec.mode in TORCHAO_FLOATS and spec.block in ("tensor", *INTEGER_BLOCKS):
            data = {
                "weight_dtype": _dtype(TORCHAO_FLOATS[spec.mode]),
                "granularity": _granularity(spec, "PerRow", {"dim": -1}),
            }
            return _typed("Float8WeightOnlyConfig", data, version=2)
        if _integer_spec(assignment, TorchaoIntx.widths, INTEGER_BLOCKS) is None:
            return None
        return _intx_config(spec, TORCHAO_MAPPINGS[spec.mode], spec.scale_dtype)

    def stored_bits(self, assignment: Assignment) -> int:
        """Return the size with the scales of fp8 in float32."""
        spec, row = assignment.spec, assignment.row
        if spec is None or row is None or spec.mode not in TORCHAO_FLOATS:
            return assignment.bits
        return assignment.bits + (32 - float_width(str(spec.scale_dtype))) * row["n_scales"]

    def recipe(self, assignments: Iterable[Assignment]) -> bytes:
        """Return the mapping from modules to their configs; null leaves one as it is stored."""
        configs = self.module_configs(assignments)
        return disk.to_json(_typed("FqnToConfig", {"fqn_to_config": configs}, version=1))


def _torchao_config(spec: FormatSpec) -> dict[str, Any]:
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


def _is_embedding(tensor: Original) -> bool:
    """Test whether a tensor is named as an embedding, which is no linear layer."""
    return "embed" in tensor.name


def _integer_spec(
    assignment: Assignment,
    widths: Collection[int],
    blocks: Collection[str] = INTEGER_BLOCKS,
) -> FormatSpec | None:
    """Return the format of an assignment if it is of plain integers, None if it is none.

    That is ``sym`` or ``asym`` in one of `widths` and `blocks`.
    """
    spec = standard_spec(assignment)
    if spec is None or spec.mode not in ("sym", "asym"):
        return None
    return spec if spec.n_bits in widths and spec.block in blocks else None


def _group_size(spec: FormatSpec) -> int:
    """Return the size of groups, -1 where a channel has one scale."""
    return spec.block_size or 0 if spec.block == "group" else -1


def _integer_bits(assignment: Assignment, *, has_zero_points: bool) -> int:
    """Return the size of plain integers with scales of 16 bits; of another format as it is.

    Scales are of the type of a model, or of float16, and zero points of `n_bits`.
    """
    spec, row = assignment.spec, assignment.row
    if spec is None or row is None or spec.mode not in ("sym", "asym"):
        return assignment.bits
    n_bits = spec.n_bits or 0
    per_scale = SCALE_BITS + (n_bits if has_zero_points else 0)
    return n_bits * assignment.tensor.size + per_scale * int(row["n_scales"])


def _to_yaml(value: Any) -> bytes:
    """Encode as YAML, in the order of its keys."""
    text: str = yaml.dump(value, Dumper=_PlainDumper, sort_keys=False, allow_unicode=True)
    return text.encode()


class _PlainDumper(yaml.SafeDumper):
    """Writes what stands in two places twice: not every reader follows aliases."""

    def ignore_aliases(self, _: Any) -> bool:
        """Return True for any value."""
        return True
