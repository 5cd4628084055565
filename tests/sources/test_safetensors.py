import json

import ml_dtypes
import numpy as np
from safetensors import TensorSpec, serialize_file

from quantlab.sources.safetensors import Safetensors
from tests.sources.samples import X, read, write_safetensors


def test_safetensors_of_every_dtype_without_torch(tmp_path):
    kinds = {
        "float16": np.float16,
        "bfloat16": ml_dtypes.bfloat16,
        "float8_e4m3fn": ml_dtypes.float8_e4m3fn,
        "float8_e5m2": ml_dtypes.float8_e5m2,
        "float64": np.float64,
        "float32": np.float32,
    }
    stored = {name: X.astype(kind) for name, kind in kinds.items()} | {"ids": np.arange(4)}
    path = tmp_path / "m.safetensors"
    specs = {
        name: TensorSpec(
            dtype=name if name in kinds else "int64",
            shape=array.shape,
            data_ptr=array.ctypes.data,
            data_len=array.nbytes,
        )
        for name, array in stored.items()
    }
    serialize_file(specs, path)
    source = Safetensors(str(path))
    found = read(source)
    assert found.keys() == kinds.keys()
    for name, values in found.items():
        assert np.array_equal(values, stored[name].astype(np.float32)), name
    assert {entry.name: entry.dtype for entry in source.entries} == {
        name: name for name in kinds
    } | {"ids": "I64"}
    assert source.skipped() == {"ids": "I64 is no floating-point type"}


def test_a_sharded_checkpoint_is_one_source(tmp_path):
    write_safetensors(tmp_path / "a.safetensors", first=X, spare=X)
    write_safetensors(tmp_path / "b.safetensors", second=X + 1)
    index = tmp_path / "model.safetensors.index.json"
    weights = {"first": "a.safetensors", "second": "b.safetensors"}
    index.write_text(json.dumps({"metadata": {}, "weight_map": weights}))
    found = read(Safetensors(str(index)))
    assert list(found) == ["first", "second"]
    assert np.array_equal(found["second"], X + 1)
