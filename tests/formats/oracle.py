"""Formats as design.md defines them, value by value in plain Python, and the real thing's driver.

Nothing here is fast or shares code with quantlab. A quotient or a product of two float32 numbers
is taken in Python's float64 and rounded once: with 53 bits that is what float32 hardware returns.
"""

import ctypes
import itertools
import math
from bisect import bisect_left
from fractions import Fraction
from pathlib import Path

import ml_dtypes
import numpy as np

from quantlab.formats import floats, uniform
from quantlab.formats.quantizer import BlockQuantizer
from quantlab.sources.tensor import Tensor

DATA = Path(__file__).parents[1] / "data" / "formats"
FLT_MAX = float(np.finfo(np.float32).max)
TINY = float(np.finfo(np.float32).tiny)
SCALE_TYPES = {  # mantissa bits, least exponent, maximum
    "float32": (23, -126, FLT_MAX),
    "float16": (10, -14, 65504.0),
    "bfloat16": (7, -126, 255 * 2.0**120),
    "e4m3": (3, -6, 448.0),
}


def f32(value):
    return ctypes.c_float(value).value


def quantizer(form, x):
    """Return quantlab's quantizer of an array, and its layout."""
    flat, layout = np.ascontiguousarray(x, np.float32).ravel(), form.block.layout(x.shape)
    absmax = float(np.abs(flat).max())
    return BlockQuantizer(form, layout, lambda a, b: flat[a:b], absmax), layout


def round_trip(form, x, cuts=()):
    """Return quantlab's codes, values, clipped mask, all flat, and scales, cut as told."""
    made, layout = quantizer(form, x)
    found, scales = [], made.chosen_scales
    for start, stop in itertools.pairwise(sorted({0, x.size, *cuts})):
        trip, some = made.round_trip(start, stop)
        clipped = np.zeros(stop - start, bool) if trip.clipped is None else trip.clipped
        found.append((trip.codes, trip.x_hat, clipped))
        scales |= some
    assert scales.n == layout.n_blocks
    return *(np.concatenate(each) for each in zip(*found, strict=True)), scales


def blocks_of(shape, block):
    """Return the flat indices of each block, in the order of their first values."""
    n = math.prod(shape)
    row = math.prod(shape[1:]) if len(shape) > 1 else n
    members = {}
    for i in range(n):
        key = 0
        if block.name == "head" and shape:
            place = [int(k) for k in np.unravel_index(i, shape)]
            of_heads = [k for k in (1, 2) if len(shape) == 4 and shape[k] == block.heads]
            part = shape[-1] // block.heads
            key = place[of_heads[0]] if of_heads else place[-1] // part
        if block.name == "channel" and len(shape) > 1:
            axis = block.axis % len(shape)
            key = i // math.prod(shape[axis + 1 :]) % shape[axis]
        elif block.name == "group":
            key = i // row, i % row // block.size
        members.setdefault(key, []).append(i)
    return list(members.values())


def rounded(value, mantissa_bits, min_exponent, largest):
    """Return a positive number in a float type, and whether it saturated; exact, by fractions."""
    if value == 0:
        return 0.0, False
    exponent = max(math.frexp(value)[1] - 1, min_exponent)
    step = Fraction(2) ** (exponent - mantissa_bits)
    nearest = round(Fraction(value) / step) * step  # halves to even
    return (largest, True) if nearest > largest else (float(nearest), False)


def stored_as(name):
    """Return the storage of scales in a float type: scale to (stored, saturated, vanished)."""

    def store(scale):
        kept, saturated = rounded(scale, *SCALE_TYPES[name])
        return kept, saturated, kept == 0 < scale

    return store


def power_of_two(scale):
    """OCP MX: the exponent rounded down, -127 to 127."""
    exponent = math.frexp(scale)[1] - 1 if scale else -127
    return 2.0 ** min(max(exponent, -127), 127), exponent > 127, False


def two_level(absmax):
    """NVFP4: e4m3 in units of a float32 of the tensor."""
    unit = f32(absmax / (6 * 448))

    def store(scale):
        if not unit:
            return 0.0, False, scale > 0
        kept, saturated = rounded(scale / unit, *SCALE_TYPES["e4m3"])
        return f32(kept * unit), saturated, kept == 0 < scale

    return store


