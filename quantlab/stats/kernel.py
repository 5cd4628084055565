"""The hot loops, compiled: the round trips of our grids, and what they leave behind in float64.

Each loop says in scalars what its NumPy original says in arrays: `uniform` what the round trip of
`Uniform` does, to the same bits; `add` what `partial_sums` does, up to the order of the terms.
They stand in one file, as Numba compiles anew only when the file of an entry point has changed.
Entry points take what is declared, are compiled when this module is imported for the first time,
and are kept on disk.

Blocks pass in pieces that stay in the cache, a loop for each thing to do: so every loop becomes
vectors. Round trips take no liberty with floating point; sums may be taken in any order.
"""

import logging
from collections.abc import Callable
from functools import cache
from importlib import import_module
from typing import Any, TypeVar

import numpy as np

F = TypeVar("F", bound=Callable[..., Any])
numba = import_module("numba")
log = logging.getLogger("quantlab")

PIECE = 2**13  # values whose scratch fits the second cache
COLUMNS = 2**10  # values that are tried with several scales, whose scratch fits the first
CHUNK = 2**16  # values summed before sums are combined exactly
TABLES = 4  # of counts: equal codes in a row do not wait for each other
GIVEN, UNIFORM, FLOAT, FIXED_POINT = range(4)  # how values come back; others are levels
SUMS, COUNTS = 10, 3  # columns of what is left of a chunk
LARGEST, ZERO = np.float32(np.finfo(np.float32).max), np.float32(0)
EXPONENT, MAGNITUDE = np.int32(0x7F80_0000), np.int32(0x7FFF_FFFF)  # bits of a float32
LEAST, INFINITE = np.int32(-0x8000_0000), np.int32(0x7F80_0000)
MANTISSA_BITS = np.int32(23)
SCALE_UP, NOT_FINITE = np.float32(2.0**112), np.float32(np.inf)
SUMMED = {"reassoc", "nsz", "contract"}  # sums may be taken in any order, and with fused products

i32, i64, f32, f64 = numba.int32, numba.int64, numba.float32, numba.float64


def _read(kind: Any) -> Any:
    """Return the type of flat values that may be read-only, as those of a mapped file are."""
    return numba.types.Array(kind, 1, "C", readonly=True)


def _read2(kind: Any) -> Any:
    return numba.types.Array(kind, 2, "C", readonly=True)


BLOCKS = numba.types.UniTuple(i64, 5)
GRID = numba.types.UniTuple(f32, 6)
RETURNS = (_read(f32), _read(f32), BLOCKS, _read(f32), _read(f32))


def loop(fastmath: Any = False) -> Callable[[F], F]:
    """Return what compiles a loop as a part of those that call it."""
    return numba.njit(nogil=True, error_model="numpy", fastmath=fastmath)


def entry(*signature: Any, returns: Any = numba.void) -> Callable[[F], F]:
    """Return what compiles a function for Python to call, unless it is on disk."""
    compile_ = numba.njit(returns(*signature), nogil=True, error_model="numpy", cache=True)

    def compiled(function: F) -> F:
        made = compile_(function)
        if made.stats.cache_misses:
            announce()
        return made

    return compiled


@cache
def announce() -> None:
    """Say once why nothing seems to happen."""
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
    each = isinstance(values, numba.types.Array)
    return (lambda values, i: values[i]) if each else (lambda values, _: values)


numba.extending.overload(at, strict=False)(_typed_at)


@loop()
def uniform(
    x: Any, scale: Any, zero_point: Any, grid: Any, x_hat: Any, codes: Any, clipped: Any
) -> Any:
    """Round to even steps; count what lies beyond the codes. Without `codes` write `x_hat` alone.

    An entry a value in `scale` and `zero_point`, or one of all.
    """
    first, qmin, qmax, _, _, _ = grid
    beyond = i32(0)
    for i in range(x.size):
        s, z = at(scale, i), at(zero_point, i)
        steps = x[i] / s if s != ZERO else ZERO
        unclipped = np.rint(steps) + z
        q = min(max(unclipped, qmin), qmax)
        x_hat[i] = min(max((q - z) * s, -LARGEST), LARGEST)
        if codes is not None:
            codes[i] = np.uint16(i32(q - first))
            clipped[i] = unclipped != q
            beyond = i32(beyond + i32(unclipped != q))
    return beyond


