"""Independent random streams, each named by what it is for: a pure function of (seed, rank, stream names)."""

import zlib

import numpy as np


def words_for(count: int, seed: int, *stream: int | str) -> list[int]:
    """`count` 32-bit words; strings enter by CRC-32 (Python's hash() differs between processes)."""
    entropy = [seed, *(zlib.crc32(s.encode()) if isinstance(s, str) else s for s in stream)]
    if seed < 0:
        raise ValueError(f"training.seed is {seed}; a seed must not be negative")
    assert all(e >= 0 for e in entropy), entropy
    # The length goes first because SeedSequence pads with zeros: [1, 0] and [1] would give the same stream.
    return [int(w) for w in np.random.SeedSequence([len(entropy), *entropy]).generate_state(count)]


def seed_for(seed: int, rank: int, *stream: int | str) -> int:
    """63-bit seed of one stream, e.g. `seed_for(seed, rank, "episode", env, index)`."""
    high, low = words_for(2, seed, rank, *stream)
    return ((high << 32) | low) >> 1
