"""Block numbers: what is done about losses that are finite but suspicious, and about memory that runs out. Losses that
are not finite always stop."""

from dataclasses import dataclass
from enum import StrEnum


class OnSpike(StrEnum):
    log = "log"
    stop = "stop"  # exit code 3, as for a loss that is not finite


class OnMemory(StrEnum):
    stop = "stop"  # exit code 1 and a line that says what to lower
    halve = "halve"  # world model: smaller micro-batches on all ranks, the same batch


@dataclass
class NumbersConfig:
    """A spike: loss or gradient norm above `spike_factor` times its median over the last `spike_window` lines of
    metrics, `spike_patience` times in a row."""

    spike_window: int = 100
    spike_factor: float = 5.0
    spike_patience: int = 4
    on_spike: OnSpike = OnSpike.log
    on_out_of_memory: OnMemory = OnMemory.stop


def check_numbers(cfg: NumbersConfig) -> None:
    """Raises ValueError naming the key."""
    for name, value, least in [
        ("spike_window", cfg.spike_window, 10), ("spike_factor", cfg.spike_factor, 1.0),
        ("spike_patience", cfg.spike_patience, 1),
    ]:  # fmt: skip
        if value < least:
            raise ValueError(f"numbers.{name} is {value}; it must be at least {least}")
