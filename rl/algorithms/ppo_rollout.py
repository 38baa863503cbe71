"""The acting half of PPO: fills a rollout with an unchanging policy and turns it into the batch an update trains on."""

from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import torch
from torch import Generator, Tensor

from rl.algorithms.ppo_losses import Total, normalize_advantages
from rl.config import AdvantageNorm, ObservationNorm, PPOConfig, TimeoutBootstrap
from rl.data.rollout import RolloutStorage, tree_flat, tree_index
from rl.models.action_map import ActionMap
from rl.models.actor_critic import ActorCritic
from rl.models.recurrent import State
from rl.models.running_norm import ObservationNormalizer, RewardNormalizer
from rl.types import TensorTree, VectorStep


@dataclass
class Batch:
    """What one update trains on; everything but `observation`, `state` and `scale` is (T, E, ...)."""

    observation: TensorTree  # (T, E, ...) as the network sees it
    actions: Tensor
    logp: Tensor
    advantages: Tensor
    returns: Tensor
    values: Tensor
    weights: Tensor | None  # float32, 0 where a row is no transition; None: every row is one
    out: Tensor  # output of the acting policy
    scale: Tensor  # its std
    state: State | None  # LSTM state before the first row
    begins: Tensor | None  # bool, an episode begins with the row; only with an LSTM


