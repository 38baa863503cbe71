"""Actor and critic over one observation space. Everything that is trained is reached through `forward`."""

from typing import Any, NamedTuple

import gymnasium as gym
import torch
from torch import Generator, Tensor, nn

from rl.config import Encoder, InitKind, PPONetworkConfig
from rl.models.cnn import NatureCNN
from rl.models.distributions import Gaussian, make_distribution
from rl.models.keypoints import KeypointEncoder
from rl.models.linear import Linear
from rl.models.mlp import mlp, orthogonal_
from rl.models.recurrent import ResettingLSTM, State
from rl.types import PRIVILEGED, TensorTree

ACTION_MASK = "action_mask"  # entry of a Dict observation: bool or int8 (B, P), 0 where an action is not allowed


class Evaluation(NamedTuple):
    """Of N actions under the current parameters, float32."""

    logp: Tensor  # (N,)
    entropy: Tensor  # (N,)
    values: Tensor  # (N,)
    out: Tensor  # (N, P) what the distribution is made of
    estimator_error: Tensor | None = None  # (N,) mean squared error over what the critic alone is shown


class Drawn(NamedTuple):
    """One decision for each of E environments."""

    actions: Tensor  # (E, ...) as they are kept for the update
    executed: Tensor  # (E, ...) for the environments, in the policy's units
    out: Tensor  # (E, P)
    value: Tensor | None  # (E,) where it costs little
    state: State | None


class ObservationEncoder(nn.Module):
    """Observations (B, ...) -> features (B, width): vectors are concatenated, pictures go through a CNN each."""

    def __init__(self, space: gym.Space, cfg: PPONetworkConfig, privileged: bool = False) -> None:
        """`privileged`: of the entries for the critic alone instead of the others."""
        super().__init__()
        spaces = dict(space.spaces) if isinstance(space, gym.spaces.Dict) else {"": space}
        spaces = {n: s for n, s in spaces.items() if n != ACTION_MASK and is_privileged(n) is privileged}
        self.pictures, self.vectors = nn.ModuleDict(), []
        self.width = 0
        for name, s in spaces.items():
            if not isinstance(s, gym.spaces.Box):
                raise ValueError(f"no encoder for the observation {name or 'space'} {s}; use Box")
            if _is_picture(s, cfg.encoder):
                keypoints = cfg.encoder is Encoder.keypoints
                cnn = KeypointEncoder(s.shape) if keypoints else NatureCNN(s.shape, cfg.cnn_width)
                self.pictures[f"cnn_{name}"] = cnn
                self.width += cnn.width
            else:
                self.vectors.append(name)
                self.width += int(torch.Size(s.shape).numel())

    def forward(self, observation: TensorTree) -> Tensor:
        named = {"": observation} if isinstance(observation, Tensor) else observation
        parts = [named[n].flatten(1).float() for n in self.vectors]
        parts += [cnn(named[n.removeprefix("cnn_")]) for n, cnn in self.pictures.items()]
        return parts[0] if len(parts) == 1 else torch.cat([p.float() for p in parts], -1)


def is_privileged(name: str) -> bool:
    """For the critic alone."""
    return name == PRIVILEGED or name.startswith(f"{PRIVILEGED}_")


def _is_picture(space: gym.spaces.Box, encoder: Encoder) -> bool:
    if encoder is Encoder.none or len(space.shape) != 3:
        return False
    return encoder is Encoder.cnn or space.dtype == "uint8"


