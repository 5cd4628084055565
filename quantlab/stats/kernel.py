"""The fast engine's loops, compiled by Numba: round trips of our grids, and their sums in float64.

Each loop says in scalars what its NumPy twin says in arrays, which its docstring names: round trips
to the same bits, sums up to the order of the terms. `stats.compiled` calls them.

Blocks pass in pieces that stay in the cache, a loop for each thing to do: so every loop becomes
vectors. Round trips take no liberty with floating point; sums may be taken in any order.
"""

import logging
import zlib
from collections.abc import Callable
from functools import cache
from importlib import import_module
from typing import Any, NamedTuple, TypeVar

import numpy as np

from quantlab.formats.element import CompiledGrid, FloatArray, GridKind
from quantlab.stats.reference import CHUNK, CHUNK_SUMS, ERROR_BINS, MOMENTS, MeasureOptions

F = TypeVar("F", bound=Callable[..., Any])
numba = import_module("numba")
log = logging.getLogger("quantlab")

PIECE = 2**13  # values whose scratch fits the second cache
COLUMNS = 2**10  # values that are tried with several scales, whose scratch fits the first
LANES = 16  # rows that are transformed at once
TABLES = 4  # of counts: equal codes in a row do not wait for each other
FLOAT32_MAX, ZERO = np.float32(np.finfo(np.float32).max), np.float32(0)
EXPONENT, MAGNITUDE = np.int32(0x7F80_0000), np.int32(0x7FFF_FFFF)  # bits of a float32
LEAST, INFINITE = np.int32(-0x8000_0000), np.int32(0x7F80_0000)
MANTISSA_BITS = np.int32(23)
SCALE_UP, NOT_FINITE = np.float32(2.0**112), np.float32(np.inf)
SUMMED = {"reassoc", "nsz", "contract"}  # sums may be taken in any order, and with fused products
GIVEN, UNIFORM, FLOAT, FIXED_POINT = map(  # Numba freezes whole numbers, not members of an enum
    int, (GridKind.GIVEN, GridKind.UNIFORM, GridKind.FLOAT, GridKind.FIXED_POINT)
)


class GridBlocks(NamedTuple):
    """Scales and zero points of blocks, and the layout that finds the block of an element.

    `scales` and `zero_points` have an entry for each block from number `first` on, or one for all.
    The other fields are those of `formats.blocks.Layout`.
    """

    row: int
    width: int
    per_row: int
    shared: int
    first: int
    scales: FloatArray
    zero_points: FloatArray


# Numba compiles anew when the file of an entry point has changed, and looks at no other: on disk a
# loop would outlive a constant that it takes from another module. So the name under which it is
# kept holds them all.
SHARED = (
    CHUNK,
    ERROR_BINS,
    [(kind.name, int(kind)) for kind in GridKind],
    [CompiledGrid._fields, MeasureOptions._fields, GridBlocks._fields],
    [CHUNK_SUMS.descr, MOMENTS.descr],
)
SHARED_KEY = f"{zlib.crc32(repr(SHARED).encode()):08x}"

i32, i64, f32, f64 = numba.int32, numba.int64, numba.float32, numba.float64


def _read(kind: Any, dimensions: int = 1) -> Any:
    """Return the type of values that may be read-only, as those of a mapped file are."""
    return numba.types.Array(kind, dimensions, "C", readonly=True)


def _fields(cls: Any, *types: Any) -> Any:
    return numba.types.NamedTuple(types, cls)


FLOATS = f32[::1]
GRID = _fields(CompiledGrid, i64, i64, i64, i64, f64, f64, FLOATS, FLOATS)
BLOCKS = _fields(GridBlocks, i64, i64, i64, i64, i64, FLOATS, FLOATS)
OPTIONS = _fields(MeasureOptions, f64, i64, FLOATS, i64, FLOATS, i64, f64[:, ::1])
SUMS, MOMENT_SUMS = numba.from_dtype(CHUNK_SUMS)[::1], numba.from_dtype(MOMENTS)[::1]


def loop(fastmath: Any = False) -> Callable[[F], F]:
    """Return a decorator that compiles a loop as a part of those that call it."""
    return numba.njit(nogil=True, error_model="numpy", fastmath=fastmath)