class RolloutActor:
    """Acts for `num_envs` environments and remembers what PPO needs. One call of `act` and `record` a step."""

    def __init__(
        self, cfg: PPOConfig, policy: ActorCritic, observation_space: gym.Space, action_space: gym.Space,
        num_envs: int, device: torch.device, generator: Generator,
    ) -> None:  # fmt: skip
        """`generator` lives on `device`. Raises ValueError for action bounds that do not fit the configuration."""
        self.cfg, self.policy, self.generator, self.device = cfg, policy, generator, device
        self.storage = RolloutStorage(cfg.n_steps, num_envs, device)
        self.action_map = ActionMap(action_space, cfg.clip_actions, cfg.rescale_actions).to(device)
        self.observation_norm: ObservationNormalizer | None = None
        if cfg.observation_norm is not ObservationNorm.none:
            self.observation_norm = ObservationNormalizer(
                observation_space, cfg.observation_norm_eps, cfg.observation_norm_eps_on_std, cfg.observation_clip
            ).to(device)
        self.reward_norm: RewardNormalizer | None = None
        if cfg.reward_norm:
            self.reward_norm = RewardNormalizer(num_envs, cfg.gamma, cfg.reward_clip).to(device)
        self.state = policy.initial_state(num_envs)
        self.begins = torch.ones(num_envs, dtype=torch.bool, device=device)

    # --- acting ----------------------------------------------------------------------------------------------------

    def start(self, observation: TensorTree) -> None:
        """New episodes begin everywhere with these observations (E, ...)."""
        self.begins.fill_(True)
        if self.reward_norm is not None:
            self.reward_norm.running_E.zero_()
        self._see(observation)

    def resume(self, observation: TensorTree) -> None:
        """Goes on with episodes in progress, after `load_state_dict`: the statistics know these observations."""
        self._raw = observation
        self._waiting = self._normalized(observation)

    @torch.no_grad()
    def act(self, autocast: AbstractContextManager[Any]) -> Tensor:
        """Actions for the environments, sampled."""
        if self.storage.length == 0:
            self._first_state = self.state
        with autocast:
            drawn = self.policy.draw(self._waiting, self.state, self.begins, self.generator)
        self._actions, self._out, self._value, self._next_state = drawn.actions, drawn.out, drawn.value, drawn.state
        sent: Tensor = self.action_map(drawn.executed)
        return sent

    @torch.no_grad()
    def record(self, step: VectorStep) -> None:
        """What the environments did with the actions of the last `act`."""
        ended = step.terminated | step.truncated
        reward = step.reward.float()
        if self.reward_norm is not None:
            reward = self.reward_norm(torch.where(step.valid, reward, 0.0), ended, step.valid)
        row = {
            "actions": self._actions, "out": self._out, "reward": reward, "terminated": step.terminated,
            "truncated": step.truncated, "valid": step.valid,
        }  # fmt: skip
        if self._value is not None:
            row["value"] = self._value
        if self.policy.recurrent:
            row["begins"] = self.begins
        stored = self.cfg.observation_norm is ObservationNorm.stored
        self.storage.add(self._waiting if stored else self._raw, **row)
        self.state = self._next_state
        self._keep_final(step)
        self.begins = ended | ~step.valid
        self._see(step.observation)

    def _see(self, observation: TensorTree) -> None:
        """Statistics take every observation the policy is shown, before it is normalised (as Gymnasium's wrapper)."""
        self._raw = observation
        if self.observation_norm is not None and self.cfg.observation_norm is not ObservationNorm.frozen:
            self.observation_norm.update(observation)
        self._waiting = self._normalized(observation)

    def _normalized(self, observation: TensorTree) -> TensorTree:
        return observation if self.observation_norm is None else self.observation_norm(observation)

    def _keep_final(self, step: VectorStep) -> None:
        """Last observations of episodes that time cut, and the LSTM states that go with them."""
        if self.cfg.timeout_bootstrap is not TimeoutBootstrap.final_obs:
            return
        rows = (step.truncated & ~step.terminated & step.valid).nonzero()[:, 0]
        if len(rows):
            final = self._normalized(tree_index(step.next_observation, rows))
            if self.state is None:
                self.storage.cut(rows, observation=final)
            else:
                h, c = (x[:, rows].transpose(0, 1) for x in self.state)
                self.storage.cut(rows, observation=final, state={"h": h, "c": c})

    # --- from rollout to batch -------------------------------------------------------------------------------------

    @torch.no_grad()
    def finish(self, total: Total, autocast: AbstractContextManager[Any]) -> Batch:
        """Collective. The batch of the full rollout; begins the next one (tensors of the batch live until it acts)."""
        s, cfg, d = self.storage, self.cfg, self.policy.distribution
        assert s.full
        T, E = s.n_steps, s.num_envs
        raw = cfg.observation_norm in (ObservationNorm.raw, ObservationNorm.frozen)
        observation = self._normalized(s.observation) if raw else s.observation
        with autocast:
            if self._value is not None:
                values = s["value"]
            else:
                values = self.policy.value(tree_flat(observation)).reshape(T, E)
            last = self.policy.value(self._waiting, self.state, self.begins)
            cut = self._cut_values()
        advantages, returns = s.advantages(values, last, cut, cfg.gamma, cfg.gae_lambda, cfg.timeout_bootstrap)
        weights = s.weights
        if cfg.advantage_norm is AdvantageNorm.rollout:
            advantages = normalize_advantages(advantages, weights, total)
        batch = Batch(
            observation, s["actions"], d.log_prob(s["out"], s["actions"]), advantages, returns, values, weights,
            s["out"], d.scale(), self._first_state, s["begins"] if self.policy.recurrent else None,
        )  # fmt: skip
        s.begin()
        return batch

    def end_update(self, total: Total) -> None:
        """Collective. Statistics that move only between updates take the rollout; all ranks share theirs."""
        if self.observation_norm is not None and self.cfg.observation_norm is ObservationNorm.frozen:
            valid = self.storage["valid"].flatten()
            self.observation_norm.update(tree_flat(self.storage.observation), valid)
        if self.observation_norm is not None:
            self.observation_norm.share(total)
        if self.reward_norm is not None:
            self.reward_norm.norm.share(total)
        self._waiting = self._normalized(self._raw)

    def _cut_values(self) -> Tensor:
        """(n,) values of the last observations of episodes that time cut."""
        final = self.storage.cut_states()
        if not final:
            return torch.empty(0, device=self.device)
        begins = torch.zeros_like(self.storage.cut_index[1], dtype=torch.bool)
        state = None
        if self.policy.recurrent:
            h_c = final["state"]
            assert isinstance(h_c, dict)
            state = h_c["h"].transpose(0, 1).contiguous(), h_c["c"].transpose(0, 1).contiguous()
        return self.policy.value(final["observation"], state, begins)

    # --- checkpoints -----------------------------------------------------------------------------------------------

    def statistics(self) -> dict[str, Any]:
        """State of the normalisers, the same on all ranks between updates."""
        return {
            name: None if norm is None else norm.state_dict()
            for name, norm in [("observation", self.observation_norm), ("reward", self.reward_norm)]
        }

    def load_statistics(self, state: dict[str, Any]) -> None:
        for name, norm in [("observation", self.observation_norm), ("reward", self.reward_norm)]:
            if (norm is None) != (state[name] is None):
                raise ValueError(f"the checkpoint was trained with another ppo.{name}_norm; use its config.yaml")
            if norm is not None:
                norm.load_state_dict(state[name])

    def state_dict(self) -> dict[str, Any]:
        """Of this rank between rollouts: episodes in progress and random stream."""
        assert self.storage.length == 0
        return {
            "generator": self.generator.get_state(), "begins": self.begins, "state": self.state,
            "running_return": None if self.reward_norm is None else self.reward_norm.running_E,
        }  # fmt: skip

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        self.generator.set_state(saved["generator"].cpu())
        self.begins = saved["begins"].to(self.device)
        self.state = None if saved["state"] is None else tuple(s.to(self.device) for s in saved["state"])  # type: ignore[assignment]
        if self.reward_norm is not None:
            self.reward_norm.running_E = saved["running_return"].to(self.device)
