import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from quantlab.formats.gram import (
    TILE,
    compute_gram,
    factor_upper,
    invert_upper,
    multiply,
    require_inputs,
    row_energies,
)
from quantlab.sources.tensor import Tensor

SIZES = st.integers(1, 3 * TILE)
BITS = """
import hashlib, numpy as np
from quantlab.formats.gram import compute_gram, multiply, row_energies
x = np.random.default_rng(0).standard_normal((700, 333)).astype("f4")
gram = compute_gram(lambda start, stop: x.reshape(-1)[start:stop], x.size, 333)
results = gram, row_energies(x[:90].astype(float), gram), multiply(x[:77].astype(float), gram)
print(*(hashlib.sha256(np.ascontiguousarray(array)).hexdigest() for array in results))
"""


def draw(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape)


def gram_of(x):
    return compute_gram(lambda start, stop: x.reshape(-1)[start:stop], x.size, x.shape[1])


@given(SIZES, SIZES, SIZES)
def test_tiles_add_up_to_the_product(rows, inner, columns):
    a, b = draw(rows, inner), draw(inner, columns, seed=1)
    # Sums of `inner` products differ in their order alone.
    bound = 4 * inner * np.finfo(float).eps * (np.abs(a) @ np.abs(b))
    assert (np.abs(multiply(a, b) - a @ b) <= bound).all()


@given(SIZES, st.integers(1, 100))
def test_the_gram_matrix_is_that_of_all_rows(width, tokens):
    x = draw(tokens, width).astype(np.float32)
    exact = x.astype(float)
    gram = gram_of(x)
    assert (gram == gram.T).all()
    bound = 4 * tokens * np.finfo(float).eps * (np.abs(exact.T) @ np.abs(exact))
    assert (np.abs(gram - exact.T @ exact) <= bound).all()


def test_rows_are_added_in_chunks(monkeypatch):
    x = draw(300, 70).astype(np.float32)
    whole = gram_of(x)
    monkeypatch.setattr("quantlab.formats.gram.CHUNK_BYTES", 2**16)
    assert gram_of(x) == pytest.approx(whole, rel=1e-12, abs=1e-12)


@given(SIZES, st.integers(1, 100))
def test_the_energy_of_a_row_is_that_of_what_it_does_to_the_inputs(width, n_rows):
    x, rows = draw(50, width), draw(n_rows, width, seed=1)
    energies = row_energies(rows, x.T @ x)
    assert energies == pytest.approx(np.square(x @ rows.T).sum(axis=0), rel=1e-10)


@given(SIZES)
def test_a_factor_is_upper_triangular_and_gives_the_matrix(width):
    x = draw(2 * width, width)
    gram = x.T @ x + np.eye(width)
    factor = factor_upper(gram.copy())
    assert not np.tril(factor, -1).any()
    assert factor @ factor.T == pytest.approx(gram, rel=1e-10, abs=1e-10 * width)
    assert factor @ invert_upper(factor) == pytest.approx(np.eye(width), abs=1e-8)


@pytest.mark.parametrize("width", [1, TILE, 100])
def test_what_is_not_positive_definite_has_no_factor(width):
    gram = np.eye(width)
    gram[0, 0] = -1
    with pytest.raises(np.linalg.LinAlgError, match="not positive definite"):
        factor_upper(gram)


def test_the_bits_do_not_depend_on_the_threads_of_blas():
    command = [sys.executable, "-c", BITS]
    bits = {
        subprocess.run(
            command, env={"OPENBLAS_NUM_THREADS": n}, capture_output=True, text=True, check=True
        ).stdout
        for n in ("1", "2", "4")
    }
    assert len(bits) == 1


@pytest.mark.parametrize(
    ("shape", "axis", "width"), [((5, 6), None, 6), ((5, 6), 0, 5), ((2, 3, 4), None, 12)]
)
def test_inputs_fit_the_axis_along_which_they_lie(shape, axis, width):
    tensor = Tensor("w", np.zeros(shape, np.float32), input_axis=axis)
    require_inputs(width, tensor, "x.npz")
    with pytest.raises(ValueError, match=r"x\.npz has inputs of 7 values for tensor 'w', whose"):
        require_inputs(7, tensor, "x.npz")


def test_a_vector_has_no_inputs():
    with pytest.raises(ValueError, match="whose shape is \\[6\\]"):
        require_inputs(6, Tensor("b", np.zeros(6, np.float32)), "x.npz")
