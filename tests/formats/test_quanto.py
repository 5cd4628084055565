"""quanto's rule against what optimum-quanto itself gives back, bit for bit."""

import pytest

from quantlab.formats.element import ContradictionError
from quantlab.formats.quanto import QuantoQint
from tests.formats import oracle

VECTORS = oracle.vectors("quanto")
X = VECTORS["x"]
KEYS = [key.split("-") for key in VECTORS if key.count("-") == 2]


@pytest.mark.parametrize(("dtype", "bits", "group"), KEYS)
def test_groups_are_what_quanto_gives_back(dtype, bits, group):
    x_hat = oracle.reconstruct(QuantoQint(int(bits), int(group), dtype), X)
    oracle.assert_same_bits(x_hat, VECTORS[f"{dtype}-{bits}-{group}"])


def test_bits_are_counted_in_the_type_of_the_tensor():
    assert QuantoQint(4, 128).open(oracle.typed(X, "bfloat16")).bits == X.size * (4 + 32 / 128)
    assert QuantoQint(2, 32).open(oracle.typed(X)).bits == X.size * (2 + 64 / 32)


def test_what_quanto_has_not_is_refused():
    with pytest.raises(ContradictionError, match="must be 2 or 4, the widths of mode=quanto"):
        QuantoQint(8, 128)
    with pytest.raises(ValueError, match="must be one of 32, 64, 96, 128, got 256"):
        QuantoQint(4, 256)
