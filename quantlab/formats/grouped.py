"""Codecs that store groups of consecutive values, each with scales of its own.

A `GroupCodec` is the rule of one runtime: it reconstructs whole groups, in float32 and in the order
of the runtime's own arithmetic, and counts the bits that a group takes. `Groups` cuts a tensor and
reads any stretch. To add a rule: a module with a subclass of `GroupCodec`, and a yaml in
``conf/mode/``; vectors of the runtime's own package belong into ``tests/data/formats``.
"""

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from math import prod
from threading import Lock
from typing import Any, ClassVar, NamedTuple

import numpy as np

from quantlab.formats.blocks import Shape, UnfitError
from quantlab.formats.element import FloatArray, NotFiniteError, require_width
from quantlab.formats.format import PLAIN, Codec, NamedTensor, Reconstruction
from quantlab.formats.scales import BFLOAT16, FLOAT32, FLOAT_TYPES, FloatType

CHUNK_VALUES = 2**15  # read and reconstructed at once, so that what is computed stays in the cache
MIN_REDUCED_WIDTH = 128  # of groups whose least and greatest value NumPy finds quickly by itself


class GroupValues(NamedTuple):
    """Values of some groups, float32 ``(groups, width)``, and what their tensor knows of them.

    `dtype` is the type that the runtime holds them in, `constants` those of `choose_constants`.
    """

    x: FloatArray
    dtype: FloatType
    constants: Any