def entry(*signature: Any, returns: Any = numba.void) -> Callable[[F], F]:
    """Return a decorator that compiles a function for Python to call, unless it is on disk."""
    compile_ = numba.njit(returns(*signature), nogil=True, error_model="numpy", cache=True)

    def decorate(function: F) -> F:
        function.__qualname__ += f"_{SHARED_KEY}"
        compiled = compile_(function)
        if compiled.stats.cache_misses:
            announce()
        return compiled

    return decorate


@cache
def announce() -> None:
    """Log once that compiling takes a while."""
    log.warning("Numba compiles for this machine, once: some ten seconds")


@entry(_read(numba.uint16), f32[::1])
def widen_bfloat16(stored: Any, out: Any) -> Any:
    """Write bfloat16 values, given as their bits, as float32, of which they are the upper half."""
    for i in range(stored.size):
        out[i] = np.int32(i32(i32(stored[i]) << i32(16))).view(np.float32)


@entry(_read(numba.uint16), f32[::1])
def widen_float16(stored: Any, out: Any) -> Any:
    """Write float16 values, given as their bits, as float32.

    Their bits are those of a float32 whose exponent is 112 too small.
    """
    for i in range(stored.size):
        half = i32(stored[i])
        magnitude = i32(i32(half & i32(0x7FFF)) << i32(13))
        value = np.int32(magnitude).view(np.float32) * SCALE_UP
        value = value if i32(half & i32(0x7C00)) != i32(0x7C00) else NOT_FINITE
        sign = i32(i32(half & i32(0x8000)) << i32(16))
        out[i] = np.int32(i32(np.float32(value).view(np.int32) | sign)).view(np.float32)


def at(values: Any, i: Any) -> Any:
    """Return the entry of element `i`, or the one that all share, which is no array."""


def _typed_at(values: Any, _: Any) -> Callable[[Any, Any], Any]:
    is_array = isinstance(values, numba.types.Array)
    return (lambda values, i: values[i]) if is_array else (lambda values, _: values)


numba.extending.overload(at, strict=False)(_typed_at)


@loop()
def round_to_step(
    x: Any, scale: Any, zero_point: Any, grid: Any, x_hat: Any, codes: Any, clipped: Any
) -> Any:
    """Round to even steps, as `Uniform.round_trip`; count the values beyond the codes.

    An entry a value in `scale` and `zero_point`, or one for all. Without `codes` write `x_hat`
    alone.
    """
    qmin, qmax = f32(-(1 << (grid.n_bits - 1))), f32(grid.largest_code)
    beyond = i32(0)
    for i in range(x.size):
        s, z = at(scale, i), at(zero_point, i)
        steps = x[i] / s if s != ZERO else ZERO
        unclipped = np.rint(steps) + z
        q = min(max(unclipped, qmin), qmax)
        x_hat[i] = min(max((q - z) * s, -FLOAT32_MAX), FLOAT32_MAX)
        if codes is not None:
            codes[i] = np.uint16(i32(q - qmin))
            clipped[i] = unclipped != q
            beyond = i32(beyond + i32(unclipped != q))
    return beyond


@loop()
def round_to_float(x: Any, scale: Any, grid: Any, x_hat: Any, codes: Any, clipped: Any) -> Any:
    """Round to floating-point numbers, as `Float.round_trip`.

    To add and subtract 1.5 * 2^k rounds to a step of 2^(k - 23), halves to even, and leaves the
    number of steps in the last bits of the sum.
    """
    offset, mantissa_bits = i32(-(1 << (grid.n_bits - 1))), i32(grid.mantissa_bits)
    largest_code = i32(grid.largest_code)
    largest, least = f32(grid.largest), f32(grid.smallest)
    shift_over_binade = f32(1.5 * (1 << (23 - grid.mantissa_bits)))
    least_exponent = i32(np.float32(least).view(np.int32) >> MANTISSA_BITS)
    far, beyond = largest + largest, i32(0)
    for i in range(x.size):
        y = x[i] / scale[i] if scale[i] != ZERO else ZERO
        y = min(max(y, -far), far)
        binade = i32(np.float32(y).view(np.int32) & EXPONENT)
        binade = max(np.int32(binade).view(np.float32), least)
        shift = binade * shift_over_binade
        shifted = y + shift
        steps = i32(np.float32(shifted).view(np.int32) - np.float32(shift).view(np.int32))
        exponent = i32((np.float32(binade).view(np.int32) >> MANTISSA_BITS) - least_exponent)
        binades = i32(exponent << mantissa_bits)
        unclipped = i32(steps + binades) if steps >= 0 else i32(steps - binades)
        code = min(max(unclipped, i32(-largest_code)), largest_code)
        clipped[i] = code != unclipped
        beyond = i32(beyond + i32(code != unclipped))
        codes[i] = np.uint16(i32(code - offset))
        value = min(max(shifted - shift, -largest), largest)
        x_hat[i] = min(max(value * scale[i], -FLOAT32_MAX), FLOAT32_MAX)
    return beyond


