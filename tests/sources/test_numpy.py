import numpy as np
import pytest

from quantlab.experiment import Experiment
from quantlab.formats.format import Format
from quantlab.formats.uniform import Asymmetric
from quantlab.sources.numpy import Npy, Npz
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


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_npz_by_member(tmp_path, save):
    save(tmp_path / "m.npz", a=X, ids=np.arange(3), none=np.empty((0, 2)), deep=X.astype(">f8"))
    source = Npz(str(tmp_path / "m.npz"))
    found = read(source)
    assert list(found) == ["a", "deep"]
    assert np.array_equal(found["deep"], X)
    assert source.skipped() == {"ids": "int64 is no floating-point type", "none": "it is empty"}


def test_a_damaged_member_costs_no_other(tmp_path):
    path = tmp_path / "m.npz"
    np.savez(path, a=X, b=X + 1, c=X)
    content = path.read_bytes()
    path.write_bytes(content.replace((X + 1).tobytes()[:64], bytes(64)))
    outcome = Experiment(Npz(str(path)), Format(Asymmetric(8)), 10, 1e-8, 1).run()
    assert list(outcome.tensors) == ["a", "c"]
    assert outcome.failed["b"].startswith(f"tensor 'b' cannot be read: {path} is no npz file, or")


def test_a_member_over_the_limit_is_left_out_and_costs_no_other(tmp_path):
    np.savez(tmp_path / "m.npz", small=X[0], big=np.zeros(10**5, np.float32))
    source = Npz(str(tmp_path / "m.npz"), max_bytes=1000)
    assert list(read(source)) == ["small"]
    assert source.skipped()["big"].startswith("it unpacks to 400128 bytes, above the limit of 1000")