@loop()
def floating_point(x: Any, scale: Any, grid: Any, x_hat: Any, codes: Any, clipped: Any) -> Any:
    """Round to floating-point numbers by adding and subtracting 1.5 * 2^k."""
    first, largest, least, shift_over_binade, stored_bits, last = grid
    offset, mantissa_bits, largest_code = i32(first), i32(stored_bits), i32(last)
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
        x_hat[i] = min(max(value * scale[i], -LARGEST), LARGEST)
    return beyond


@loop()
def fixed_point(x: Any, scale: Any, grid: Any, x_hat: Any, codes: Any, clipped: Any) -> Any:
    """Round to whole numbers of a fraction of the scale."""
    first, one, qmax, _, _, _ = grid
    beyond = i32(0)
    for i in range(x.size):
        y = x[i] / scale[i] if scale[i] != ZERO else ZERO
        steps = np.rint(y * one)
        code = min(max(steps, -qmax), qmax)
        clipped[i] = code != steps
        beyond = i32(beyond + i32(code != steps))
        codes[i] = np.uint16(i32(code - first))
        x_hat[i] = min(max(code / one * scale[i], -LARGEST), LARGEST)
    return beyond


@loop()
def nearest_level(
    x: Any, scale: Any, grid: Any, levels: Any, midpoints: Any, x_hat: Any, codes: Any, clipped: Any
) -> Any:
    """Go to one of a few levels; the code counts the midpoints below."""
    _, least, largest, _, _, _ = grid
    beyond = i32(0)
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
        x_hat[i] = min(max(levels[codes[i]] * scale[i], -LARGEST), LARGEST)
    return beyond


@loop()
def round_trip(
    kind: Any, x: Any, scale: Any, zero_point: Any, grid: Any, levels: Any, midpoints: Any,
    x_hat: Any, codes: Any, clipped: Any,
) -> Any:  # fmt: skip
    """Take a piece through a grid; count what lies beyond it."""
    if kind == UNIFORM:
        return uniform(x, scale, zero_point, grid, x_hat, codes, clipped)
    if kind == FLOAT:
        return floating_point(x, scale, grid, x_hat, codes, clipped)
    if kind == FIXED_POINT:
        return fixed_point(x, scale, grid, x_hat, codes, clipped)
    return nearest_level(x, scale, grid, levels, midpoints, x_hat, codes, clipped)


@loop()
def spread(values: Any, blocks: Any, start: Any, out: Any) -> Any:
    """Write the entry of its block for each element from `start` on: of whole blocks at once."""
    row, width, per_row, shared, first = blocks
    at, line, within = 0, start // row, start % row
    while at < out.size:
        block, inside = divmod(within, width)
        entry = block - first if shared else line * per_row + block - first
        rest = min(row - within, out.size - at)
        whole = rest // width if inside == 0 else 0
        for n in range(whole):
            out[at + n * width : at + (n + 1) * width] = values[entry + n]
        many = whole * width or min(rest, width - inside)
        if whole == 0:
            out[at : at + many] = values[entry]
        at, within = at + many, within + many
        if within == row:
            line, within = line + 1, 0


@loop()
def value_of(ordered: Any) -> Any:
    """Return the value whose whole number in the order of values is given."""
    return np.int32(i32(ordered ^ i32((ordered >> i32(31)) & MAGNITUDE))).view(np.float32)