@loop()
def round_to_fixed_point(
    x: Any, scale: Any, grid: Any, x_hat: Any, codes: Any, clipped: Any
) -> Any:
    """Round to whole numbers of a fraction of the scale, as `FixedPoint.round_trip`."""
    first, qmax = f32(-(1 << (grid.n_bits - 1))), f32(grid.largest_code)
    one, beyond = f32(1 << grid.mantissa_bits), i32(0)
    for i in range(x.size):
        y = x[i] / scale[i] if scale[i] != ZERO else ZERO
        steps = np.rint(y * one)
        code = min(max(steps, -qmax), qmax)
        clipped[i] = code != steps
        beyond = i32(beyond + i32(code != steps))
        codes[i] = np.uint16(i32(code - first))
        x_hat[i] = min(max(code / one * scale[i], -FLOAT32_MAX), FLOAT32_MAX)
    return beyond


@loop()
def round_to_level(x: Any, scale: Any, grid: Any, x_hat: Any, codes: Any, clipped: Any) -> Any:
    """Round to a few levels, as `NormalFloat4.round_trip`; codes count the midpoints below."""
    least, largest, beyond = f32(grid.smallest), f32(grid.largest), i32(0)
    levels, midpoints = grid.levels, grid.midpoints
    for i in range(x.size):
        y = x[i] / scale[i] if scale[i] != ZERO else ZERO
        outside = (y < least) | (y > largest)
        clipped[i] = outside
        beyond = i32(beyond + i32(outside))
        codes[i] = np.uint16(0)
        x_hat[i] = y
    for midpoint in midpoints:
        for i in range(x.size):
            codes[i] = np.uint16(codes[i] + np.uint16(x_hat[i] > midpoint))
    for i in range(x.size):
        x_hat[i] = min(max(levels[codes[i]] * scale[i], -FLOAT32_MAX), FLOAT32_MAX)
    return beyond


@loop()
def round_trip(
    x: Any, scale: Any, zero_point: Any, grid: Any, x_hat: Any, codes: Any, clipped: Any
) -> Any:
    """Take a piece through a grid; count the values beyond it."""
    if grid.kind == UNIFORM:
        return round_to_step(x, scale, zero_point, grid, x_hat, codes, clipped)
    if grid.kind == FLOAT:
        return round_to_float(x, scale, grid, x_hat, codes, clipped)
    if grid.kind == FIXED_POINT:
        return round_to_fixed_point(x, scale, grid, x_hat, codes, clipped)
    return round_to_level(x, scale, grid, x_hat, codes, clipped)


@loop()
def spread(values: Any, blocks: Any, start: Any, out: Any) -> Any:
    """Write the entry of its block for each element from `start` on: of whole blocks at once.

    `values` are the scales or the zero points of `blocks`.
    """
    row, width, per_row, shared, first, _, _ = blocks
    at, line, within = 0, start // row, start % row
    while at < out.size:
        block, inside = divmod(within, width)
        entry = block - first if shared else line * per_row + block - first
        rest = min(row - within, out.size - at)
        whole = rest // width if inside == 0 else 0
        for n in range(whole):
            out[at + n * width : at + (n + 1) * width] = values[entry + n]
        written = whole * width or min(rest, width - inside)
        if whole == 0:
            out[at : at + written] = values[entry]
        at, within = at + written, within + written
        if within == row:
            line, within = line + 1, 0


@loop()
def value_of(ordered: Any) -> Any:
    """Return the value whose whole number in the order of values is given."""
    return np.int32(i32(ordered ^ i32((ordered >> i32(31)) & MAGNITUDE))).view(np.float32)