class Symmetric:
    mirrored = True

    def __init__(self, n_bits):
        self.qmin, self.qmax = -(2 ** (n_bits - 1)), 2 ** (n_bits - 1) - 1

    def fit(self, lo, hi, store):
        step = max(-lo, hi) / self.qmax
        step = 1.0 if step < TINY else step
        scale, *flags = store(step)
        return (scale, 0), flags

    def value(self, x, params):
        scale, zero_point = params
        steps = f32(x / scale) if scale else 0.0
        unclipped = f32(round(min(max(steps, -FLT_MAX), FLT_MAX)) + f32(zero_point))
        code = min(max(unclipped, self.qmin), self.qmax)
        x_hat = min(max(f32(f32(code - f32(zero_point)) * scale), -FLT_MAX), FLT_MAX)
        return int(code), x_hat


class Asymmetric(Symmetric):
    mirrored = False

    def __init__(self, n_bits, policy):
        super().__init__(n_bits)
        self.policy = policy

    def fit(self, lo, hi, store):
        if self.policy == "widen":
            lo, hi = min(lo, 0.0), max(hi, 0.0)
        step = (hi - lo) / (self.qmax - self.qmin)
        replaced = step < TINY
        step = 1.0 if replaced else step
        scale, *flags = store(step)
        # Steps are counted before they are rounded to float32, but as stored in fewer bits.
        counted = scale if scale and scale != f32(step) else step
        zero_point = (0 if replaced else self.qmin) - round(lo / counted)
        wide = self.policy == "wide_int"
        low, high = (-(2**31), 2**31 - 1) if wide else (self.qmin, self.qmax)
        zero_point = min(max(zero_point, low), high)
        return (scale, zero_point), flags


class Levels:
    """Sorted levels; `tie` says which of two neighbours, by number, takes the value between."""

    mirrored = True

    def __init__(self, levels, reach, zero, tie):
        self.levels, self.reach, self.zero, self.tie = levels, reach, zero, tie

    def fit(self, lo, hi, store):
        scale, *flags = store(max(-lo, hi) / self.reach)
        return (scale,), flags

    def value(self, x, params):
        y = f32(x / params[0]) if params[0] else 0.0
        above = min(bisect_left(self.levels, y), len(self.levels) - 1)
        below = max(above - 1, 0)
        middle = (self.levels[below] + self.levels[above]) / 2  # exact in float64
        nearest = self.tie(below, above) if y == middle else above if y > middle else below
        return nearest - self.zero, f32(self.levels[nearest] * params[0])


def float_grid(exponent_bits, mantissa_bits, largest, reach=None):
    """The numbers of a float element; their own codes are consecutive, so even is even."""
    bias, positive = 2 ** (exponent_bits - 1) - 1, []
    for field, mantissa in itertools.product(range(2**exponent_bits), range(2**mantissa_bits)):
        fraction = mantissa / 2**mantissa_bits + (field > 0)
        positive.append(fraction * 2.0 ** (max(field, 1) - bias))
    positive = [value for value in positive if value <= largest]
    zero = len(positive) - 1
    levels = [-value for value in positive[:0:-1]] + positive
    return Levels(levels, reach or largest, zero, lambda a, b: a if (a - zero) % 2 == 0 else b)


def fixed_point():
    """MXINT8: k / 64."""
    levels = [k / 64 for k in range(-127, 128)]
    return Levels(levels, 1.0, 127, lambda a, b: a if (a - 127) % 2 == 0 else b)


def normal_float4(levels):
    return Levels([float(level) for level in levels], 1.0, 8, lambda a, _: a)


def vectors(name):
    """Return what another package made: see tests/data/formats/make_vectors.py."""
    with np.load(DATA / f"{name}.npz") as stored:
        return dict(stored)


NF4 = vectors("bitsandbytes_nf4")["levels"].tolist()
FLOATS = {  # exponent bits, mantissa bits, largest
    "fp4": (2, 1, 6.0),
    "fp6_e2m3": (2, 3, 7.5),
    "fp6_e3m2": (3, 2, 28.0),
    "fp8_e4m3": (4, 3, 448.0),
    "fp8_e5m2": (5, 2, 57344.0),
}


def float_element(name, reach=None):
    """Return quantlab's element of a name, and the definition's."""
    exponent_bits, mantissa_bits, largest = FLOATS[name]
    ours = floats.Float(1 + exponent_bits + mantissa_bits, *FLOATS[name], reach)
    return ours, float_grid(exponent_bits, mantissa_bits, largest, reach)


