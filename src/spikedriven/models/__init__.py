"""One file per architecture, and the names, weights and released files that belong to it.

Invariant: building or loading a model needs no training library.
"""
