"""The event-driven engine: a compiled network that only adds.

`compile.py` turns a trained model into a `plan.Program`, plain integers; `run.py` runs it without
torch, with NumPy and Numba, and safetensors for its file. What each operation computes stands in
`ops/*/reference.py`, in a few lines; `ops/*/cpu.py` computes the same integers, fast.
"""
