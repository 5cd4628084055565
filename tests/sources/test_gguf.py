import sys

import gguf
import ml_dtypes
import numpy as np
import pytest

from quantlab.sources.gguf import Gguf
from tests.sources.samples import RNG, X, read, write_gguf


def test_gguf_floats_are_read_and_quantized_tensors_left_out(tmp_path):
    kind = gguf.GGMLQuantizationType
    brain = X.astype(ml_dtypes.bfloat16)
    path = write_gguf(
        tmp_path / "m.gguf",
        f32=(X, None),
        f16=(X.astype(np.float16), None),
        bf16=(brain.view(np.uint8), kind.BF16),
        q8=(gguf.quantize(RNG.standard_normal((4, 64)).astype(np.float32), kind.Q8_0), kind.Q8_0),
        ids=(np.arange(8, dtype=np.int32), None),
    )
    source = Gguf(path)
    found = read(source)
    assert np.array_equal(found["f32"], X)
    assert np.array_equal(found["f16"], X.astype(np.float16).astype(np.float32))
    assert np.array_equal(found["bf16"], brain.astype(np.float32))
    assert source.skipped() == {
        "q8": "Q8_0 is quantized already",
        "ids": "I32 is no floating-point type",
    }


def test_a_big_endian_gguf_is_refused_not_misread(tmp_path):
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "test", endianess=gguf.GGUFEndian.BIG)
    writer.add_tensor("w", X.copy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(ValueError, match="is big-endian: convert it"):
        Gguf(str(tmp_path / "m.gguf"))


def test_a_missing_package_is_told(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "gguf", None)
    path = write_gguf(tmp_path / "w.gguf", w=(X, None))
    with pytest.raises(ValueError, match=r"takes the package gguf: pip install 'quantlab\[gguf\]'"):
        Gguf(path)
