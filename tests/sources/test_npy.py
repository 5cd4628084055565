import numpy as np
import pytest

from quantlab.formats.format import Format
from quantlab.formats.uniform import Asymmetric
from quantlab.sources.npy import Npy
from tests.conftest import measure, measure_tensor
from tests.sources.samples import X, read


@pytest.mark.parametrize("dtype", ["<f2", "<f4", ">f4", "<f8", ">f8"])
@pytest.mark.parametrize("order", ["C", "F"])
def test_npy_of_any_float_dtype_and_order(tmp_path, dtype, order):
    np.save(tmp_path / "w.npy", np.asarray(X, dtype=dtype, order=order))
    source = Npy(str(tmp_path / "w.npy"))
    assert np.array_equal(read(source)["w"], X.astype(dtype).astype(np.float32))
    assert source.n_bytes() == X.size * np.dtype(dtype).itemsize


def test_npy_is_mapped_not_read(tmp_path):
    np.save(tmp_path / "w.npy", X)
    (tensor,) = Npy(str(tmp_path / "w.npy")).tensors()
    assert isinstance(tensor.array.base, np.memmap)


def test_a_file_measures_as_its_array(tmp_path):
    np.save(tmp_path / "w.npy", X)
    (tensor,) = Npy(str(tmp_path / "w.npy")).tensors()
    assert measure_tensor(tensor, Format(Asymmetric(8))) == measure(X, Asymmetric(8))
