"""Replay of transitions as rings of T slots for each of N environments, on one device, every observation stored once.

Each environment writes its observations one after another into its ring: a transition is the number of the slot of
its observation, its next observation lies in the slot after it, and where an episode ends the final observation takes
a slot of its own before the next episode begins. So no transition can see another episode, memory is fixed, and no
step waits for the device.

Letters: N environments, T slots, B batch, A action dims.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from rl.data.replay_layout import Layout, as_dict, as_tree, replay_bytes
from rl.types import TensorTree, VectorStep


@dataclass
class ReplayBatch:
    """Rows for one gradient step; a row's n-step window lies inside one episode."""

    observation: TensorTree  # (B, ...)
    action: Tensor  # (B, A)
    reward: Tensor  # (B,) sum of gamma^i r_i over the m steps of the window
    discount: Tensor  # (B,) gamma^m, 0 after a termination
    next_observation: TensorTree  # (B, ...) what the last action of the window led to


class Replay:
    """`begin(observation)` after a reset, then `add` once a vector step; `sample` draws transitions uniformly."""

    def __init__(
        self, layout: Layout, action_dim: int, num_envs: int, slots: int, device: torch.device | str,
        gamma: float = 0.99, n_step: int = 1,
    ) -> None:  # fmt: skip
        """`slots` of each environment; of its transitions the newest are kept whose observations are all there."""
        stack = max(e.stack for e in layout.values())
        if slots < 4 + stack:
            raise ValueError(f"replay of {slots} slots for each environment is too small; use at least {4 + stack}")
        self.layout, self.num_envs, self.slots, self.stack = layout, num_envs, slots, stack
        self.gamma, self.n_step, self.device = gamma, n_step, torch.device(device)

        def ring(dtype: torch.dtype, *shape: int) -> Tensor:
            return torch.zeros(slots * num_envs, *shape, dtype=dtype, device=self.device)

        self._observations = {name: ring(e.stored, *e.frame) for name, e in layout.items()}
        self._rings = {
            "action": ring(torch.float32, action_dim),
            "reward": ring(torch.float32),
            "terminated": ring(torch.bool),
            "ended": ring(torch.bool),
            "slot": ring(torch.int32),  # of the observation, counted from the start of the run
            "age": ring(torch.int32),  # of the observation in a slot: steps since its episode began
        }
        self._columns = torch.arange(num_envs, device=self.device)
        # Of each environment, counted from the start of the run: next transition, slot of what the policy sees now,
        # transitions that can be sampled, age of what the policy sees now.
        self._counters = {name: torch.zeros_like(self._columns) for name in ("head", "cursor", "live", "age")}
        self.steps = 0  # vector steps added

    @property
    def bytes(self) -> int:
        return replay_bytes(self.layout, self._rings["action"].shape[1], self.slots, self.num_envs)

    def __len__(self) -> int:
        """Transitions that can be sampled. Waits for the device."""
        return int(self._counters["live"].sum())

    # --- writing ---------------------------------------------------------------------------------------------------

    def begin(self, observation: TensorTree) -> None:
        """All environments were reset: episodes that were running count as truncated at their last observation."""
        self._cut(torch.ones(self.num_envs, dtype=torch.bool, device=self.device))
        self._counters["age"].zero_()
        self._write_observation(observation)
        self._drop_overwritten()

    def _cut(self, where: Tensor) -> None:
        """Ends running episodes after their newest transition; what it led to keeps its slot."""
        c, ended = self._counters, self._rings["ended"]
        last = self._row(c["head"] - 1)
        running = where & (c["live"] > 0) & ~ended[last]
        ended[last] |= running
        c["cursor"] += running

    def add(self, action: Tensor, step: VectorStep) -> None:
        """One vector step: `action` (N, A) was taken in what `begin` or the `add` before was given last.

        Rows that are not valid leave no transition; their observation begins an episode, and one that was running
        is cut.
        """
        c, r = self._counters, self._rings
        row, valid = self._row(c["head"]), step.valid
        self._cut(~valid)
        ended = (step.terminated | step.truncated) & valid
        # A row that is not valid writes into a place that no transition holds, and the next valid one overwrites it.
        r["action"].index_copy_(0, row, action)
        r["reward"].index_copy_(0, row, step.reward)
        r["terminated"].index_copy_(0, row, step.terminated)
        r["ended"].index_copy_(0, row, ended)
        r["slot"].index_copy_(0, row, c["cursor"].int())
        c["head"] += valid
        c["live"] += valid
        c["cursor"] += valid
        c["age"] = torch.where(valid, c["age"] + 1, 0)
        self._write_observation(step.next_observation)
        c["cursor"] += ended
        c["age"] = torch.where(ended, 0, c["age"])
        self._write_observation(step.observation)
        self._drop_overwritten()
        self.steps += 1

    def _row(self, counter: Tensor) -> Tensor:
        """Row of the rings that counter value holds, for each environment."""
        return (counter % self.slots) * self.num_envs + self._columns

    def _write_observation(self, observation: TensorTree) -> None:
        row = self._row(self._counters["cursor"])
        for name, value in as_dict(observation).items():
            e = self.layout[name]
            newest = value[:, -e.frame[0] :] if e.stack > 1 else value
            self._observations[name].index_copy_(0, row, newest.to(e.stored))
        self._rings["age"].index_copy_(0, row, self._counters["age"].int())

    def _drop_overwritten(self) -> None:
        """Forgets transitions that would need an overwritten slot: at most two, as many as slots were taken."""
        c = self._counters
        for _ in range(2):
            oldest = self._rings["slot"][self._row(c["head"] - c["live"])]
            lost = (c["live"] > 0) & (c["cursor"] - oldest > self.slots - self.stack)
            c["live"] -= lost.long()

    # --- reading ---------------------------------------------------------------------------------------------------

    def sample(self, batch: int, generator: torch.Generator | None = None) -> ReplayBatch:
        """`batch` transitions, drawn with replacement: an environment, then one of its transitions.

        A window of `n_step` steps ends early at the end of an episode and at the newest transition.
        """
        if self.steps == 0:
            raise ValueError("the replay is empty; collect steps before training on them")
        c, r, N = self._counters, self._rings, self.num_envs
        env = torch.randint(N, (batch,), generator=generator, device=self.device)
        draw = torch.rand(batch, generator=generator, device=self.device)
        live = c["live"][env]
        first = c["head"][env] - live + (draw * live).long().clamp_max(live - 1)
        begin = last = self._at(first, env)
        reward = r["reward"][begin]
        discount = torch.full_like(reward, self.gamma)
        running = torch.ones(batch, dtype=torch.bool, device=self.device)
        for i in range(1, self.n_step):
            row = self._at(first + i, env)
            running = running & ~r["ended"][last] & (first + i < c["head"][env])
            last = torch.where(running, row, last)
            reward += torch.where(running, discount * r["reward"][row], 0.0)
            discount = torch.where(running, discount * self.gamma, discount)
        return ReplayBatch(
            self._read_observation(r["slot"][begin].long(), env),
            r["action"][begin],
            reward,
            torch.where(r["terminated"][last], 0.0, discount),
            self._read_observation(r["slot"][last].long() + 1, env),
        )

    def _at(self, counter: Tensor, env: Tensor) -> Tensor:
        return torch.add(env, counter % self.slots, alpha=self.num_envs)

    def _read_observation(self, slot: Tensor, env: Tensor) -> TensorTree:
        parts = {}
        for name, e in self.layout.items():
            if e.stack == 1:
                value = self._observations[name][self._at(slot, env)]
            else:
                back = torch.arange(e.stack - 1, -1, -1, device=self.device)  # oldest first
                age = self._rings["age"][self._at(slot, env)].long()
                rows = self._at(slot[:, None] - torch.minimum(back, age[:, None]), env[:, None])
                value = self._observations[name][rows].flatten(1, 2)
            parts[name] = value.to(e.dtype)
        return as_tree(parts)

    # --- checkpoints -----------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Counters and the rows in use, as tensors of their own."""
        used = min(self.slots, int(self._counters["cursor"].max()) + 1) * self.num_envs
        return {
            "shape": [self.slots, self.num_envs],
            "steps": self.steps,
            "counters": {k: v.clone() for k, v in self._counters.items()},
            "rings": {k: v[:used].clone() for k, v in self._rings.items()},
            "observations": {k: v[:used].clone() for k, v in self._observations.items()},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continues exactly. ValueError when the saved replay has another size or other observations."""
        if state["shape"] != [self.slots, self.num_envs]:
            raise ValueError(
                f"the saved replay has {state['shape'][0]} slots for {state['shape'][1]} environments, this one "
                f"{self.slots} for {self.num_envs}; resume with the same num_envs and buffer_size"
            )
        for own, saved in ((self._rings, state["rings"]), (self._observations, state["observations"])):
            if set(own) != set(saved) or any(own[k].shape[1:] != saved[k].shape[1:] for k in own):
                raise ValueError("the saved replay holds other observations or actions than this environment gives")
            for k, v in saved.items():
                own[k][: len(v)] = v.to(own[k].device, own[k].dtype)
        self._counters = {k: v.to(self.device).clone() for k, v in state["counters"].items()}
        self.steps = state["steps"]
