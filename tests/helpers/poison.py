"""Memory whose content nobody can mistake for a result."""

import math

import pytest
from torch import Tensor


def poison_fresh_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fill fresh memory with NaN, so that an element that no kernel writes is seen."""

    def poisoning(fresh):
        def poisoned(self, *size, **arguments):
            room = fresh(self, *size, **arguments)
            return room.fill_(math.nan if room.is_floating_point() else 0xA5)

        return poisoned

    for name in ("new_empty", "new_empty_strided"):
        monkeypatch.setattr(Tensor, name, poisoning(getattr(Tensor, name)))
