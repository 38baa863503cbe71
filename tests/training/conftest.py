from collections.abc import Iterator

import pytest

from rl.config import TrainingConfig
from rl.training.parallel_utils import ParallelContext


@pytest.fixture
def world() -> Iterator[ParallelContext]:
    """A group of one process on the CPU."""
    context = ParallelContext.create(TrainingConfig(device="cpu"))
    yield context
    context.close()
