import hashlib

import numpy as np
import pytest

from quantlab.sources.tensor import Tensor

X = np.random.default_rng(0).standard_normal((7, 5)).astype(np.float32)


@pytest.mark.parametrize("shape", [(), (1,), (2, 3), (2, 1, 4)])
def test_the_hash_is_that_of_the_bytes(shape):
    x = np.full(shape, 0.75, np.float32)
    assert Tensor("x", x).sha256() == hashlib.sha256(x.tobytes()).hexdigest()


@pytest.mark.parametrize("view", [X, X.T, X[::-2], X.astype(">f8"), np.asfortranarray(X)])
def test_elements_count_in_c_order_whatever_the_layout(view):
    tensor = Tensor("x", view)
    assert tensor.sha256() == hashlib.sha256(view.tobytes()).hexdigest()
    assert tensor.block(3, 9).tolist() == view.astype(np.float32).ravel()[3:9].tolist()
    assert tensor.block(3, 9).dtype == np.float32
    values, indices = tensor.rows(4, np.array([0, 2]))
    assert indices.tolist() == [0, 1, 2, 3, 8, 9, 10, 11]
    assert values.tolist() == view.astype(np.float32).ravel()[indices].tolist()


def test_values_that_underflow_are_counted():
    values = np.array([1.0, 0.0, 1e-46, -1e-300, 1e-45, np.finfo(np.float32).tiny])
    tensor, narrow = Tensor("x", values), Tensor("x", values.astype(np.float32))
    assert tensor.underflows(0, tensor.block(0, 6)) == 2
    assert tensor.underflows(3, tensor.block(3, 6)) == 1
    assert narrow.underflows(0, narrow.block(0, 6)) == 0


def test_a_finite_tensor_is_no_error():
    Tensor("x", X).require_finite()