ELEMENTS = {
    "sym2": (uniform.Symmetric(2), Symmetric(2)),
    "sym4": (uniform.Symmetric(4), Symmetric(4)),
    "sym8": (uniform.Symmetric(8), Symmetric(8)),
    "sym16": (uniform.Symmetric(16), Symmetric(16)),
    "asym2": (uniform.Asymmetric(2), Asymmetric(2, "widen")),
    "asym4": (uniform.Asymmetric(4), Asymmetric(4, "widen")),
    "asym8": (uniform.Asymmetric(8), Asymmetric(8, "widen")),
    "asym4_clip": (uniform.Asymmetric(4, "clip"), Asymmetric(4, "clip")),
    "asym4_wide_int": (uniform.Asymmetric(4, "wide_int"), Asymmetric(4, "wide_int")),
    "nf4": (floats.NormalFloat4(4), normal_float4(NF4)),
    "int8_fixed": (floats.FixedPoint(8, 8, 6), fixed_point()),
    **{name: float_element(name) for name in FLOATS},
}


def awkward(rng, shape, spread=1.0):
    """Return values with ties, zeros, subnormals, a block of zeros and one of its own size."""
    n = math.prod(shape)
    x = rng.standard_normal(n) * spread
    tie = rng.random(n) < 0.3
    x[tie] = rng.integers(-30, 31, n)[tie] / 4  # half-way between numbers of many a grid
    x[rng.random(n) < 0.05] = 0
    x[rng.random(n) < 0.02] = -3e-42
    x[n // 8 : n // 4] = 0
    x[n // 2 : n // 2 + n // 8] *= 1e-3
    return x.astype(np.float32).reshape(shape)


def ranges(kind, values, element, store, p=99.9):
    """Return every range that may be chosen: more than one where the best are as good."""
    lo, hi = min(values), max(values)
    if kind == "percentile":
        exact = np.array(values, np.float64)
        if element.mirrored:
            hi = float(np.percentile(np.abs(exact), p))
            return [(-hi, hi)]
        return [(float(np.percentile(exact, 100 - p)), float(np.percentile(exact, p)))]
    if kind == "absmax":
        return [(lo, hi)]
    losses = []
    for i in range(80):
        ends = lo * (1 - i / 100), hi * (1 - i / 100)
        params, _ = element.fit(*ends, store)
        errors = (f32(element.value(x, params)[1] - x) for x in values)
        losses.append((math.fsum(error * error for error in errors), ends))
    least = min(loss for loss, _ in losses)
    # A sum of equals in another order may differ in its last bits.
    return [ends for loss, ends in losses if loss <= least * (1 + 1e-13)]


def block_results(values, element, store, kind="absmax", p=99.9):
    """Return the (codes, values, scale, flags) that a block may have, the widest range first."""
    found = []
    for ends in ranges(kind, values, element, store, p):
        params, flags = element.fit(*ends, store)
        codes, x_hat = zip(*(element.value(x, params) for x in values), strict=True)
        found.append((list(codes), list(x_hat), params[0], flags))
    return found


def check(form, x, element, store, kind="absmax", p=99.9):
    """Require what quantlab makes of an array, block by block, to be what its definition says."""
    codes, x_hat, _, scales = round_trip(form, x)
    flat = np.ravel(x).tolist()
    stored, saturated, vanished = [], 0, 0
    block = form.block
    for members in blocks_of(x.shape, block):
        values = [flat[i] for i in members]
        results = block_results(values, element, store, kind, p)
        ours = codes[members].tolist(), x_hat[members].tolist()
        assert ours in [result[:2] for result in results], (values, ours, results[0])
        result = next(result for result in results if result[:2] == ours)
        stored.append(result[2])
        saturated, vanished = saturated + result[3][0], vanished + result[3][1]
    if kind != "mse":  # two factors may share their values but not their scale
        assert (scales.smallest, scales.largest) == (min(stored), max(stored))
        assert scales.saturated == saturated
        assert scales.vanished >= vanished  # steps that became 1 count as well


def typed(x, dtype="float32"):
    """Return a tensor of a dtype, whose name may be one of ml_dtypes."""
    with np.errstate(over="ignore"):
        return Tensor("x", np.asarray(x).astype(np.dtype(getattr(ml_dtypes, dtype, dtype))))


def reconstruct(codec, x, dtype="float32"):
    """Return what a codec gives back for an array of a dtype, in its shape."""
    return codec.open(typed(x, dtype)).read(0, x.size).reshape(x.shape)


def assert_same_bits(x_hat, expected):
    """Compare float32 arrays bit for bit, signs of zeros apart: no figure sees them."""
    assert x_hat.dtype == np.float32
    bits = [(np.asarray(values) + np.float32(0)).view(np.uint32) for values in (x_hat, expected)]
    np.testing.assert_array_equal(*bits)
