"""A storage format: which codes a tensor takes, what shares a scale, and what it costs.

A `Format` is four independent choices: an element grid, blocks that share a scale, the range that
a scale covers, and the type it is stored in. A `Codec` stores whole tensors by rules of its own:
those of a library, or of a file that is quantized already. `FormatSpec` is the identity of either.
"""

import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from math import prod
from typing import Any, ClassVar, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from quantlab.formats.blocks import (
    INPUT,
    Block,
    Group,
    Layout,
    PerTensor,
    Read,
    Shape,
    UnfitError,
    row_length,
)
from quantlab.formats.element import (
    BlockParams,
    Bounds,
    ContradictionError,
    Element,
    FloatArray,
    RoundScale,
)
from quantlab.formats.ranges import AbsMax, Range
from quantlab.formats.scales import SCALE_RULES, PowerOfTwo, ScaleType, scale_type
from quantlab.formats.transform import FittedTransform, Transform
from quantlab.formats.uniform import MODES, Params, Uniform, mode_name
from quantlab.text import as_text

PLAIN = {"block": "tensor", "block_size": None, "scale_dtype": "float32", "range": "absmax"}
CHOICES = ("mode", "block", "range", "transform", "rounding")  # config groups that make a format
FILE = "mode.path"  # the setting that names a file which is quantized already
CALIBRATION = "rounding.inputs"  # the setting that names the inputs that a rounding takes
BESIDE = ("range.path", "transform.inputs", CALIBRATION)  # those of files beside the tensors


@dataclass(frozen=True)
class FormatSpec:
    """The identity of a format: equal specs store a tensor in the same codes.

    `mode` is the option of ``conf/mode``; `settings` are those of mode, block and range that differ
    from their options' own, by their keys in the config, such as ``("block.axis", 1)``. `name` is
    to read: the mode, its width unless the mode fixes it, and every choice that is not the default.

    >>> FormatSpec.of("asym", 4, PLAIN | {"block": "group", "block_size": 32}, {}).name
    'asym 4 bits, group 32'
    """

    mode: str
    n_bits: int | None
    block: str | None
    block_size: int | None
    scale_dtype: str | None
    range: str | None
    settings: tuple[tuple[str, Any], ...] = ()
    name: str = field(default="", compare=False)

    @classmethod
    def of(
        cls,
        mode: str,
        n_bits: int | None,
        columns: Mapping[str, Any],
        settings: Mapping[str, Any],
        *,
        fixes_width: bool = False,
    ) -> "FormatSpec":
        """Make the spec of a mode whose format has these `columns`, see `Format.columns`."""
        width = "" if fixes_width or n_bits is None else f" {n_bits} bits"
        choices = {key: columns[key] for key in PLAIN}
        spec = cls(mode, n_bits, **choices, settings=_hashable(settings))
        return spec.with_element(str(settings.get(FILE, f"{mode}{width}")))

    def with_element(self, element: str) -> "FormatSpec":
        """Name the spec after what stands for mode and width, such as the name of a file."""
        choices = [] if "/" in self.mode else _choice_names(self.__dict__)
        # Files first: where a name is too long for a table its middle is left out.
        settings = sorted(self.settings, key=lambda setting: setting[0] not in BESIDE)
        changes = [_setting_name(*setting) for setting in settings]
        return replace(self, name=", ".join(filter(None, [element, *choices, *changes])))

    @classmethod
    def from_json(cls, spec: Mapping[str, Any]) -> "FormatSpec":
        """Make a spec from its `to_json`."""
        return cls(**{**spec, "settings": _hashable(spec["settings"])})

    @classmethod
    def from_row(cls, row: Mapping[str, Any]) -> "FormatSpec":
        """Make the spec of a row of results.csv."""
        return cls(
            MODE_OPTIONS.get(row["mode"], row["mode"]),
            row["n_bits"],
            **{key: row.get(key) for key in PLAIN},
            settings=_hashable(json.loads(row["settings"] or "{}")),
            name=row["format"],
        )

    def to_json(self) -> dict[str, Any]:
        """Return the fields as plain JSON values."""
        return {**self.__dict__, "settings": dict(self.settings)}

    def columns(self) -> dict[str, Any]:
        """Return the columns of a row of results.csv beside ``mode`` and ``n_bits``."""
        settings = json.dumps(dict(self.settings), sort_keys=True) if self.settings else None
        return {
            **{key: self.__dict__[key] for key in PLAIN},
            "settings": settings,
            "format": self.name,
        }

    def setting(self, key: str, default: Any = None) -> Any:
        """Return the value of a setting, `default` where it is that of the option."""
        return dict(self.settings).get(key, default)

    @property
    def is_plain(self) -> bool:
        """Whether this is a format of the lab: integers with one float32 scale over the range."""
        plain = all(self.__dict__[key] == value for key, value in PLAIN.items())
        return self.mode in MODES and plain and not self.settings


