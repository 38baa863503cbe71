"""Block checkpoint: how states are written. When and how many is said in block training."""

from dataclasses import dataclass
from enum import StrEnum


class SaveFailure(StrEnum):
    stop = "stop"  # the run ends with exit code 4
    # It goes on and says so; the next save tries again. The last save and that of a stop signal still end the run.
    go_on = "go_on"


@dataclass
class CheckpointConfig:
    # Training goes on while a copy of the state is written; false: training waits until the files are on disk.
    async_write: bool = True
    on_failure: SaveFailure = SaveFailure.stop
