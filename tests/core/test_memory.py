"""Arrays that begin where a cache line begins, and large ones where earlier ones lay."""

import numpy as np
import pytest
import torch

from spikedriven.core import memory
from spikedriven.core.memory import LARGE, LINE, zeros


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


def address(x: np.ndarray | torch.Tensor) -> int:
    return x.data_ptr() if isinstance(x, torch.Tensor) else x.ctypes.data


@pytest.fixture
def no_blocks(monkeypatch):
    monkeypatch.setattr(memory, "_FREE", {})


@pytest.mark.usefixtures("no_blocks")
def test_a_large_array_lies_where_one_of_its_size_has_died():
    x = memory.empty((3, LARGE // 4), np.float32)
    before = address(x)
    assert before % memory.LINE == 0
    assert address(memory.empty((3, LARGE // 4), np.float32)) != before  # x is alive
    del x
    other = memory.empty((4, LARGE // 4), np.float32)
    again = memory.empty((LARGE // 4, 3), np.int32)
    second = memory.empty((3, LARGE // 4), np.float32)
    assert before in (address(again), address(second))
    assert address(other) != before


@pytest.mark.usefixtures("no_blocks")
@pytest.mark.parametrize(
    "view",
    [
        lambda x: x[1:],
        lambda x: x.T.reshape(-1, 2),
        lambda x: np.moveaxis(x.reshape(2, -1, 4), -1, 0),
        torch.from_numpy,
        lambda x: torch.from_numpy(x.T)[:5].view(torch.int32),
        lambda x: torch.from_numpy(x).untyped_storage(),
    ],
)
def test_no_array_lies_where_a_view_of_an_earlier_one_is_alive(view):
    x = memory.empty((2, LARGE), np.float32)
    begin = address(x)
    seen = view(x)
    del x
    others = [memory.empty((2, LARGE), np.float32) for _ in range(3)]
    assert begin not in [address(other) for other in others]
    del seen
    assert address(memory.empty((2, LARGE), np.float32)) == begin


@pytest.mark.usefixtures("no_blocks")
def test_only_so_many_blocks_and_sizes_are_remembered():
    alive = [memory.empty((LARGE,), np.uint8) for _ in range(memory.ALIKE + 3)]
    del alive
    assert [len(blocks) for blocks in memory._FREE.values()] == [memory.ALIKE]
    for more in range(memory.SIZES + 3):
        memory.empty((LARGE + 1 + more,), np.uint8)
    assert len(memory._FREE) == memory.SIZES
    assert LARGE not in memory._FREE


def test_a_small_array_is_numpys_own():
    assert memory.empty((3, 5), np.float32).base is None
