"""The operations of a program: per folder a short `reference.py` and a `cpu.py` that equals it."""
