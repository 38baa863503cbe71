"""gymnasium's SyncVectorEnv with every environment in a supervised process of its own; all of them step at once.

Autoreset is SAME_STEP. A lost environment (see `rl.envs.supervised`) is built again and reset: its row of the step is
truncated, its observation is the first of a new episode, and `lost` marks it. Nothing else in that row means anything.
"""

from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import gymnasium as gym
import numpy as np
import numpy.typing as npt
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from rl.config import SupervisionConfig
from rl.envs.supervised import Lost, Workers
from rl.envs.worker import GET, SET


class _Remote(gym.Env[Any, Any]):
    """What SyncVectorEnv takes for an environment: gives the answers that were already received, in their order."""

    def __init__(self, workers: Workers, index: int, facts: dict[str, Any]) -> None:
        self._workers, self._index = workers, index
        self.observation_space, self.action_space = facts["observation_space"], facts["action_space"]
        self.metadata, self.render_mode, self.spec = facts["metadata"], facts["render_mode"], facts["spec"]
        self.answers: deque[Any] = deque()

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        answer: tuple[Any, dict[str, Any]] = self.answers.popleft()
        return answer

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        answer: tuple[Any, float, bool, bool, dict[str, Any]] = self.answers.popleft()
        return answer

    def render(self) -> Any:
        return self._workers.call("render", rows=[self._index])[0]


FACTS = ("observation_space", "action_space", "metadata", "render_mode", "spec")


class ProcessVectorEnv(SyncVectorEnv):
    """`reset`, `step`, `call`, `set_attr`, `get_attr` and `close` as SyncVectorEnv; `envs[i]` knows spaces and spec."""

    def __init__(self, factories: Sequence[Callable[[], gym.Env[Any, Any]]], limits: SupervisionConfig) -> None:
        """factories: can be pickled. Raises ValueError for what an environment refuses."""
        self.workers = Workers(factories, limits)
        self.lost: npt.NDArray[np.bool_] = np.zeros(len(factories), np.bool_)  # in the last reset or step
        self._lost_between: npt.NDArray[np.bool_] = np.zeros(len(factories), np.bool_)  # since then
        self._seeds: list[int | None] = [None] * len(factories)  # of the last reset
        self.num_envs = len(factories)
        try:
            known = {name: self.get_attr(name) for name in FACTS}
            remotes = [
                _Remote(self.workers, i, {name: values[i] for name, values in known.items()})
                for i in range(len(factories))
            ]
            super().__init__([lambda r=r: r for r in remotes], autoreset_mode=AutoresetMode.SAME_STEP)  # type: ignore[misc]
        except BaseException:
            self.workers.close()
            raise

    def reset(
        self, *, seed: int | list[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """As SyncVectorEnv, without `reset_mask`."""
        if options is not None and "reset_mask" in options:
            raise ValueError("environments in processes reset themselves; leave reset_mask out")
        if isinstance(seed, int):
            seed = [seed + i for i in range(self.num_envs)]
        self._seeds = [None] * self.num_envs if seed is None else list(seed)
        self.lost, self._lost_between = self._lost_between, np.zeros(self.num_envs, np.bool_)
        for i, answer in enumerate(self._reset_rows(range(self.num_envs), options, self._seeds)):
            self._remote(i).answers.append(answer)
        return super().reset(seed=list(self._seeds), options=options)

    def step(self, actions: Any) -> Any:
        """As SyncVectorEnv."""
        self.workers.step()
        each = [(a,) for a in gym.vector.utils.iterate(self.action_space, actions)]
        answers = self.workers.call("step", each)
        self.lost = np.array([isinstance(a, Lost) for a in answers]) | self._lost_between
        self._lost_between = np.zeros(self.num_envs, np.bool_)
        ended = [i for i, a in enumerate(answers) if self.lost[i] or a[2] or a[3]]
        begun = dict(zip(ended, self._reset_rows(ended, None, [self._fresh_seed(i) for i in ended]), strict=True))
        for i, answer in enumerate(answers):
            queue = self._remote(i).answers
            queue.append((begun[i][0], 0.0, False, True, {}) if self.lost[i] else answer)
            if i in begun:
                queue.append(begun[i])
        return super().step(actions)

    def _reset_rows(
        self, rows: Sequence[int], options: dict[str, Any] | None, seeds: Sequence[int | None]
    ) -> list[tuple[Any, dict[str, Any]]]:
        """(observation, info) of each; those that are lost in it are marked and begin as a new environment does."""
        named = [{"seed": s, "options": options} for s in seeds]
        found = dict(zip(rows, self.workers.call("reset", rows=rows, named=named), strict=True))
        while again := [i for i in rows if isinstance(found[i], Lost)]:
            self.lost[again] = True
            named = [{"seed": self._fresh_seed(i)} for i in again]
            found |= zip(again, self.workers.call("reset", rows=again, named=named), strict=True)
        return [found[i] for i in rows]

    def _fresh_seed(self, index: int) -> int | None:
        """None (the stream goes on), but for an environment that was just rebuilt and would else begin anywhere."""
        seed, generation = self._seeds[index], self.workers.generation(index)
        if seed is None or not self.lost[index]:
            return None
        return int(np.random.SeedSequence([seed, generation]).generate_state(1)[0]) >> 1

    def _remote(self, index: int) -> _Remote:
        remote = self.envs[index]
        assert isinstance(remote, _Remote)
        return remote

    def call(self, name: str, *args: Any, **kwargs: Any) -> tuple[Any, ...]:
        """The method of every environment. One that is lost in it is asked again, and is `lost` in the next step."""
        return self._ask(name, [args] * self.num_envs, kwargs)

    def get_attr(self, name: str) -> tuple[Any, ...]:
        return self._ask(GET, [(name,)] * self.num_envs, {})

    def set_attr(self, name: str, values: list[Any] | tuple[Any, ...] | Any) -> None:
        each = values if isinstance(values, list | tuple) else [values] * self.num_envs
        self._ask(SET, [(name, v) for v in each], {})

    def _ask(self, name: str, arguments: Sequence[tuple[Any, ...]], named: dict[str, Any]) -> tuple[Any, ...]:
        answers = self.workers.call(name, arguments, named=[named] * self.num_envs)
        while again := [i for i, a in enumerate(answers) if isinstance(a, Lost)]:
            self._lost_between[again] = True
            new = self.workers.call(name, [arguments[i] for i in again], again, [named] * len(again))
            for i, answer in zip(again, new, strict=True):
                answers[i] = answer
        return tuple(answers)

    def close_extras(self, **kwargs: Any) -> None:
        """Ends the processes."""
        self.workers.close()
