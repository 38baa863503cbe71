"""Files of a made-up GR00T checkpoint."""

import json
from pathlib import Path


def write_weights(path: Path, *names: str) -> None:
    """A safetensors file of empty tensors, header only: 8 bytes of length, then JSON."""
    header = json.dumps({n: {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]} for n in names}).encode()
    path.write_bytes(len(header).to_bytes(8, "little") + header)
