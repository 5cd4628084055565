"""Kinds of files that people publish: each pairs, and comes back as it was made."""

import numpy as np
import pytest

from quantlab.sources.readers import DECODERS, reader_of
from tests.sources.published import CASES, OTHER_SHAPES, two_prefixes


def open_pair(folder):
    """Open the original of a folder, and the file stored beside it bound to that."""
    (original,), (stored,) = folder.glob("a.*"), folder.glob("b.*")
    source = reader_of(original)(str(original), select="weights")
    return source, DECODERS[stored.suffix[1:]](str(stored)).bind(source)


@pytest.mark.parametrize("other", [False, True], ids=["", "other"])
@pytest.mark.parametrize("case", CASES)
def test_a_published_kind_pairs_and_comes_back(tmp_path, case, other):
    shape = OTHER_SHAPES[case] if other else ()
    expected = case(tmp_path, "transformer.h.0.attn" if other else "model", *shape)
    source, bound = open_pair(tmp_path)
    tensors = {tensor.name: tensor for tensor in source.tensors()}
    assert tensors.keys() == expected.keys()
    for name, (x, y) in expected.items():
        opened = bound.open(tensors[name])
        assert bool(opened.remark) == (case is two_prefixes)  # which it names
        np.testing.assert_array_equal(tensors[name].block(0, x.size), x.reshape(-1))
        np.testing.assert_array_equal(opened.read(0, y.size), y.reshape(-1))
        start, stop = y.size // 3, y.size // 3 + y.shape[-1] + 5
        np.testing.assert_array_equal(opened.read(start, stop), y.reshape(-1)[start:stop])
        assert 4 <= opened.bits / y.size <= 9
    assert not bound.unmatched()
