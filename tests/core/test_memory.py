"""Arrays that begin where a cache line begins."""

import numpy as np
import pytest

from spikedriven.core.memory import LINE, zeros


@pytest.mark.parametrize("dtype", [np.bool_, np.uint8, np.int32, np.uint64])
@pytest.mark.parametrize("shape", [(1,), (7,), (3, 5, 65)])
def test_zeros_are_numpys_at_the_start_of_a_line(shape, dtype):
    for _ in range(8):  # wherever NumPy's own memory begins
        x = zeros(shape, dtype)
        wanted = np.zeros(shape, dtype)
        assert (x.shape, x.dtype, x.strides) == (wanted.shape, wanted.dtype, wanted.strides)
        assert np.array_equal(x, wanted)
        assert x.ctypes.data % LINE == 0
        assert x.flags.writeable


def test_two_arrays_share_no_memory():
    a, b = zeros((100,), np.int32), zeros((100,), np.int32)
    a[...] = 7
    assert not b.any()
