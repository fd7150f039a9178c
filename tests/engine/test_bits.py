"""Packed spikes: where each bit lies, and that nothing is lost or added."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spikedriven.engine.bits import WORD, pack, unpack, words_for

# One element, around a byte, around a word, around two words, and the paper's 14 x 14 tokens.
LENGTHS = [1, 7, 8, 9, WORD - 1, WORD, WORD + 1, 2 * WORD - 1, 2 * WORD + 1, 196]


@settings(deadline=None, database=None)
@given(st.lists(st.booleans(), min_size=1, max_size=200))
def test_what_is_packed_is_unpacked(bits):
    s = np.array(bits)
    assert unpack(pack(s), len(s)).tolist() == bits


@pytest.mark.parametrize("length", LENGTHS)
def test_each_channel_has_its_own_bit(length):
    words = pack(np.eye(length, dtype=np.bool_))
    assert words.shape == (length, words_for(length))
    for c in range(length):
        value = sum(int(word) << (WORD * p) for p, word in enumerate(words[c]))
        assert value == 1 << c


@pytest.mark.parametrize("length", LENGTHS)
def test_bits_past_the_channels_are_zero(length):
    words = pack(np.ones((2, 3, length), np.bool_))
    value = sum(int(word) << (WORD * p) for p, word in enumerate(words[1, 2]))
    assert value == (1 << length) - 1


def test_a_word_begins_with_each_sixty_fourth_channel():
    assert [words_for(c) for c in (1, 63, 64, 65, 128, 129)] == [1, 1, 1, 2, 2, 3]


def test_strided_words_are_unpacked_as_they_are_seen():
    s = np.random.default_rng(0).random((6, 4, 70)) < 0.5
    assert np.array_equal(unpack(pack(s)[::2, 1:3], 70), s[::2, 1:3])