class Groups:
    """The groups of one tensor: `width` consecutive values each, the last may be short.

    `dtype` is the name of the type that a runtime holds the values in, which are rounded to it.
    """

    def __init__(self, tensor: NamedTensor, width: int, dtype: str) -> None:
        self.tensor, self.width = tensor, width
        self.dtype = FLOAT_TYPES[dtype]
        self.size = prod(tensor.shape)
        self.n_groups = -(-self.size // width)

    def read(self, first: int, last: int) -> FloatArray:
        """Return the values of groups `first` to `last`, ``(groups, width)``.

        A short group is read by itself. Raises NotFiniteError as `read_values` does.
        """
        values = self.read_values(first * self.width, min(last * self.width, self.size))
        return values.reshape(last - first, -1)

    def read_values(self, start: int, stop: int) -> FloatArray:
        """Return elements `start` to `stop`, as the runtime holds them.

        Raises NotFiniteError if one is NaN or Inf, or becomes it in the type of the runtime.
        """
        x = round_to_type(self.tensor.block(start, stop), self.dtype)
        if not np.isfinite(x).all():
            held = "" if self.dtype is FLOAT32 else f", or values beyond {self.dtype.name}"
            raise NotFiniteError(f"tensor '{self.tensor.name}' holds NaN or Inf{held}")
        return x

    def chunks(self, first: int = 0, last: int | None = None) -> Iterator[tuple[int, int]]:
        """Yield stretches of groups of about `CHUNK_VALUES` values, a short group by itself."""
        last = self.n_groups if last is None else last
        whole = min(last, self.size // self.width)
        at_once = max(1, CHUNK_VALUES // self.width)
        for start in range(first, whole, at_once):
            yield start, min(start + at_once, whole)
        if whole < last:
            yield max(first, whole), last


class GroupCodec(Codec):
    """Stores groups of `group_size` values of a row, None for a whole row, by a runtime's rule.

    `runtime` is its name in sentences and `mode` that of the option, `widths` are those of codes. A
    group stores `group_bits` beside its codes; None is a scale and a zero point, or a bias, of the
    type of the tensor.
    """

    runtime: ClassVar[str]
    widths: ClassVar[Sequence[int]]
    group_bits: ClassVar[int | None] = None
    mode: str
    n_bits: int
    group_size: int | None = None
    dtype: str | None = None

    def __init__(self, n_bits: int) -> None:
        require_width(n_bits, self.widths, f"mode={self.mode}")
        self.n_bits = n_bits

    @abstractmethod
    def reconstruct(self, groups: GroupValues) -> FloatArray:
        """Reconstruct groups, float32 ``(groups, width)``."""

    def count_bits(self, groups: Groups) -> int:
        """Return the size of all that is stored, in bits."""
        group_bits = self.group_bits or 2 * groups.dtype.bits
        return self.n_bits * groups.size + group_bits * groups.n_groups

    def choose_constants(self, groups: Groups) -> Any:
        """Choose what `reconstruct` needs of the whole tensor, once and before the first group.

        An array has one entry a group, of which `reconstruct` gets those of its groups. Most rules
        need nothing.
        """

    def require_matrix(self, shape: Shape) -> None:
        """Raise UnfitError unless a shape has two dimensions or more."""
        if len(shape) < 2:
            raise UnfitError(f"it has one dimension, which {self.runtime} leaves as it is")

    def group_width(self, shape: Shape) -> int:
        """Return the number of values in a group; raises UnfitError where groups do not fit."""
        self.require_matrix(shape)
        width = self.group_size or shape[-1]
        if shape[-1] % width:
            raise UnfitError(
                f"its rows of {shape[-1]} values are no multiple of the {width} of a group, so "
                f"that {self.runtime} leaves it as it is"
            )
        return width

    def open(self, tensor: NamedTensor) -> Reconstruction:
        """Return a tensor as the runtime gives it back; raises UnfitError if it does not fit."""
        groups = Groups(tensor, self.group_width(tensor.shape), self.dtype or held_type(tensor))
        return Reconstruction(_GroupReader(self, groups).read, self.label, self.count_bits(groups))

    @property
    def label(self) -> str:
        """Name of the type that values are stored in."""
        group = f", group {self.group_size}" if self.group_size else ""
        return f"{self.mode} {self.n_bits} bits{group}"

    def columns(self) -> dict[str, Any]:
        """Return the columns of results.csv: groups have a size, and all else is the runtime's."""
        if self.group_size is None:
            return super().columns()
        return dict.fromkeys(PLAIN) | {"block": "group", "block_size": self.group_size}


class AffineGroups(GroupCodec):
    """Groups with a scale and a shift of the type of the tensor; `dtype` is another one for it.

    Raises ValueError where the runtime has no such width, group size or type.
    """

    sizes: ClassVar[Sequence[int]]  # of groups

    def __init__(self, n_bits: int, group_size: int, dtype: str | None = None) -> None:
        super().__init__(n_bits)
        require_option("mode.group_size", group_size, self.sizes, self.mode)
        require_option("mode.dtype", dtype, (None, *FLOAT_TYPES), self.mode)
        self.group_size, self.dtype = group_size, dtype


class _GroupReader:
    """Any stretch of a tensor through a codec."""

    def __init__(self, codec: GroupCodec, groups: Groups) -> None:
        self._codec, self._groups = codec, groups
        self._lock, self._constants = Lock(), None

    def read(self, start: int, stop: int) -> FloatArray:
        """Reconstruct elements `start` to `stop`."""
        width = self._groups.width
        first, last = start // width, -(-stop // width)
        with np.errstate(all="ignore"):  # as the runtime, which says nothing of overflows
            self._choose_constants()
            parts = [self._read_groups(*span) for span in self._groups.chunks(first, last)]
        x_hat = parts[0] if len(parts) == 1 else np.concatenate(parts)
        return x_hat[start - first * width : stop - first * width]

    def _read_groups(self, first: int, last: int) -> FloatArray:
        shared = self._constants
        constants = shared[first:last] if isinstance(shared, np.ndarray) else shared
        x = self._groups.read(first, last)
        values = GroupValues(x, self._groups.dtype, constants)
        return self._codec.reconstruct(values).reshape(-1)

    def _choose_constants(self) -> None:
        with self._lock:
            if self._constants is None:
                self._constants = self._codec.choose_constants(self._groups)


def held_type(tensor: NamedTensor) -> str:
    """Return the type that a runtime holds a tensor in: its own, or float32."""
    return tensor.dtype if tensor.dtype in FLOAT_TYPES else FLOAT32.name


def require_option(key: str, value: Any, options: Sequence[Any], mode: str) -> None:
    """Raise ValueError unless a setting of a mode is one of some options."""
    if value not in options or isinstance(value, bool) != isinstance(options[0], bool):
        names = ", ".join("null" if option is None else str(option) for option in options)
        raise ValueError(f"{key} of mode={mode} must be one of {names}, got {value!r}")


def round_to_type(values: FloatArray, dtype: FloatType) -> FloatArray:
    """Round float32 values to a type, ties to even, as float32; beyond its maximum they are inf.

    Works on the bits, in place of casts, which are several times slower for float16.
    """
    if dtype is FLOAT32:
        return values
    shift = np.uint32(FLOAT32.mantissa_bits - dtype.mantissa_bits)
    bits = np.ascontiguousarray(values).view(np.uint32)
    rounded = bits >> shift
    rounded &= np.uint32(1)
    rounded += np.uint32((1 << (int(shift) - 1)) - 1)
    rounded += bits
    rounded &= np.uint32((0xFFFFFFFF << int(shift)) & 0xFFFFFFFF)
    result: FloatArray = rounded.view(np.float32)
    if dtype is BFLOAT16:
        return result
    magnitudes = np.abs(values)
    # Subnormal numbers are multiples of 2^-24, to which float32 rounds the numbers beside 3/4.
    subnormal = np.copysign(magnitudes + np.float32(0.75) - np.float32(0.75), values)
    result = np.where(magnitudes < np.float32(2.0**dtype.min_exponent), subnormal, result)
    return np.where(np.abs(result) > dtype.largest, np.copysign(np.inf, values), result)


def group_ends(x: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Return the least and the greatest value of each group, ``(groups, 1)``."""
    return reduce_groups(np.minimum, x), reduce_groups(np.maximum, x)


def group_absmax(x: FloatArray) -> FloatArray:
    """Return the largest magnitude of each group, ``(groups, 1)``."""
    lo, hi = group_ends(x)
    return np.maximum(-lo, hi)


def reduce_groups(function: np.ufunc, x: FloatArray) -> FloatArray:
    """Reduce each group by a ufunc, in one call for short ones: an axis costs a call a group."""
    if x.shape[1] >= MIN_REDUCED_WIDTH or not x.size:
        reduced: FloatArray = function.reduce(x, axis=1, keepdims=True)
        return reduced
    starts = np.arange(0, x.size, x.shape[1])
    return function.reduceat(x.reshape(-1), starts)[:, None]
