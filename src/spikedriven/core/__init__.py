"""The equations: pure functions of tensors. No modules, no state, no I/O.

Invariant: nothing here imports anything above torch, NumPy and Numba, and nothing here remembers.
"""