MODE_OPTIONS = {mode_name(option): option for option in MODES}


def is_format_column(column: str) -> bool:
    """Test whether a column of results.csv, or a key of a config, identifies a format."""
    return column in ("n_bits", *PLAIN, "settings") or column.partition(".")[0] in CHOICES


def _choice_names(columns: Mapping[str, Any]) -> list[str]:
    """Name what is chosen beside mode and width, defaults left out."""
    chosen = {key: columns[key] for key in PLAIN if columns[key] not in (None, PLAIN[key])}
    size = chosen.pop("block_size", None)
    if size is not None and chosen.get("block") == "group":
        chosen["block"] = f"group {size}"
    return [str(choice) for choice in chosen.values()]


def _setting_name(key: str, value: Any) -> str:
    """Name a setting; a rounding by its value, and the file that stands for the mode not at all."""
    if key == FILE:
        return ""
    return as_text(value) if key == "rounding" else f"{key}={as_text(value)}"


def _hashable(settings: Mapping[str, Any]) -> tuple[tuple[str, Any], ...]:
    """Sort settings by key; lists and mappings become JSON text."""
    scalars = (str, int, float, bool)
    return tuple(
        (key, value if isinstance(value, scalars) else json.dumps(value, sort_keys=True))
        for key, value in sorted(settings.items())
    )


class NamedTensor(Protocol):
    """A named tensor, as a codec sees it."""

    @property
    def name(self) -> str:
        """The name."""

    @property
    def shape(self) -> Shape:
        """The shape."""

    @property
    def dtype(self) -> str:
        """Name of the dtype as stored, e.g. bfloat16."""

    @property
    def input_axis(self) -> int | None:
        """The axis along which the inputs of a layer lie, None where it is not known."""

    def block(self, start: int, stop: int) -> FloatArray:
        """Return elements `start` to `stop`, flat in C order."""


@dataclass(frozen=True)
class Reconstruction:
    """The values of one tensor as a library or a file stores them.

    `read` returns float32 elements `start` to `stop`, flat in C order, whatever thread asks;
    `dtype` names the type that holds them, and `bits` is the size of all that is stored. Of what
    is stored in a file there is the `sha256`, and the name of the file is `source`. `readings` are
    other known readings of the same words, by what they suppose, `rearranged` those that put values
    in other places; `remark` is a fault of the file itself. `slow`: a thread pays for few values.
    """

    read: Read
    dtype: str
    bits: int
    sha256: str | None = None
    source: str = ""
    readings: Mapping[str, Read] = field(default_factory=dict)
    rearranged: Mapping[str, Read] = field(default_factory=dict)
    remark: str | None = None
    slow: bool = False


class StaticRange(ABC):
    """The range of a tensor that other values than its own have chosen."""

    @abstractmethod
    def identity(self) -> str:
        """Return the sha256 of those values."""


class TensorRange(ABC):
    """A range that is known for a tensor by its name, before any of its values are."""

    name: ClassVar[str]

    @abstractmethod
    def open(self, tensor: NamedTensor, block: Block) -> Range:
        """Return the range of the blocks of a tensor; raises UnfitError where there is none."""


class Codec(ABC):
    """Stores whole tensors; `versions` are those of the packages that its values depend on."""

    n_bits: int | None
    versions: Mapping[str, str] = {}

    @abstractmethod
    def open(self, tensor: NamedTensor) -> Reconstruction:
        """Return the reconstruction of a tensor.

        Raises UnfitError if the tensor is not stored, ValueError if it is and something is wrong.
        """

    def bind(self, source: Any) -> "Codec":  # noqa: ARG002 files look for its tensors
        """Return the codec for the tensors of one source."""
        return self

    def unmatched(self) -> Mapping[str, str]:
        """Return the stored tensors that are not of the bound source, with the reason."""
        return {}

    def columns(self) -> dict[str, Any]:
        """Return the columns that describe a format of ours: all null."""
        return dict.fromkeys(PLAIN)


class OwnQuantizer(Protocol):
    """The least that a mode of one's own may be: a uniform quantizer of one block."""

    n_bits: int

    def choose(self, lo: float, hi: float) -> Params:
        """Choose the parameters of a block with the range [lo, hi]."""


