"""Accounts: what a network computes, counted in whole numbers, and what that costs in joules.

`counts.py` counts, `costs.py` prices, `account.py` multiplies the two; `audit.py` asks whether
every synapse really sees spikes. Invariant: a count is a whole number of things that happened; a
joule is a count times an entry of a cited table. The room does not know the engine.

The room can be called: `spikedriven.energy(counts)` is `account.energy`, whichever of the room and
the function was asked for first.
"""

import sys
from importlib import import_module
from types import ModuleType
from typing import Any


class _Room(ModuleType):
    def __call__(self, *arguments: Any, **keywords: Any) -> Any:
        account = import_module("spikedriven.energy.account")
        return account.energy(*arguments, **keywords)


sys.modules[__name__].__class__ = _Room