class ActorCritic(nn.Module):
    """encoder -> [LSTM] -> [estimator] -> hidden layers of actor and critic (one trunk when `shared`) -> heads."""

    def __init__(self, observation_space: gym.Space, action_space: gym.Space, cfg: PPONetworkConfig) -> None:
        """Raises ValueError for spaces it cannot serve."""
        super().__init__()
        self.encoder = ObservationEncoder(observation_space, cfg)
        self.critic_encoder: ObservationEncoder | None = None
        if isinstance(observation_space, gym.spaces.Dict) and any(map(is_privileged, observation_space.spaces)):
            if cfg.shared or cfg.lstm:
                raise ValueError("this task shows the critic more than the actor; set ppo.network.shared=false, lstm=0")
            self.critic_encoder = ObservationEncoder(observation_space, cfg, privileged=True)
        self.lstm = ResettingLSTM(self.encoder.width, cfg.lstm, cfg.init) if cfg.lstm else None
        width = cfg.lstm or self.encoder.width
        self.estimator: nn.Module | None = None
        if cfg.estimator:
            if self.critic_encoder is None or self.critic_encoder.pictures:
                raise ValueError(
                    "ppo.network.estimator needs a task that shows the critic more than the actor, as vectors (for "
                    "reaching with cameras: arm.privileged_critic=true)"
                )
            self.estimator = mlp([width, cfg.estimator, self.critic_encoder.width], cfg.activation, activate_last=False)
            width += self.critic_encoder.width
        last = cfg.hidden[-1] if cfg.hidden else width
        self.distribution = make_distribution(action_space, cfg.std, cfg.init_std)
        self.actor_body = mlp([width, *cfg.hidden], cfg.activation, activate_last=True)
        seen = width if self.critic_encoder is None else self.critic_encoder.width
        self.critic_body = None if cfg.shared else mlp([seen, *cfg.hidden], cfg.activation, activate_last=True)
        self.actor_head = Linear(last, self.distribution.outputs)
        self.critic_head = Linear(cfg.hidden[-1] if cfg.hidden else seen, 1)
        # With a common encoder or trunk the value costs little more than the action; else it is computed in one batch.
        common = cfg.shared or cfg.lstm > 0 or len(self.encoder.pictures) > 0
        self.value_with_action = common and self.critic_encoder is None
        self.masked = isinstance(observation_space, gym.spaces.Dict) and ACTION_MASK in observation_space.spaces
        if self.masked and isinstance(self.distribution, Gaussian):
            raise ValueError("an action_mask needs discrete actions")
        if cfg.init is InitKind.orthogonal:
            for part in (self.encoder, self.critic_encoder, self.estimator, self.actor_body, self.critic_body):
                if part is not None:
                    orthogonal_(part)
            orthogonal_(self.actor_head, 0.01)
            orthogonal_(self.critic_head, 1.0)

    @property
    def recurrent(self) -> bool:
        return self.lstm is not None

    def initial_state(self, num_envs: int) -> State | None:
        """State before an episode, None without LSTM."""
        return None if self.lstm is None else self.lstm.initial_state(num_envs)

    def forward(
        self, observation: TensorTree, actions: Tensor, state: State | None = None, begins_TE: Tensor | None = None
    ) -> Evaluation:
        """Of N rows; with an LSTM observations are (T, E, ...), `state` is that before row 0, N = T * E."""
        features, _ = self._features(observation, state, begins_TE)
        features, estimate = self._with_estimate(features)
        error = None
        if estimate is not None and self.critic_encoder is not None:
            error = (estimate.float() - self.critic_encoder(observation)).square().mean(-1)
        out = self._out(features, _flat(observation) if self.recurrent else observation)
        d = self.distribution
        value = self._value(features, observation)
        return Evaluation(d.log_prob(out, actions), d.entropy(out), value, out, error)

    def step(
        self, observation: TensorTree, state: State | None, begins_E: Tensor
    ) -> tuple[Tensor, Tensor | None, State | None]:
        """(E, P) output, (E,) value when it costs little (`value_with_action`), the next state; for acting."""
        if self.recurrent:
            features, state = self._features(_sequence(observation), state, begins_E[None])
        else:
            features, _ = self._with_estimate(self.encoder(observation))
        value = self._value(features, observation) if self.value_with_action else None
        return self._out(features, observation), value, state

    def draw(self, observation: TensorTree, state: State | None, begins_E: Tensor, generator: Generator) -> Drawn:
        """Sampled actions; `generator` lives on the device."""
        out, value, state = self.step(observation, state, begins_E)
        actions = self.distribution.sample(out, generator)
        return Drawn(actions, actions, out, value, state)

    def best(
        self, observation: TensorTree, state: State | None, begins_E: Tensor
    ) -> tuple[Tensor, State | None]:  # fmt: skip
        """The most likely actions, and the next state."""
        out, _, state = self.step(observation, state, begins_E)
        return self.distribution.mode(out), state

    def value(self, observation: TensorTree, state: State | None = None, begins_E: Tensor | None = None) -> Tensor:
        """(B,) float32; with an LSTM of observations that follow `state`."""
        if self.recurrent:
            assert begins_E is not None
            return self._value(self._features(_sequence(observation), state, begins_E[None])[0], observation)
        features = self.encoder(observation) if self.critic_encoder is None else None
        return self._value(features, observation)

    def actor_parameters(self) -> list[nn.Parameter]:
        """Of the parts that the critic does not share."""
        return [p for m in (self.actor_body, self.actor_head, self.distribution) for p in m.parameters()]

    def critic_parameters(self) -> list[nn.Parameter]:
        actor = {id(p) for p in self.actor_parameters()}
        return [p for p in self.parameters() if id(p) not in actor]

    def _features(self, observation: TensorTree, state: State | None, begins: Tensor | None) -> tuple[Tensor, Any]:
        if self.lstm is None:
            return self.encoder(observation), None
        assert state is not None and begins is not None
        flat = self.encoder(_flat(observation))
        features, state = self.lstm(flat.reshape(*begins.shape, -1), state, begins)
        return features.flatten(0, 1), state

    def _with_estimate(self, features: Tensor) -> tuple[Tensor, Tensor | None]:
        """Features of the actor, and the estimate among them; what the policy wants does not train the estimator."""
        if self.estimator is None:
            return features, None
        estimate = self.estimator(features)
        return torch.cat([features, estimate.detach()], -1), estimate

    def _out(self, features: Tensor, observation: TensorTree) -> Tensor:
        out = self.actor_head(self.actor_body(features)).float()
        if not self.masked:
            return out
        assert isinstance(observation, dict)
        return out.masked_fill(observation[ACTION_MASK] == 0, -1e8)

    def _value(self, features: Tensor | None, observation: TensorTree) -> Tensor:
        """`features` of the actor, which a critic with observations of its own does not look at."""
        if self.critic_encoder is not None:
            features = self.critic_encoder(observation)
        assert features is not None
        body = self.actor_body if self.critic_body is None else self.critic_body
        value: Tensor = self.critic_head(body(features))[:, 0].float()
        return value


def _sequence(tree: TensorTree) -> TensorTree:
    """One row of time in front."""
    return tree[None] if isinstance(tree, Tensor) else {k: v[None] for k, v in tree.items()}


def _flat(tree: TensorTree) -> TensorTree:
    """(T, E, ...) -> (T * E, ...)."""
    return tree.flatten(0, 1) if isinstance(tree, Tensor) else {k: v.flatten(0, 1) for k, v in tree.items()}