@loop(SUMMED)
def add_sums(x: Any, x_hat: Any, threshold: Any, abs_err: Any, sums: Any) -> Any:
    """Add the sums of a piece to those of its chunk, and write the magnitudes of errors.

    As `reference._chunk_sums`, but for values beyond the grid. Return the squared errors of values
    that became 0.
    """
    err = total = squares = ratios = x_err = dot = zero_squares = sq_x_hat = 0.0
    zeroed, above, largest = i32(0), i32(0), i32(0)
    for i in range(x.size):
        difference = x_hat[i] - x[i]
        abs_err[i] = abs(difference)
        largest = max(largest, i32(np.float32(abs(difference)).view(np.int32)))
        e, a, b = f64(difference), f64(x[i]), f64(x_hat[i])
        err += e
        total += abs(e)
        squares += e * e
        ratios += abs(e) / abs(a) if abs(x[i]) > threshold else 0.0
        x_err += a * (b - a)
        dot += a * b
        sq_x_hat += b * b
        zero_squares += e * e if x_hat[i] == ZERO else 0.0
        zeroed = i32(zeroed + i32((x_hat[i] == ZERO) & (x[i] != ZERO)))
        above = i32(above + i32(abs(x[i]) > threshold))
    sums.err += err
    sums.abs_err += total
    sums.sq_err += squares
    sums.rel_err += ratios
    sums.x_err += x_err
    sums.dot += dot
    sums.sq_x_hat += sq_x_hat
    sums.zeroed += zeroed
    sums.rel_count += above
    sums.max_err = max(sums.max_err, f64(value_of(largest)))
    return zero_squares


@loop(SUMMED)
def split_squares(x_hat: Any, abs_err: Any, clipped: Any) -> Any:
    """Return the squared errors of values that became 0, and of those beyond the grid."""
    zero_squares = clip_squares = 0.0
    for i in range(x_hat.size):
        square = f64(abs_err[i]) * f64(abs_err[i])
        clip_squares += square if clipped[i] else 0.0
        zero_squares += square if (x_hat[i] == ZERO) & (clipped[i] == 0) else 0.0
    return zero_squares, clip_squares


@loop()
def greatest(bits: Any) -> Any:
    """Return the largest of some finite values, as whole numbers of the same order.

    Vectors have a maximum of these, and none of floats that may be NaN.
    """
    largest = LEAST
    for i in range(bits.size):
        largest = max(largest, i32(bits[i] ^ i32((bits[i] >> i32(31)) & MAGNITUDE)))
    return largest


@loop()
def count(codes: Any, ahead: Any, tables: Any) -> Any:
    """Count the codes of a piece, four at a time where there are so many.

    Counting leaves the memory idle, so that the next piece, `ahead`, is read meanwhile: what is
    returned makes that happen.
    """
    words = codes[: codes.size - codes.size % 4].view(np.uint64)
    read = i32(0)
    for i in range(words.size):
        word = words[i]
        read = i32(read | ahead[4 * i])
        tables[0, word & np.uint64(0xFFFF)] += 1
        tables[1, (word >> np.uint64(16)) & np.uint64(0xFFFF)] += 1
        tables[2, (word >> np.uint64(32)) & np.uint64(0xFFFF)] += 1
        tables[3, word >> np.uint64(48)] += 1
    for code in codes[4 * words.size :]:
        tables[0, code] += 1
    return read


@loop()
def keep_maxima(bits: Any, at: Any, width: Any, maxima: Any) -> Any:
    """Keep the maximum of each row of `width` values, of which a piece begins at element `at`."""
    step = min(width, bits.size)
    for start in range(0, bits.size, step):
        row = (at + start) // width
        maxima[row] = max(maxima[row], value_of(greatest(bits[start : start + step])))


@loop(SUMMED)
def sum_of_squares(x: Any) -> Any:
    """Return the sum of squares."""
    total = 0.0
    for i in range(x.size):
        value = f64(x[i])
        total += value * value
    return total


@loop()
def add_row_squares(x: Any, abs_err: Any, at: Any, width: Any, squares: Any) -> Any:
    """Add the squares of a piece that begins at element `at`, as `reference.write_row_squares`."""
    first = 0
    while first < x.size:
        element = at + first
        last = min(first + width - element % width, x.size)
        part = element // width + at // CHUNK
        squares[0, part] += sum_of_squares(x[first:last])
        squares[1, part] += sum_of_squares(abs_err[first:last])
        first = last


