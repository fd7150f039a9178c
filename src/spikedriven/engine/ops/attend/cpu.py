"""Spike-driven attention on packed spikes: 64 channels per AND."""

# mypy: disable-error-code="no-untyped-def"

import numpy as np
from numpy.typing import NDArray

from spikedriven.core.kernels import kernel
from spikedriven.core.simd import (
    both,
    either,
    load_i64,
    load_i64x4,
    lowest_bit,
    splat_i64,
    splat_i64x4,
    store,
)
from spikedriven.engine.bits import Words


def attend(q: Words, k: Words, v: Words, tokens: int, out: Words) -> None:
    """Keep the query where its channel's key and value agree at any token of the image.

    Args:
        q: Query, uint64 [B * tokens, 4, P].
        k: Key.
        v: Value.
        tokens: Tokens of an image.
        out: Filled; may be `q` itself.
    """
    _attend(q, k, v, tokens, out)


@kernel
def _attend(q, k, v, tokens, out):
    # A token has a multiple of four words. A gate never leaves its register. Arrays are made flat
    # here, not outside: for 196 tokens that would take half as long as all the rest.
    size = q.shape[2] << 2
    q, k, v, out = q.reshape(-1), k.reshape(-1), v.reshape(-1), out.reshape(-1)
    image = 0
    while image < q.size:
        at, part, end = image, image, image + size
        while part + 8 <= end:
            gate, at = splat_i64(0), part
            for _ in range(tokens):
                gate = either(gate, both(load_i64(k, at), load_i64(v, at)))
                at += size
            at = part
            for _ in range(tokens):
                store(out, at, both(load_i64(q, at), gate))
                at += size
            part += 8
        if part < end:
            rest, at = splat_i64x4(0), part
            for _ in range(tokens):
                rest = either(rest, both(load_i64x4(k, at), load_i64x4(v, at)))
                at += size
            at = part
            for _ in range(tokens):
                store(out, at, both(load_i64x4(q, at), rest))
                at += size
            part += 4
            at += 4
        else:
            at += 8
        image = at - size


def agree(k: Words, v: Words, tokens: int, gate: Words) -> None:
    """OR over an image's tokens of (key AND value).

    Args:
        k: Key, uint64 [B * tokens, 4, P].
        v: Value, of the same shape.
        tokens: Tokens of an image.
        gate: Filled, uint64 [B, 4, P].
    """
    gate[...] = 0
    _agree(k.reshape(-1), v.reshape(-1), tokens, gate[0].size, gate.reshape(-1))


@kernel
def _agree(k, v, tokens, size, gate):
    at = 0
    for image in range(0, gate.size, size):
        own = gate[image : image + size]
        for _ in range(tokens):
            key, value = k[at : at + size], v[at : at + size]
            for p in range(size):
                own[p] |= key[p] & value[p]
            at += size


def count_agreements(k: Words, v: Words, tokens: int, counts: NDArray[np.int64]) -> None:
    """Count, per channel, the tokens at which key and value both fire; one step per event.

    Args:
        k: Key, uint64 [B * tokens, 4, P].
        v: Value, of the same shape.
        tokens: Tokens of an image.
        counts: Filled, int64 [B, 4, 64 P].
    """
    counts[...] = 0
    _count(k.reshape(-1), v.reshape(-1), tokens, k[0].size, counts.reshape(-1))


@kernel
def _count(k, v, tokens, size, counts):
    one = np.uint64(1)
    at = 0
    image = 0
    while image < counts.size:
        for _ in range(tokens):
            for p in range(size):
                agreed = k[at + p] & v[at + p]
                while agreed:
                    counts[image + (p << 6) + lowest_bit(agreed)] += 1
                    agreed &= agreed - one
            at += size
        image += size << 6


def mask(q: Words, gate: Words, tokens: int, out: Words) -> None:
    """Keep the query where its channel's gate is open.

    Args:
        q: Query, uint64 [B * tokens, 4, P].
        gate: uint64 [B, 4, P].
        tokens: Tokens of an image.
        out: Filled, like `q`.
    """
    _mask(q.reshape(-1), gate.reshape(-1), tokens, gate[0].size, out.reshape(-1))


@kernel
def _mask(q, gate, tokens, size, out):
    at = 0
    for image in range(0, gate.size, size):
        own = gate[image : image + size]
        for _ in range(tokens):
            query, masked = q[at : at + size], out[at : at + size]
            for p in range(size):
                masked[p] = query[p] & own[p]
            at += size
