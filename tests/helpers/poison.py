"""Memory whose content nobody can mistake for a result."""

import math

import pytest
from torch import Tensor


def poison_fresh_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fill fresh memory with NaN, so that an element that no kernel writes is seen."""
    fresh = Tensor.new_empty

    def poisoned(self, *size, **arguments):
        room = fresh(self, *size, **arguments)
        return room.fill_(math.nan if room.is_floating_point() else 0xA5)

    monkeypatch.setattr(Tensor, "new_empty", poisoned)
