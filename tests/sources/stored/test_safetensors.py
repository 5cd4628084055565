"""Every kind of checkpoint against its own package, by vectors that the package made."""

import numpy as np
import pytest

from quantlab.sources.stored.safetensors import SafetensorsFile
from tests.conftest import ROOT

VECTORS = sorted(path.parent for path in (ROOT / "tests/data/stored").glob("*/model.safetensors"))


def stored(folder):
    (tensor,) = SafetensorsFile(str(folder / "model.safetensors")).tensors.values()
    return tensor


def decoded(tensor):
    return tensor.reader(tensor.rows)(0, tensor.size).reshape(tensor.shape)


@pytest.mark.parametrize("folder", VECTORS, ids=lambda path: path.name)
def test_a_decoder_equals_the_package_bit_for_bit(folder):
    tensor, expected = stored(folder), np.load(folder / "expected.npz")
    assert tensor.fault is None
    assert tensor.remark is None
    np.testing.assert_array_equal(decoded(tensor), expected[tensor.name], strict=True)
    assert 8 * sum(part.array.nbytes for part in tensor.parts) == tensor.bits


@pytest.mark.parametrize("folder", VECTORS, ids=lambda path: path.name)
def test_any_stretch_and_any_rows_are_those_of_the_whole(folder):
    tensor, rng = stored(folder), np.random.default_rng(0)
    whole, read = decoded(tensor), tensor.reader(tensor.rows)
    for _ in range(20):
        start, stop = sorted(rng.integers(0, tensor.size + 1, 2))
        if start < stop:
            np.testing.assert_array_equal(read(start, stop), whole.reshape(-1)[start:stop])
    flat = whole.reshape(-1, whole.shape[-1])
    which = rng.permutation(len(flat))[:5]
    np.testing.assert_array_equal(tensor.rows(which), flat[which])


def test_there_is_a_vector_of_every_decoder():
    kinds = {stored(folder).dtype.split()[0] for folder in VECTORS}
    assert kinds >= {"AWQ", "GPTQ", "compressed-tensors", "bitsandbytes", "MLX", "MXFP4", "fp8"}
