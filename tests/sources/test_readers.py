import contextlib

import numpy as np
import pytest

from quantlab.sources import readers
from tests.sources.samples import X, read, write_gguf, write_safetensors


@pytest.mark.parametrize("offset", range(0, 200, 7))
@pytest.mark.parametrize("kind", ["npy", "npz", "safetensors", "gguf"])
def test_a_flipped_byte_is_read_or_refused(tmp_path, kind, offset):
    """Whatever a reader makes of it: a ValueError or a tensor, nothing else."""
    path = tmp_path / f"w.{kind}"
    if kind == "npy":
        np.save(path, X)
    elif kind == "npz":
        np.savez(path, w=X)
    elif kind == "safetensors":
        write_safetensors(path, w=X)
    else:
        write_gguf(path, w=(X, None))
    content = bytearray(path.read_bytes())
    content[offset] ^= 0x91
    path.write_bytes(content)
    with contextlib.suppress(ValueError):
        read(readers.reader_of(path)(str(path)))


def test_a_suffix_that_nobody_reads_is_told(tmp_path):
    (tmp_path / "w.txt").write_text("x")
    with pytest.raises(ValueError, match=r"has none of the suffixes \.npy, \.npz, "):
        readers.reader_of(tmp_path / "w.txt")
    with pytest.raises(ValueError, match=r"x\.bin: no such file"):
        readers.reader_of(tmp_path / "x.bin")
