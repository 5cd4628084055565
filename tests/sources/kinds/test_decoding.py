import ml_dtypes
import numpy as np
import pytest

from quantlab.sources.kinds.decoding import (
    FP4,
    LONG_ROW,
    StoredTensor,
    multiply,
    unpack_codes,
    unpack_nibbles,
)


def test_a_long_row_is_decoded_once_and_not_for_every_stretch():
    values = np.arange(2 * (LONG_ROW + 1), dtype=np.float32).reshape(2, -1)
    decoded = []

    def rows(which):
        decoded.extend(which.tolist())
        return values[which]

    read = StoredTensor("w", values.shape, "codes", (), rows)
    read = read.reader()
    for start in range(0, LONG_ROW, 1000):
        stop = min(start + 1000, LONG_ROW + 1)
        np.testing.assert_array_equal(read(start, stop), values[0, start:stop])
    assert decoded == [0]
    np.testing.assert_array_equal(
        read(LONG_ROW, LONG_ROW + 2), values.ravel()[LONG_ROW : LONG_ROW + 2]
    )
    np.testing.assert_array_equal(read(LONG_ROW + 1, LONG_ROW + 3), values[1, :2])
    assert decoded == [0, 0, 1, 1]


RNG = np.random.default_rng(0)


def stream(row):
    """Return a row of uint32 words as one number, the first word lowest."""
    return sum(int(word) << 32 * place for place, word in enumerate(row))


@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize("n", [1, 7, 32, 64])
def test_codes_are_the_digits_of_one_number_lowest_first(bits, n):
    words = RNG.integers(0, 2**32, (3, -(-n * bits // 32)), dtype=np.uint32)
    digits = [[stream(row) >> bits * place & 2**bits - 1 for place in range(n)] for row in words]
    np.testing.assert_array_equal(
        unpack_codes(words, bits, n), np.array(digits, np.int32), strict=True
    )


@pytest.mark.parametrize("bits", range(2, 9))
def test_signed_words_and_words_apart_in_memory_are_the_same(bits):
    words = RNG.integers(0, 2**32, (6, 8), dtype=np.uint32)
    n = 256 // bits
    codes = unpack_codes(words, bits, n)
    np.testing.assert_array_equal(unpack_codes(words.view(np.int32), bits, n), codes)
    np.testing.assert_array_equal(unpack_codes(np.asfortranarray(words), bits, n), codes)
    np.testing.assert_array_equal(unpack_codes(words[::2], bits, n), codes[::2])


@pytest.mark.parametrize("bits", range(2, 9))
def test_all_ones_are_the_greatest_code(bits):
    ones = np.full((2, bits), 2**32 - 1, np.uint32)
    assert (unpack_codes(ones, bits, 32) == 2**bits - 1).all()


@pytest.mark.parametrize("bits", range(2, 9))
def test_no_rows_are_no_codes(bits):
    assert unpack_codes(np.empty((0, bits), np.uint32), bits, 32).shape == (0, 32)


def test_nibbles_are_both_halves_of_a_byte_in_either_order():
    octets = np.array([[0x21, 0x43], [0xFE, 0x0A]], np.uint8)
    assert unpack_nibbles(octets).tolist() == [[1, 2, 3, 4], [14, 15, 10, 0]]
    assert unpack_nibbles(octets, high_first=True).tolist() == [[2, 1, 4, 3], [15, 14, 0, 10]]
    assert unpack_nibbles(octets.reshape(2, 1, 2)).shape == (2, 1, 4)


def test_fp4_is_e2m1():
    for code, value in enumerate(FP4):
        exponent, fraction = code >> 1 & 3, code & 1
        size = fraction / 2 if exponent == 0 else (1 + fraction / 2) * 2 ** (exponent - 1)
        assert value == (-size if code >= 8 else size)
    assert np.signbit(FP4[8])


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_products_are_those_of_the_dtype_of_the_scales(dtype):
    steps = np.arange(-256, 257)[:, None]
    values = np.random.default_rng(0).standard_normal(500) * 10.0 ** np.arange(-12, 8).repeat(25)
    with np.errstate(over="ignore", invalid="ignore"):
        scales = values.astype(ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype)
        expected = (steps.astype(scales.dtype) * scales).astype(np.float32)
        np.testing.assert_array_equal(multiply(steps, scales), expected)