class CustomUniform(Uniform):
    """A uniform quantizer of one's own, whose parameters are chosen block by block."""

    symmetric = False

    def __init__(self, quantizer: OwnQuantizer) -> None:
        self.quantizer = quantizer
        self.n_bits = quantizer.n_bits

    def fit(self, bounds: Bounds, store: RoundScale) -> BlockParams:
        """Choose for one block after the other, then round the scales to their type."""
        ends = zip(np.ravel(bounds.lo), np.ravel(bounds.hi), strict=True)
        chosen = [self.quantizer.choose(float(lo), float(hi)) for lo, hi in ends]
        scale, zero_point, replaced, clipped = (
            np.reshape([params[n] for params in chosen], np.shape(bounds.lo)) for n in range(4)
        )
        stored = store(scale)
        params = Params(stored.scale, zero_point, replaced, clipped)
        return BlockParams(params, stored.saturated, stored.vanished)

    def block_bits(self, scale_bits: int) -> int:
        """Return the bits of a scale and a zero point."""
        return scale_bits + self.n_bits


class Rounded(NamedTuple):
    """What a tensor comes back as, flat float32, and a remark on how it was rounded."""

    x_hat: FloatArray
    remark: str | None = None


class Rounding(Protocol):
    """A way to take values to the grid that is not the nearest."""

    @property
    def name(self) -> str:
        """Name of the option."""

    def open(self, tensor: NamedTensor, block: Block) -> "Rounding":
        """Return the rounding of a tensor; raises UnfitError where it has none."""

    def transform(self, matrix: NDArray[np.float64]) -> "Rounding":
        """Return the rounding of rows whose stretches are multiplied by a matrix afterwards."""

    def identity(self, tensor: NamedTensor) -> str | None:
        """Return a sha256 of what the rounding of a tensor depends on beside its settings."""

    def index_bits(self, layout: Layout) -> int:
        """Return the bits that say which group each column is of, if they must be stored."""

    def round_rows(self, tensor: NamedTensor, quantizer: Any, map_fn: Any) -> Rounded:
        """Round the rows of a tensor that a `BlockQuantizer` reads, with a `MapFn`."""


def as_element(mode: Any) -> Element:
    """Return an element grid; a quantizer that has ``choose`` alone is made one."""
    return mode if hasattr(mode, "round_trip") else CustomUniform(mode)


@dataclass(frozen=True)
class Format:
    """An element grid, blocks, a range and the type of the scales.

    `scale` is the type of the scales, that of the block's setting unless a preset has its own. With
    a `transform` codes are those of the transformed tensor. Without a `rounding` values go to the
    nearest of the grid.
    """

    element: Element
    block: Block = field(default_factory=PerTensor)
    range: Range | TensorRange = field(default_factory=AbsMax)
    scale: ScaleType | None = None
    transform: Transform | FittedTransform | None = None
    rounding: Rounding | None = None

    def __post_init__(self) -> None:
        """Raise ValueError when the scale's type is unknown or the range makes no difference."""
        _ = self.scale_type
        if not self.element.accepts_range and self.range.name != "absmax":
            raise ContradictionError(
                f"range={self.range.name} does not go with mode=log: leave it out"
            )
        if isinstance(self.range, TensorRange) and isinstance(self.block, Group):
            raise ContradictionError(
                f"range={self.range.name} does not go with block=group, of which there are more "
                "the more tokens there are: take block=tensor, channel or head"
            )
        if isinstance(self.range, TensorRange) and self.rounding:
            raise ContradictionError(
                f"range={self.range.name} does not go with rounding={self.rounding.name}, which is "
                "of weights: leave one out"
            )
        if not self.element.accepts_range and self.scale_type.name != "float32":
            raise ContradictionError(
                f"block.scale={self.scale_type.name} does not go with mode=log, which stores two "
                "float32 a block: leave it out"
            )

    def open(self, tensor: NamedTensor) -> "Format":
        """Return the format of a tensor: groups have its axis of inputs; raises UnfitError."""
        self.block.layout(tensor.shape)
        opened = self
        if isinstance(self.range, TensorRange):
            opened = replace(self, range=self.range.open(tensor, self.block))
        if isinstance(self.block, Group) and self.block.axis == INPUT:
            opened = replace(opened, block=self.block.along(tensor.input_axis))
        if isinstance(opened.transform, FittedTransform):
            opened._require_inputs(tensor, opened.transform)
        elif opened.transform:
            opened.transform.width(opened.row_length(tensor.shape))
        if opened.rounding:
            opened = replace(opened, rounding=opened.rounding.open(tensor, opened.block))
            _require_rows_of_inputs(opened, tensor)
        return opened

    def identity(self, tensor: NamedTensor) -> dict[str, str | None]:
        """Return the sha256 of each thing beside a tensor that its opened format depends on."""
        identity: dict[str, str | None] = {}
        if isinstance(self.range, StaticRange):
            identity["calibration_sha256"] = self.range.identity()
        if isinstance(self.transform, FittedTransform):
            identity["transform_sha256"] = self.transform.identity(tensor)
        if self.rounding:
            identity["rounding_sha256"] = self.rounding.identity(tensor)
        return identity

    def _require_inputs(self, tensor: NamedTensor, transform: FittedTransform) -> None:
        """Raise UnfitError unless a row has the inputs of a layer, and they are known."""
        axis, row, moved = tensor.input_axis, self.row_length(tensor.shape), None
        if isinstance(self.block, Group):
            moved = self.block.moved_axis(tensor.shape)
        is_along = prod(tensor.shape[axis:]) == row if moved is None else moved == axis
        if axis is not None and not is_along:
            raise UnfitError(
                f"its inputs lie along axis {axis}, and transform={transform.name} scales columns "
                "of rows: block=group block.axis=input makes rows of them"
            )
        transform.require_inputs(tensor, row)

    def row_length(self, shape: Shape) -> int:
        """Return the length of a row that is transformed: of groups, or from axis 1 on."""
        if isinstance(self.block, Group):
            return self.block.row_length(shape)
        return row_length(shape)

    @property
    def n_bits(self) -> int:
        """The width of a code."""
        return self.element.n_bits

    @property
    def scale_type(self) -> ScaleType:
        """The type that scales are stored in."""
        return self.scale or scale_type(self.block.scale)

    @property
    def plain(self) -> bool:
        """Whether there is one float32 scale over the whole range, as in the lab."""
        return self.columns() == PLAIN

    def columns(self) -> dict[str, Any]:
        """Return the columns of results.csv that describe a format, but for mode and width."""
        return {
            "block": self.block.name,
            "block_size": self.block.block_size,
            "scale_dtype": self.scale_type.name,
            "range": self.range.name if self.element.accepts_range else None,
            **({"transform": self.transform.name} if self.transform else {}),
            **({"rounding": self.rounding.name} if self.rounding else {}),
        }

    def bits_per_value(self, layout: Layout) -> float:
        """Return the storage cost in bits per value: codes, scales, zero points and constants."""
        of_blocks = layout.n_blocks * self.element.block_bits(self.scale_type.bits)
        shared = self.scale_type.tensor_bits
        shared += self.rounding.index_bits(layout) if self.rounding else 0
        return self.n_bits + (of_blocks + shared) / layout.size

    def storage_bits(self, shape: Shape) -> int:
        """Return the bits of all that a tensor stores, those of a transform included."""
        bits = round(self.bits_per_value(self.block.layout(shape)) * prod(shape))
        return bits + (self.transform.tensor_bits(self.row_length(shape)) if self.transform else 0)