@loop(SUMMED)
def add(x: Any, x_hat: Any, threshold: Any, abs_err: Any, sums: Any, counts: Any) -> Any:
    """Add the sums of a piece to those of its chunk, and keep the magnitudes of errors.

    Return the largest of these, and the squared errors of values that became 0.
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
    found = err, total, squares, ratios, x_err, dot, sq_x_hat
    for k in range(len(found)):
        sums[k] += found[k]
    counts[0] += zeroed
    counts[1] += above
    return value_of(largest), zero_squares


@loop(SUMMED)
def lost(x_hat: Any, abs_err: Any, clipped: Any) -> Any:
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
    _read(f32), i64, i64, *RETURNS[2:], GRID, *RETURNS[:2],
    _read(f32), _read(numba.int16), _read(numba.boolean), f32, i64, f32[::1], i64, f32[::1],
    f64[:, ::1], i64[:, ::1], i64[:, ::1], returns=i32,
)  # fmt: skip
def gather(
    x: Any, start: Any, kind: Any, blocks: Any, scales: Any, zero_points: Any, grid: Any,
    levels: Any, midpoints: Any, given: Any, given_codes: Any, given_clipped: Any,
    threshold: Any, width: Any, maxima: Any, stride: Any, errors: Any,
    sums: Any, counts: Any, tables: Any,
) -> Any:  # fmt: skip
    """Take a block through a grid, and gather what is left of each chunk.

    `x` begins at element `start`, a multiple of a chunk. `blocks` is ``(row, width, per_row,
    shared, first)`` of the layout, `scales` and `zero_points` have an entry for each block from
    `first` on. Where `kind` is `GIVEN`, what comes back is, with codes and what was clipped, or
    empty arrays. `maxima`, empty where not wanted, are of rows of `width` values of x_hat.
    """
    scale, zero_point = np.empty(PIECE, np.float32), np.empty(PIECE, np.float32)
    x_hat, abs_err = np.empty(PIECE, np.float32), np.empty(PIECE, np.float32)
    codes, clipped = np.empty(PIECE, np.uint16), np.zeros(PIECE, np.bool_)
    scale[:], zero_point[:] = scales[0], zero_points[0]
    bits, x_hat_bits = x.view(np.int32), x_hat.view(np.int32)
    first, touched = i32(grid[0]), i32(0)
    for at in range(0, x.size, PIECE):
        stop, beyond = min(at + PIECE, x.size), 0
        n, chunk = stop - at, at // CHUNK
        if kind == GIVEN:
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
            if kind == UNIFORM and scales.size == 1:
                beyond = uniform(
                    x[at:stop], scales[0], zero_points[0], grid, x_hat[:n], codes[:n], clipped[:n]
                )
            else:
                beyond = round_trip(
                    kind, x[at:stop], scale[:n], zero_point[:n], grid, levels, midpoints,
                    x_hat[:n], codes[:n], clipped[:n],
                )  # fmt: skip
        largest, zero_squares = add(
            x[at:stop], x_hat[:n], threshold, abs_err[:n], sums[chunk], counts[chunk]
        )
        if beyond:
            counts[chunk, 2] += beyond
            zero_squares, clip_squares = lost(x_hat[:n], abs_err[:n], clipped[:n])
            sums[chunk, 8] += clip_squares
        sums[chunk, 7] += zero_squares
        sums[chunk, 9] = max(sums[chunk, 9], largest)
        if tables.size:
            ahead = stop if stop + n <= x.size else at
            touched = i32(touched | count(codes[:n], bits[ahead : ahead + n], tables))
        if maxima.size:
            keep_maxima(x_hat_bits[:n], start + at, width, maxima)
        keep_sample(abs_err[:n], start + at, stride, errors)
    return touched


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
def look(x: Any, bits: Any, sums: Any) -> Any:
    """Return what `least_and_greatest` does; add to the zeros, the sum, and that of squares."""
    least, most = MAGNITUDE, LEAST
    total, squares, zeros = 0.0, 0.0, i32(0)
    for i in range(x.size):
        ordered = i32(bits[i] ^ i32((bits[i] >> i32(31)) & MAGNITUDE))
        least, most = min(least, ordered), max(most, ordered)
        value = f64(x[i])
        total += value
        squares += value * value
        zeros = i32(zeros + i32(x[i] == ZERO))
    found = f64(zeros), total, squares
    for k in range(len(found)):
        sums[k] += found[k]
    return least, most


@entry(_read(f32), i64, f32[::1], f64[:, ::1], returns=numba.types.UniTuple(f32, 2))
def survey(x: Any, width: Any, maxima: Any, sums: Any) -> Any:
    """Keep the maximum of each row of a block, and its sums by chunk; return least and greatest.

    A row that spans pieces has -inf in `maxima` before. Where a value is not finite, neither is one
    of the ends.
    """
    bits, step = x.view(np.int32), min(width, PIECE)
    least, most = MAGNITUDE, LEAST
    for start in range(0, x.size, step):
        these = slice(start, start + step)
        low, high = look(x[these], bits[these], sums[start // CHUNK])
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
    """Write the least and the greatest value of each block of `width` values.

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
def ratios_of(x: Any, largest: Any, out: Any) -> Any:
    """Write how many times as large the largest magnitude is as each, 1 of those of 0."""
    for i in range(x.size):
        magnitude = abs(f64(x[i]))
        out[i] = f64(largest[i]) / magnitude if magnitude != 0.0 else 1.0