@loop()
def keep_sample(abs_err: Any, start: Any, stride: Any, errors: Any) -> Any:
    """Keep every `stride`-th error, counted from the begin of the tensor."""
    if stride == 1:
        errors[start : start + abs_err.size] = abs_err
        return
    first = -start % stride
    place = (start + first) // stride
    for i in range(first, abs_err.size, stride):
        errors[place] = abs_err[i]
        place += 1


@entry(
    i64, _read(f32), GRID, BLOCKS, _read(f32), _read(numba.int16), _read(numba.boolean), OPTIONS,
    SUMS, i64[:, ::1], returns=i32,
)  # fmt: skip
def gather(
    start: Any, x: Any, grid: Any, blocks: Any, given: Any, given_codes: Any, given_clipped: Any,
    options: Any, sums: Any, tables: Any,
) -> Any:  # fmt: skip
    """Take a block through a grid, and sum up each chunk, as `NumpyEngine.gather`.

    `x` begins at element `start`, a multiple of a chunk. Where the kind of the grid is `GIVEN`, so
    is x_hat, with codes and a mask of what was clipped, or empty arrays. The number that is
    returned has no meaning, see `count`.
    """
    scales, zero_points, maxima = blocks.scales, blocks.zero_points, options.maxima
    scale, zero_point = np.empty(PIECE, np.float32), np.empty(PIECE, np.float32)
    x_hat, abs_err = np.empty(PIECE, np.float32), np.empty(PIECE, np.float32)
    codes, clipped = np.empty(PIECE, np.uint16), np.zeros(PIECE, np.bool_)
    scale[:], zero_point[:] = scales[0], zero_points[0]
    bits, x_hat_bits = x.view(np.int32), x_hat.view(np.int32)
    first, threshold, touched = i32(-((1 << grid.n_bits) // 2)), f32(options.rel_threshold), i32(0)
    for at in range(0, x.size, PIECE):
        stop, beyond = min(at + PIECE, x.size), 0
        n, chunk = stop - at, at // CHUNK
        if grid.kind == GIVEN:
            x_hat[:n] = given[at:stop]
            for i in range(n if given_codes.size else 0):
                codes[i] = np.uint16(given_codes[at + i] - first)
            for i in range(n if given_clipped.size else 0):
                clipped[i] = given_clipped[at + i]
                beyond += given_clipped[at + i]
        else:
            if scales.size > 1:
                spread(scales, blocks, start + at, scale[:n])
                if zero_points.size > 1:
                    spread(zero_points, blocks, start + at, zero_point[:n])
            if grid.kind == UNIFORM and scales.size == 1:
                beyond = round_to_step(
                    x[at:stop], scales[0], zero_points[0], grid, x_hat[:n], codes[:n], clipped[:n]
                )
            else:
                beyond = round_trip(
                    x[at:stop], scale[:n], zero_point[:n], grid, x_hat[:n], codes[:n], clipped[:n]
                )
        zero_squares = add_sums(x[at:stop], x_hat[:n], threshold, abs_err[:n], sums[chunk])
        if beyond:
            zero_squares, clip_squares = split_squares(x_hat[:n], abs_err[:n], clipped[:n])
            sums[chunk].clipped += beyond
            sums[chunk].clip_sq_err += clip_squares
        sums[chunk].zero_sq_err += zero_squares
        if tables.size:
            ahead = stop if stop + n <= x.size else at
            touched = i32(touched | count(codes[:n], bits[ahead : ahead + n], tables))
        if maxima.size:
            keep_maxima(x_hat_bits[:n], start + at, options.row_width, maxima)
        if options.squares.size:
            width = options.squares_width
            add_row_squares(x[at:stop], abs_err[:n], start + at, width, options.squares)
        keep_sample(abs_err[:n], start + at, options.stride, options.errors)
    return touched


@entry(i64, _read(f32), GRID, BLOCKS, f32[::1])
def reconstruct(start: Any, x: Any, grid: Any, blocks: Any, x_hat: Any) -> Any:
    """Write what values come back as, of which `x` begins at element `start`."""
    scales, zero_points = blocks.scales, blocks.zero_points
    scale, zero_point = np.empty(PIECE, np.float32), np.empty(PIECE, np.float32)
    codes, clipped = np.empty(PIECE, np.uint16), np.zeros(PIECE, np.bool_)
    scale[:], zero_point[:] = scales[0], zero_points[0]
    for at in range(0, x.size, PIECE):
        stop = min(at + PIECE, x.size)
        n = stop - at
        if scales.size > 1:
            spread(scales, blocks, start + at, scale[:n])
        if zero_points.size > 1:
            spread(zero_points, blocks, start + at, zero_point[:n])
        if grid.kind == UNIFORM:
            round_to_step(x[at:stop], scale[:n], zero_point[:n], grid, x_hat[at:stop], None, None)
        else:
            round_trip(
                x[at:stop], scale[:n], zero_point[:n], grid, x_hat[at:stop], codes[:n], clipped[:n]
            )


@loop()
def add_and_subtract(lanes: Any, half: Any) -> Any:
    """Replace the halves of all rows of `lanes` by their sums and differences, twice."""
    for start in range(0, lanes.shape[0], 4 * half):
        for i in range(start, start + half):
            for lane in range(LANES):
                a, b = lanes[i, lane], lanes[i + half, lane]
                c, d = lanes[i + 2 * half, lane], lanes[i + 3 * half, lane]
                sum_ab, sum_cd, difference_ab, difference_cd = a + b, c + d, a - b, c - d
                lanes[i, lane] = sum_ab + sum_cd
                lanes[i + half, lane] = difference_ab + difference_cd
                lanes[i + 2 * half, lane] = sum_ab - sum_cd
                lanes[i + 3 * half, lane] = difference_ab - difference_cd


@entry(_read(f32, 2), f32[:, ::1])
def multiply_hadamard(x: Any, out: Any) -> Any:
    """Multiply rows by Sylvester's matrix, as `transform.multiply_hadamard`: many rows at once."""
    n, width = x.shape
    lanes = np.zeros((width, LANES), np.float32)
    for first in range(0, n, LANES):
        rows = min(LANES, n - first)
        for row in range(rows):
            for i in range(width):
                lanes[i, row] = x[first + row, i]
        half = 1
        while 4 * half <= width:
            add_and_subtract(lanes, half)
            half *= 4
        for i in range(half if half < width else 0):
            for lane in range(LANES):
                a, b = lanes[i, lane], lanes[i + half, lane]
                lanes[i, lane], lanes[i + half, lane] = a + b, a - b
        for row in range(rows):
            for i in range(width):
                out[first + row, i] = lanes[i, row]


@loop()
def least_and_greatest(bits: Any) -> Any:
    """Return the ends of some values, as whole numbers of the order of the values.

    Two maxima of few values are found several times as fast as a minimum and a maximum.
    """
    least, most = LEAST, LEAST
    for i in range(bits.size):
        ordered = i32(bits[i] ^ i32((bits[i] >> i32(31)) & MAGNITUDE))
        least, most = max(least, i32(~ordered)), max(most, ordered)
    return i32(~least), most


@loop(SUMMED)
def add_moments(x: Any, bits: Any, sums: Any) -> Any:
    """Add to the moments of a chunk; return what `least_and_greatest` does."""
    least, most = MAGNITUDE, LEAST
    total, squares, zeros = 0.0, 0.0, i32(0)
    for i in range(x.size):
        ordered = i32(bits[i] ^ i32((bits[i] >> i32(31)) & MAGNITUDE))
        least, most = min(least, ordered), max(most, ordered)
        value = f64(x[i])
        total += value
        squares += value * value
        zeros = i32(zeros + i32(x[i] == ZERO))
    sums.zeros += zeros
    sums.x += total
    sums.sq_x += squares
    return least, most


@entry(_read(f32), i64, f32[::1], MOMENT_SUMS, returns=numba.types.UniTuple(f32, 2))
def survey(x: Any, width: Any, maxima: Any, sums: Any) -> Any:
    """Write the maximum of each row of a block and its moments by chunk; return its range.

    As `NumpyEngine.survey`. A row that spans pieces has -inf in `maxima` before. Where a value is
    not finite, neither is one of the ends.
    """
    bits, step = x.view(np.int32), min(width, PIECE)
    least, most = MAGNITUDE, LEAST
    for start in range(0, x.size, step):
        stop = min(start + step, x.size)
        low, high = add_moments(x[start:stop], bits[start:stop], sums[start // CHUNK])
        least, most = min(least, low), max(most, high)
        row = start // width
        maxima[row] = max(maxima[row], value_of(high))
    return value_of(least), value_of(most)


@loop()
def least_magnitude(bits: Any) -> Any:
    """Return the smallest magnitude that is not 0, inf where there is none."""
    least = INFINITE
    for i in range(bits.size):
        magnitude = i32(bits[i] & MAGNITUDE)
        least = min(least, magnitude if magnitude != 0 else INFINITE)
    return np.int32(least).view(np.float32)


@entry(_read(f32), i64, f32[:, ::1])
def bounds(x: Any, width: Any, out: Any) -> Any:
    """Write the least and the greatest value of each block of `width` values, as `ranges.bounds`.

    Where `out` has a third row, the smallest magnitude that is not 0 as well.
    """
    bits = x.view(np.int32)
    for block in range(out.shape[1]):
        own = bits[block * width : (block + 1) * width]
        least, most = least_and_greatest(own)
        out[0, block], out[1, block] = value_of(least), value_of(most)
    for block in range(out.shape[1] if out.shape[0] > 2 else 0):
        out[2, block] = least_magnitude(bits[block * width : (block + 1) * width])


@loop()
def fill(values: Any, start: Any, out: Any) -> Any:
    """Write the values of some columns, or the one of all."""
    if values.size > 1:
        out[:] = values[start : start + out.size]
    else:
        out[:] = values[0]


@loop(SUMMED)
def squares(x: Any, x_hat: Any) -> Any:
    """Return the sum of squared errors."""
    total = 0.0
    for i in range(x.size):
        error = f64(x_hat[i] - x[i])
        total += error * error
    return total


@loop()
def add_squares(x: Any, x_hat: Any, totals: Any) -> Any:
    """Add the squared error of each value to a total of its own."""
    for i in range(x.size):
        error = f64(x_hat[i] - x[i])
        totals[i] += error * error


@entry(_read(f32, 2), GRID, _read(f32, 2), _read(f32, 2), f64[:, ::1])
def squared_errors(x: Any, grid: Any, scales: Any, zero_points: Any, out: Any) -> Any:
    """Write the sums of squared errors of each column, or of all, for each choice of scales.

    As `ranges.squared_errors`. `x` is ``(values, columns)``; `scales` and `out` are ``(choices,
    columns)`` or ``(choices, 1)``, as is `zero_points`.
    """
    lanes, codes = np.empty((3, COLUMNS), np.float32), np.empty(COLUMNS, np.uint16)
    clipped = np.empty(COLUMNS, np.bool_)
    out[:] = 0
    for start in range(0, x.shape[1], COLUMNS):
        stop = min(start + COLUMNS, x.shape[1])
        n = stop - start
        scale, zero_point, x_hat = lanes[0, :n], lanes[1, :n], lanes[2, :n]
        for choice in range(out.shape[0]):
            fill(scales[choice], start, scale)
            fill(zero_points[choice], start, zero_point)
            for row in range(x.shape[0]):
                values = x[row, start:stop]
                if grid.kind == UNIFORM and scales.shape[1] == 1:
                    s, z = scales[choice, 0], zero_points[choice, 0]
                    round_to_step(values, s, z, grid, x_hat, None, None)
                elif grid.kind == UNIFORM:
                    round_to_step(values, scale, zero_point, grid, x_hat, None, None)
                else:
                    round_trip(values, scale, zero_point, grid, x_hat, codes[:n], clipped[:n])
                if out.shape[1] > 1:
                    add_squares(values, x_hat, out[choice, start:stop])
                else:
                    out[choice, 0] += squares(values, x_hat)


@entry(f32[::1], f64, f64, numba.uint8[::1], i64[::1])
def place_in_bins(errors: Any, width: Any, upper: Any, bins: Any, counts: Any) -> Any:
    """Write the bin of each error and count them, as `NumpyEngine.place_in_bins`."""
    for i in range(errors.size):
        error = f64(errors[i])
        place = np.uint8(min(error / width, f64(ERROR_BINS)))
        bins[i] = np.uint8(ERROR_BINS - 1) if error == upper else place
    tables = np.zeros((TABLES, counts.size), np.int64)
    for i in range(errors.size):
        tables[i % TABLES, bins[i]] += 1
    for table in tables:
        counts += table
