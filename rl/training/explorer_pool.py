"""Past explorers (their trained tensors only), so that the world model does not forget how earlier ones moved.

Without them two players can chase each other in circles (fictitious play; the league of Vinyals et al. 2019).
"""

from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rl.training.seeds import words_for
from rl.training.tensor_swap import Parameters, Version, on_device_of, swapped_in, taken


class ExplorerPool:
    """The explorer of phase 2, which stays, and a ring of later ones."""

    def __init__(self, parameters: Parameters, capacity: int) -> None:
        """parameters: of the explorer that acts, holding those of phase 2 now."""
        self.parameters = parameters
        self.reference = taken(parameters)
        self.ring: deque[Version] = deque(maxlen=capacity)

    def __len__(self) -> int:
        return 1 + len(self.ring)

    def add(self) -> None:
        """Takes the present explorer in; the oldest leaves a full ring."""
        self.ring.append(taken(self.parameters))

    def choose(self, seed: int, *stream: int | str) -> int:
        """One of them, uniformly: a function of seed and stream."""
        return words_for(1, seed, "explorer_pool", *stream)[0] % len(self)

    @contextmanager
    def acting(self, index: int) -> Iterator[None]:
        """Inside the block explorer `index` acts (0: that of phase 2)."""
        with swapped_in(self.parameters, self.reference if index == 0 else self.ring[index - 1]):
            yield

    def state_dict(self) -> dict[str, Any]:
        """Plain data."""
        return {"reference": dict(self.reference), "ring": list(self.ring)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Raises ValueError for explorers of another shape."""
        self.reference = on_device_of(self.parameters, state["reference"])
        self.ring.clear()
        self.ring.extend(on_device_of(self.parameters, v) for v in state["ring"])