def _require_rows_of_inputs(form: Format, tensor: NamedTensor) -> None:
    """Raise UnfitError where a transform is of other rows than a rounding."""
    is_last = tensor.input_axis in (None, len(tensor.shape) - 1)
    if form.transform and form.rounding and not is_last and not isinstance(form.block, Group):
        raise UnfitError(
            f"transform={form.transform.name} is not of rows of its inputs, which "
            f"rounding={form.rounding.name} takes: block=group block.axis=input is"
        )


def preset(
    element: Callable[..., Element],
    block: Block,
    scale: ScaleType,
    n_bits: int,
    scale_rule: str = SCALE_RULES[0],
) -> Format:
    """Return a format that fixes all four choices; `element` takes the width.

    `scale_rule` is that of a power of two, see `PowerOfTwo`.
    """
    grid: Any = element(n_bits=n_bits)
    if isinstance(scale, PowerOfTwo):
        headroom = grid.largest / (grid.reach or grid.largest)
        scale = PowerOfTwo(scale_rule, headroom, grid.mantissa_bits)
    return Format(grid, block, AbsMax(), scale)


def compose(
    mode: Any,
    block: Block,
    range: Range | TensorRange,
    transform: Transform | FittedTransform | None = None,
    rounding: Rounding | None = None,
) -> Format | Codec:
    """Return the format that the choices make; raises ValueError where they contradict."""
    if not isinstance(mode, Format | Codec):
        return Format(as_element(mode), block, range, transform=transform, rounding=rounding)
    for key, chosen, free in (
        ("block", block.name, "tensor"),
        ("block.scale", block.scale, "float32"),
        ("range", range.name, "absmax"),
    ):
        if chosen != free:
            raise ContradictionError(
                f"{key}={chosen} does not go with a mode that fixes blocks, scales and range: "
                "leave it out"
            )
    if isinstance(mode, Format):
        return replace(mode, transform=transform, rounding=rounding)
    for key, choice in (("transform", transform), ("rounding", rounding)):
        if choice:
            raise ContradictionError(
                f"{key}={choice.name} does not go with a mode that stores tensors by rules of its "
                "own: leave it out"
            )
    return mode
