import numpy as np

from quantlab.sources.stored.tensor import LONG, StoredTensor


def test_a_long_row_is_decoded_once_and_not_for_every_stretch():
    values = np.arange(2 * (LONG + 1), dtype=np.float32).reshape(2, -1)
    decoded = []

    def rows(which):
        decoded.extend(which.tolist())
        return values[which]

    read = StoredTensor("w", values.shape, "codes", (), rows)
    read = read.reader(read.rows)
    for start in range(0, LONG, 1000):
        stop = min(start + 1000, LONG + 1)
        np.testing.assert_array_equal(read(start, stop), values[0, start:stop])
    assert decoded == [0]
    np.testing.assert_array_equal(read(LONG, LONG + 2), values.ravel()[LONG : LONG + 2])
    np.testing.assert_array_equal(read(LONG + 1, LONG + 3), values[1, :2])
    assert decoded == [0, 0, 1, 1]
