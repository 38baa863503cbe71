"""What is sent to the environment for an action of the policy, and the deterministic policy as one module."""

import gymnasium as gym
import numpy as np
import torch
from torch import Tensor, nn

from rl.models.actor_critic import ActorCritic
from rl.types import TensorTree


class ActionMap(nn.Module):
    """Box: [-1, 1] -> [low, high] when `rescale`, then clipped to the bounds when `clip`. Others pass unchanged.

    The rollout keeps the policy's own action and its log-prob (detail 27).
    """

    low: Tensor
    high: Tensor

    def __init__(self, space: gym.Space, clip: bool, rescale: bool) -> None:
        """Raises ValueError for rescaling to bounds that are not finite."""
        super().__init__()
        self.box = isinstance(space, gym.spaces.Box)
        self.clip, self.rescale = clip and self.box, rescale and self.box
        if not isinstance(space, gym.spaces.Box):
            return
        if self.rescale and not (np.isfinite(space.low).all() and np.isfinite(space.high).all()):
            raise ValueError(f"ppo.rescale_actions needs bounded actions, the space is {space}; set it to false")
        self.register_buffer("low", torch.from_numpy(space.low.astype(np.float32)), persistent=False)
        self.register_buffer("high", torch.from_numpy(space.high.astype(np.float32)), persistent=False)

    def forward(self, actions: Tensor) -> Tensor:
        if self.rescale:
            actions = self.low + (actions + 1) * (0.5 * (self.high - self.low))
        return actions.clamp(self.low, self.high) if self.clip else actions


class DeterministicPolicy(nn.Module):
    """Raw observations (B, ...) -> the most likely actions for the environment; for evaluation and export.

    With an LSTM it keeps the state of B environments between calls; `begin` zeroes it.
    """

    def __init__(self, policy: ActorCritic, normalizer: nn.Module | None, action_map: ActionMap) -> None:
        super().__init__()
        self.policy, self.normalizer, self.action_map = policy, normalizer, action_map
        self._state: tuple[Tensor, Tensor] | None = None
        self._begins: Tensor | None = None

    def begin(self, ended: Tensor | None = None) -> None:
        """Before an episode of all environments (None), or of those where `ended` (B,) bool."""
        self._begins = ended
        if ended is None:
            self._state = None

    def forward(self, observation: TensorTree) -> Tensor:
        x = observation if self.normalizer is None else self.normalizer(observation)
        if not self.policy.recurrent:
            best, _ = self.policy.best(x, None, torch.empty(0))
        else:
            first = x if isinstance(x, Tensor) else next(iter(x.values()))
            B = len(first)
            state = self.policy.initial_state(B) if self._state is None else self._state
            begins = torch.zeros(B, dtype=torch.bool, device=first.device) if self._begins is None else self._begins
            best, self._state = self.policy.best(x, state, begins)
            self._begins = None
        actions: Tensor = self.action_map(best)
        return actions