@loop()
def steps_of(x: Any, step: Any, magnitudes: Any, zero_point: Any, logs: Any, codes: Any) -> Any:
    """Round logarithms to whole steps, and write the codes of these."""
    for i in range(x.size):
        own, last = f64(step[i]), f64(magnitudes[i]) - 1.0
        k = np.rint(logs[i] / own) if own != 0.0 else 0.0
        k = min(max(k, 0.0), last)
        code = f64(magnitudes[i]) - k
        code = code if x[i] > ZERO else -code
        code = code if x[i] != ZERO else 0.0
        codes[i] = np.int16(i32(code + f64(zero_point[i])))
        logs[i] = k * -own


@loop()
def values_of(x: Any, largest: Any, powers: Any, x_hat: Any) -> Any:
    """Write the largest magnitude times powers of two, with the sign of each value."""
    for i in range(x.size):
        value = f32(powers[i] * f64(largest[i]))
        value = value if x[i] > ZERO else -value
        x_hat[i] = value if x[i] != ZERO else ZERO


@entry(_read(f32), i64, BLOCKS, _read(f32), f64[::1])
def log_ratios(x: Any, start: Any, blocks: Any, largest: Any, out: Any) -> Any:
    """Write what `Log` takes the logarithm of."""
    lane = np.empty(PIECE, np.float32)
    for at in range(0, x.size, PIECE):
        stop = min(at + PIECE, x.size)
        own = lane[: stop - at]
        spread(largest, blocks, start + at, own)
        ratios_of(x[at:stop], own, out[at:stop])


@entry(_read(f32), i64, BLOCKS, *[_read(f32)] * 3, f64[::1], numba.int16[::1])
def log_steps(
    x: Any, start: Any, blocks: Any, steps: Any, magnitudes: Any, zero_points: Any, logs: Any,
    codes: Any,
) -> Any:  # fmt: skip
    """Turn binary logarithms into those of what comes back, and write its codes."""
    lanes = np.empty((3, PIECE), np.float32)
    for at in range(0, x.size, PIECE):
        stop = min(at + PIECE, x.size)
        step, many, zero = lanes[0, : stop - at], lanes[1, : stop - at], lanes[2, : stop - at]
        spread(steps, blocks, start + at, step)
        spread(magnitudes, blocks, start + at, many)
        spread(zero_points, blocks, start + at, zero)
        steps_of(x[at:stop], step, many, zero, logs[at:stop], codes[at:stop])


@entry(_read(f32), i64, BLOCKS, _read(f32), _read(f64), f32[::1])
def log_values(x: Any, start: Any, blocks: Any, largest: Any, powers: Any, x_hat: Any) -> Any:
    """Write the values that logarithms came from."""
    lane = np.empty(PIECE, np.float32)
    for at in range(0, x.size, PIECE):
        stop = min(at + PIECE, x.size)
        own = lane[: stop - at]
        spread(largest, blocks, start + at, own)
        values_of(x[at:stop], own, powers[at:stop], x_hat[at:stop])


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


@entry(i64, _read2(f32), _read2(f32), _read2(f32), GRID, *RETURNS[:2], f64[:, ::1])
def squared_errors(
    kind: Any, x: Any, scales: Any, zero_points: Any, grid: Any, levels: Any, midpoints: Any,
    out: Any,
) -> Any:  # fmt: skip
    """Write the sums of squared errors of each column, or of all, for each choice of scales.

    `x` is ``(values, columns)``; `scales` and `out` are ``(choices, columns)`` or ``(choices, 1)``,
    as is `zero_points`.
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
                if kind == UNIFORM and scales.shape[1] == 1:
                    one = scales[choice, 0]
                    uniform(values, one, zero_points[choice, 0], grid, x_hat, None, None)
                elif kind == UNIFORM:
                    uniform(values, scale, zero_point, grid, x_hat, None, None)
                else:
                    round_trip(
                        kind, values, scale, zero_point, grid, levels, midpoints,
                        x_hat, codes[:n], clipped[:n],
                    )  # fmt: skip
                if out.shape[1] > 1:
                    add_squares(values, x_hat, out[choice, start:stop])
                else:
                    out[choice, 0] += squares(values, x_hat)


@entry(f32[::1], f64, f64, numba.uint8[::1], i64[::1])
def place_in_bins(errors: Any, width: Any, upper: Any, places: Any, counts: Any) -> Any:
    """Write the bin of each error, 64 of those beyond, and count them; see `histogram`."""
    for i in range(errors.size):
        error = f64(errors[i])
        place = np.uint8(min(error / width, 64.0))
        places[i] = np.uint8(63) if error == upper else place
    tables = np.zeros((TABLES, counts.size), np.int64)
    for i in range(errors.size):
        tables[i % TABLES, places[i]] += 1
    for table in tables:
        counts += table
