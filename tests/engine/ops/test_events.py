"""Lists of events: both builders against a look at every channel of every tap."""

import types

import numba
import numpy as np
import pytest
from tests.engine.ops.drawn import CHANNELS, RATES, SIDES, STEPS, TOKENS, draw_spikes, to_words

from spikedriven.engine.bits import WORD, words_for
from spikedriven.engine.ops.events import cpu
from spikedriven.engine.ops.events.reference import GRAY, list_events


def _builder(compress: bool):
    code = cpu._list_tasks.py_func
    own = types.FunctionType(code.__code__, {**code.__globals__, "_COMPRESS": compress})
    return numba.njit(parallel=True, error_model="numpy")(own)


BUILDERS = {"vector": _builder(True), "scalar": _builder(False), "chosen": cpu._list_tasks}


def row_of(kernel: int, channels: int) -> np.ndarray:
    taps = np.arange(kernel * kernel)[:, None] * words_for(channels) * WORD
    return taps + np.arange(channels)


def dirty_lists(pixels: int, rows: int) -> cpu.Lists:
    return np.full((pixels + 1, cpu.room_for(rows)), 12345, np.uint16)


def four_steps(s):
    """Add the steps that are missing to a group of four."""
    return np.concatenate([s, np.zeros((4 - len(s), *s.shape[1:]), np.bool_)])


def assert_lists(s, kernel, builder, lo=0, hi=None):
    """Build the lists of pixels lo ... hi - 1 and compare everything that is in them."""
    words = to_words(s)
    height, width, channels = s.shape[2:]
    hi = len(words) if hi is None else hi
    inputs = words_for(channels) * WORD
    zero_row = kernel * kernel * inputs
    lists, totals = dirty_lists(hi - lo, zero_row), np.full((2, hi - lo + 1), 12345)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cpu, "_list_tasks", BUILDERS[builder])
        if kernel == 1:
            cpu.list_pixels(words, inputs, lists, totals)
        else:
            near, near_totals = dirty_lists(len(words), inputs), np.zeros((2, len(words)), np.int64)
            cpu.list_pixels(words, -1, near, near_totals)
            cpu.merge_neighbours(near, height, width, inputs, lo, hi, lists, totals)
            alone = list_events(four_steps(s), 1, row_of(1, channels))
            assert near_totals[1].tolist() == [sum(map(len, groups)) for groups in alone]
    wanted = list_events(four_steps(s), kernel, row_of(kernel, channels))[lo:hi]
    counts, borders = lists[:, cpu.COUNTS :], lists[:, cpu.BORDERS :]
    rows_of, untouched = lists[:, cpu.HEADER :], lists[-1]
    for i, groups in enumerate(wanted):
        assert borders[i, 0] == 0
        for g, rows in enumerate(groups):
            got = rows_of[i, borders[i, g] : borders[i, g + 1]].tolist()
            filled = rows + [zero_row] * (-len(rows) % 4)
            assert got == [8 * row for row in filled], (i, GRAY[g])
        for t in range(4):
            at_t = sum(len(rows) for g, rows in enumerate(groups) if GRAY[g] >> t & 1)
            assert counts[i, t] == at_t, (i, t)
        assert totals[:, i].tolist() == [counts[i, :4].sum(), borders[i, 15]]
    assert (untouched == 12345).all()
    assert (totals[:, -1] == 12345).all()


@pytest.mark.parametrize("builder", BUILDERS)
@pytest.mark.parametrize("kernel", [1, 3])
@pytest.mark.parametrize("sides", SIDES, ids=map(str, TOKENS))
def test_every_pixel_lists_what_it_sees(builder, kernel, sides):
    assert_lists(draw_spikes(4, 1, *sides, 5, rate=0.3), kernel, builder)


@pytest.mark.parametrize("builder", BUILDERS)
@pytest.mark.parametrize("channels", CHANNELS)
def test_every_channel_has_its_row(builder, channels):
    assert_lists(draw_spikes(4, 2, 2, 3, channels), 3, builder)


@pytest.mark.parametrize("builder", BUILDERS)
@pytest.mark.parametrize("rate", RATES)
@pytest.mark.parametrize("steps", STEPS)
def test_every_rate_and_number_of_steps_is_listed(builder, rate, steps):
    assert_lists(draw_spikes(steps, 1, 3, 3, 70, rate=rate), 3, builder)


@pytest.mark.parametrize("builder", BUILDERS)
def test_part_of_the_pixels_can_be_listed(builder):
    s = draw_spikes(4, 3, 4, 5, 9)
    assert_lists(s, 3, builder, lo=7, hi=48)


@pytest.mark.parametrize("builder", ["vector", "scalar"])
def test_every_pattern_of_steps_finds_its_group(builder):
    pattern = np.arange(16)
    s = (pattern >> np.arange(4)[:, None] & 1).astype(bool).reshape(4, 1, 1, 1, 16)
    assert_lists(s, 1, builder)


@pytest.mark.usefixtures("threads")
def test_threads_share_the_pixels():
    assert_lists(draw_spikes(4, 2, 9, 11, 33), 3, "chosen")


def test_from_group_to_group_a_single_step_comes_or_goes():
    assert sorted(GRAY) == list(range(1, 16))
    for before, after in zip((0, *GRAY), GRAY, strict=False):
        assert (before ^ after).bit_count() == 1


def test_a_neighbour_beyond_the_border_or_in_another_image_is_not_listed():
    s = np.zeros((4, 2, 2, 2, 1), np.bool_)
    s[0, 1] = True  # only the second image fires
    lists = list_events(s, 3, row_of(3, 1))
    assert [sum(map(len, groups)) for groups in lists] == [0] * 4 + [4] * 4
    assert_lists(s, 3, "chosen")


def test_a_tile_of_all_taps_reads_its_pixels_own_list():
    assert cpu.visits(2, 3, 4, 1, 32).tolist() == [[32 * pixel] for pixel in range(24)]


def test_a_tile_of_one_tap_reads_the_list_of_the_pixel_that_the_tap_sees():
    images, height, width, room = 2, 3, 4, 32
    visits = cpu.visits(images, height, width, 9, room).reshape(images, height, width, 9)
    for tap in range(9):
        for b, y, x in np.ndindex(images, height, width):
            v, u = y + tap // 3 - 1, x + tap % 3 - 1
            inside = 0 <= v < height and 0 <= u < width
            wanted = (b * height + v) * width + u if inside else images * height * width
            assert visits[b, y, x, tap] == wanted * room


@pytest.mark.parametrize("rows", [1, 64, 1000])
def test_a_list_has_room_for_all_rows_in_any_groups_and_begins_on_a_cache_line(rows):
    room = cpu.room_for(rows)
    assert room >= cpu.HEADER + rows + 15 * 3 + cpu.SLACK
    assert room * 2 % 64 == 0
