"""GR00T as the actor and critic of PPO, with the interface of `rl.models.actor_critic.ActorCritic`.

A decision is a chunk drawn by flow matching; its first action is executed. One denoising step of it, chosen at random,
draws from a normal distribution (Flow-SDE, f1_vla.flow_likelihood), the others are Euler steps, so the likelihood of a
decision is that of one normal over the executed action's dims, and is computed again exactly from what was stored. The
value comes from the backbone's pooled features, the state and what the task shows the critic alone, in float32; its
gradient stops there.

The model stands still except for the parts whose stage has begun (`enter`), and without dropout. Letters: B rows, Q
actions of a chunk, A action slots of the model, n dims of the environment's action, S state slots.
"""

import math
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, NamedTuple

import gymnasium as gym
import torch
from torch import Generator, Tensor, nn

from f1_vla.config import FlowKind, StochasticSteps
from f1_vla.flow_likelihood import Chain, FlowProcess, chain_moments, normal_log_prob, sample_chain
from rl.config import GR00TConfig
from rl.models.actor_critic import Drawn, Evaluation
from rl.models.gr00t_backend import Context, Gr00tModel, part_of, remove_dropout
from rl.models.gr00t_checkpoint import Embodiment
from rl.models.gr00t_observation import by_name, for_critic, observed
from rl.models.gr00t_state import StateMap
from rl.models.mlp import mlp
from rl.models.recurrent import State
from rl.types import TensorTree

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
LOG_2PI = math.log(2 * math.pi)


class StepDistribution:
    """Of the drawn denoising step: `out` is its mean (n) and log std (1); an action row is a packed decision."""

    def __init__(self, layout: "Packing") -> None:
        self.layout, self.outputs = layout, layout.dims + 1

    def log_prob(self, out: Tensor, actions: Tensor) -> Tensor:
        """(...,)"""
        drawn = self.layout.drawn(actions)
        return normal_log_prob(drawn, out[..., :-1], out[..., -1:].exp()).sum(-1)

    def entropy(self, out: Tensor) -> Tensor:
        return self.layout.dims * (out[..., -1] + 0.5 * (1 + LOG_2PI))

    def scale(self) -> Tensor:
        return torch.empty(0)

    def kl(self, old_out: Tensor, old_scale: Tensor, out: Tensor) -> Tensor:
        old, new = old_out[..., -1:].exp(), out[..., -1:].exp()
        distance = (old_out[..., :-1] - out[..., :-1]) / new
        ratio = (old / new).square()
        return 0.5 * (ratio + distance.square() - 1 - ratio.log()).sum(-1)


class Packing(NamedTuple):
    """A decision as one float32 row: x before the drawn step (Q * A), what was drawn (n), the step's index, the action
    that was executed (n)."""

    chunk: int  # Q
    slots: int  # A
    dims: int  # n

    @property
    def width(self) -> int:
        return self.chunk * self.slots + 2 * self.dims + 1

    def pack(self, before: Tensor, drawn: Tensor, index: Tensor, executed: Tensor) -> Tensor:
        return torch.cat([before.flatten(1), drawn, index.float()[:, None], executed], -1)

    def before(self, row: Tensor) -> Tensor:
        return row[:, : self.chunk * self.slots].unflatten(1, (self.chunk, self.slots))

    def drawn(self, row: Tensor) -> Tensor:
        start = self.chunk * self.slots
        return row[..., start : start + self.dims]

    def step(self, row: Tensor) -> Tensor:
        return row[:, -self.dims - 1].long()


class GR00TActorCritic(nn.Module):
    """Everything that is trained is reached through `forward`."""

    recurrent = False
    value_with_action = True
    mask_QA: Tensor
    real_A: Tensor
    slots: Tensor
    low: Tensor | None
    high: Tensor | None

    def __init__(
        self, model: Gr00tModel, observation_space: gym.Space, action_space: gym.Space, cfg: GR00TConfig,
        robot: Embodiment | None = None, state_map: StateMap | None = None,
    ) -> None:  # fmt: skip
        """`robot`: of a checkpoint; `state_map`: what `gr00t.state_names` says. Raises ValueError for spaces, names and
        sizes that do not fit the model."""
        super().__init__()
        self.cfg, self.model, self.observation_space = cfg, model, observation_space
        self.vectors, self.pictures, width = observed(observation_space)
        self.privileged, more = for_critic(observation_space)
        assert (state_map is None) == (cfg.state_names is None)
        self.state_map = state_map
        check_room(model.state_slots, width, state_map)
        self.state_dims, self.critic_dims = width, width + more
        if not isinstance(action_space, gym.spaces.Box) or len(action_space.shape) != 1:
            raise ValueError(f"GR00T needs continuous actions (a Box of one dimension), this task has {action_space}")
        slots = action_slots(action_space.shape[0], model.action_slots, cfg.action_names, robot)
        self.register_buffer("slots", slots, persistent=False)
        dims = len(slots)
        self.mix: nn.Linear | None = None  # model slots -> environment dims, where names do not say how
        if cfg.action_names is None:
            self.mix = nn.Linear(model.action_slots, dims)
            with torch.no_grad():
                self.mix.weight.copy_(torch.eye(model.action_slots)[slots])
                self.mix.bias.zero_()
        self.embodiment = 0 if robot is None else robot.index
        self.register_buffer("low", None if robot is None or cfg.action_names is None else robot.low[slots])
        self.register_buffer("high", None if robot is None or cfg.action_names is None else robot.high[slots])
        mask = torch.zeros(model.horizon, model.action_slots, dtype=torch.bool)
        mask[0, slots] = True
        real = torch.zeros(model.action_slots, dtype=torch.bool)
        real[slots] = True
        self.register_buffer("mask_QA", mask, persistent=False)
        self.register_buffer("real_A", real, persistent=False)
        self.process = FlowProcess(FlowKind.sde, cfg.denoise_steps, cfg.noise_level, StochasticSteps.one)
        self.layout = Packing(model.horizon, model.action_slots, dims)
        self.distribution = StepDistribution(self.layout)
        self.value_norm = nn.LayerNorm(model.features)
        self.value_head = mlp([model.features + self.critic_dims, *cfg.value_hidden, 1], "elu", activate_last=False)
        self.stage = 0
        self.base: str | None = None  # of which released checkpoint this is made
        prepare(model, cfg)

    # --- training ------------------------------------------------------------------------------------------------

    def forward(
        self, observation: TensorTree, actions: Tensor, state: State | None = None, begins: Tensor | None = None
    ) -> Evaluation:
        """Of B stored decisions (`Packing`); float32."""
        seen, proprio = self._look(observation)
        out = self._out(seen, proprio, self.layout.before(actions), self.layout.step(actions))
        d = self.distribution
        return Evaluation(d.log_prob(out, actions), d.entropy(out), self._value(observation, seen), out)

    def _out(self, seen: Context, proprio: Tensor, before: Tensor, index: Tensor) -> Tensor:
        """(B, n + 1) mean and log std of the drawn step."""
        chain = Chain(before[:, None].expand(-1, self.process.num_steps + 1, -1, -1), index[:, None])
        ((mean, std),) = chain_moments(self.process, chain, self._velocity(seen, proprio))
        return torch.cat([mean[:, 0].index_select(-1, self.slots), std[:, 0].log()], -1)

    def _look(self, observation: TensorTree) -> tuple[Context, Tensor]:
        """What the model sees (refined), and the state (B, S), zero where nothing is told."""
        parts = by_name(observation)
        vector = self._vector(parts)
        if self.state_map is None:
            proprio = nn.functional.pad(vector, (0, self.model.state_slots - vector.shape[1]))
        else:
            proprio = self.state_map(vector, self.model.state_slots)
        cameras = [camera.of(parts) for camera in self.pictures]
        with self._autocast(vector.device):
            seen = self.model.refine(self.model.encode(cameras, vector.device))
        return seen.expand(len(vector)), proprio

    def _vector(self, parts: dict[str, Tensor]) -> Tensor:
        """(B, numbers that the actor is shown)"""
        return torch.cat([parts[n].flatten(1).float() for n in self.vectors], -1)

    def _velocity(self, seen: Context, proprio: Tensor) -> Callable[[Tensor, Tensor], Tensor]:
        robot = torch.full((len(proprio),), self.embodiment, device=proprio.device)
        with self._autocast(proprio.device):
            embedded = self.model.embed_state(proprio, robot)

        def velocity(x: Tensor, time: Tensor) -> Tensor:
            with self._autocast(x.device):
                v = self.model.velocity(seen, embedded, x, time, robot)
            if self.mix is None:
                return v
            with torch.autocast(x.device.type, enabled=False):  # likelihoods stay float32 whatever training's precision
                return v.index_copy(-1, self.slots, self.mix(v))

        return velocity

    def _value(self, observation: TensorTree, seen: Context) -> Tensor:
        parts = by_name(observation)
        vector, hidden = self._vector(parts), [parts[n].flatten(1).float() for n in self.privileged]
        with torch.autocast(vector.device.type, enabled=False):
            pooled = self.value_norm(seen.pooled().detach())
            value: Tensor = self.value_head(torch.cat([pooled, vector, *hidden], -1))
        return value[:, 0]

    def _autocast(self, device: torch.device) -> AbstractContextManager[Any]:
        dtype = DTYPES[self.cfg.dtype]
        return torch.autocast(device.type, dtype=dtype, enabled=dtype is not torch.float32)

    # --- acting --------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def draw(
        self, observation: TensorTree, state: State | None, begins: Tensor, generator: Generator
    ) -> Drawn:  # fmt: skip
        """One decision a row."""
        seen, proprio = self._look(observation)
        B, K, device = len(proprio), self.process.num_steps, proprio.device
        noise = torch.randn(B, K + 1, self.layout.chunk, self.layout.slots, generator=generator, device=device)
        noise[:, 0] *= self.cfg.start_noise
        index = torch.randint(K, (B, 1), generator=generator, device=device)
        velocity = self._velocity(seen, proprio)
        chain, _ = sample_chain(self.process, noise, index, self.mask_QA, self.real_A, velocity)
        rows = torch.arange(B, device=device)
        before, after = chain.x[rows, index[:, 0]], chain.x[rows, index[:, 0] + 1]
        executed = self._units(chain.actions[:, 0].index_select(-1, self.slots))
        kept = self.layout.pack(before, after[:, 0].index_select(-1, self.slots), index[:, 0], executed)
        out = self._out(seen, proprio, before, index[:, 0])
        return Drawn(kept, executed, out, self._value(observation, seen), None)

    @torch.no_grad()
    def best(self, observation: TensorTree, state: State | None, begins: Tensor) -> tuple[Tensor, State | None]:
        """The chunk that begins at the middle of the noise, without any; its first action (B, n)."""
        seen, proprio = self._look(observation)
        noise = proprio.new_zeros(len(proprio), self.process.num_steps + 1, self.layout.chunk, self.layout.slots)
        none = torch.full((len(proprio), 1), -1, device=proprio.device)
        velocity = self._velocity(seen, proprio)
        chain, _ = sample_chain(self.process, noise, none, self.mask_QA, self.real_A, velocity)
        return self._units(chain.actions[:, 0].index_select(-1, self.slots)), None

    def _units(self, actions: Tensor) -> Tensor:
        """From the model's [-1, 1] to the units of the checkpoint's robot, where names tie the two."""
        if self.low is None or self.high is None:
            return actions
        return self.low + 0.5 * (actions + 1) * (self.high - self.low)

    def value(self, observation: TensorTree, state: State | None = None, begins_E: Tensor | None = None) -> Tensor:
        """(B,) float32."""
        return self._value(observation, self._look(observation)[0])

    def initial_state(self, num_envs: int) -> State | None:
        return None

    # --- parts ---------------------------------------------------------------------------------------------------

    def refer_to(self, base: str) -> None:
        """From now on the state dict leaves out what no stage trains: it is that of the checkpoint `base` (sha256)."""
        self.base = base
        kept = {id(p) for stage in self.cfg.stages for p in trainable_of(self.model, stage, self.cfg)}
        named = self.model.named_parameters(remove_duplicate=False)  # a tied weight has two names
        trained = {n for n, p in named if id(p) in kept}
        fixed = [f"model.{n}" for n in self.model.state_dict() if n not in trained]

        def leave_out(module: nn.Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
            for name in fixed:
                state.pop(prefix + name, None)

        def put_back(module: nn.Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
            own = self.model.state_dict()
            state |= {prefix + n: own[n.removeprefix("model.")] for n in fixed}

        self.register_state_dict_post_hook(leave_out)
        self.register_load_state_dict_pre_hook(put_back)

    def enter(self, stage: int) -> list[nn.Parameter]:
        """Lets the parts of the first `stage` stages train; returns the parameters that are new."""
        new = []
        for name in self.cfg.stages[self.stage : stage]:
            new += trainable_of(self.model, name, self.cfg)
        for p in new:
            p.requires_grad_(True)
        self.stage = max(self.stage, stage)
        return new

    def actor_parameters(self) -> list[nn.Parameter]:
        """Trainable ones."""
        critic = {id(p) for p in self.critic_parameters()}
        return [p for p in self.parameters() if p.requires_grad and id(p) not in critic]

    def critic_parameters(self) -> list[nn.Parameter]:
        return [*self.value_norm.parameters(), *self.value_head.parameters()]

    def train(self, mode: bool = True) -> "GR00TActorCritic":
        """The model itself stays in evaluation mode: its likelihood must not depend on the mode."""
        super().train(mode)
        self.model.eval()
        return self


def prepare(model: Gr00tModel, cfg: GR00TConfig) -> None:
    """Freezes everything, removes dropout, adds adapters; parts that some stage trains are float32, the rest as
    configured."""
    remove_dropout(model)
    model.eval().requires_grad_(False)
    if cfg.lora_rank and "dit" in cfg.stages:
        add_lora(model, cfg)
    later = {id(p) for stage in cfg.stages for p in trainable_of(model, stage, cfg)}
    for p in model.parameters():
        half = id(p) not in later and p.dim() >= 2  # norms and biases cost nothing, and norms need float32 on a CPU
        p.data = p.data.to(DTYPES[cfg.dtype]) if half else p.data.float()


def trainable_of(model: Gr00tModel, stage: str, cfg: GR00TConfig) -> list[nn.Parameter]:
    """What a stage trains: its part; of `dit` the adapters where there are some; of `backbone` the top layers."""
    named = [(n, p) for n, p in model.named_parameters() if part_of(n) == stage]
    if stage == "dit" and cfg.lora_rank:
        return [p for n, p in named if ".lora_" in n]
    if stage == "backbone":
        layers = language_layers(model)[-cfg.backbone_layers :]
        return [p for layer in layers for p in layer.parameters()]
    return [p for _, p in named]


def language_layers(model: Gr00tModel) -> Any:
    """Layers of the language model, whatever the release calls it."""
    backbone: Any = model.model.backbone
    if hasattr(backbone, "eagle_model"):
        return backbone.eagle_model.language_model.model.layers
    return backbone.language_model.layers if hasattr(backbone, "language_model") else backbone.layers


def add_lora(model: Gr00tModel, cfg: GR00TConfig) -> None:
    """Adapters in the attention of the diffusion transformer, in place."""
    from peft import LoraConfig, inject_adapter_in_model

    inject_adapter_in_model(
        LoraConfig(r=cfg.lora_rank, lora_alpha=cfg.lora_alpha, bias="none",
                   target_modules=r".*action_head\.model\..*\.(to_q|to_k|to_v|to_out\.0)"),
        model,
    )  # fmt: skip
    model.requires_grad_(False)


def check_room(slots: int, width: int, state_map: StateMap | None) -> None:
    """Raises ValueError where the state encoder has fewer `slots` than it would be told numbers."""
    if state_map is None and width > slots:
        raise ValueError(
            f"the observation has {width} numbers, GR00T's state room for {slots}; choose another task (or, with "
            "random weights, gr00t.size=n1.7)"
        )
    if state_map is not None and state_map.size > slots:
        raise ValueError(
            f"gr00t.checkpoint: statistics.json has {state_map.size} numbers of the state, its weights room for "
            f"{slots}; copy the checkpoint again"
        )


def action_slots(dims: int, model_slots: int, names: list[str] | None, robot: Embodiment | None) -> Tensor:
    """Slot of the model for each action of the environment, int64 (n,).

    Raises ValueError where there is none.
    """
    if names is None:
        if dims > model_slots:
            raise ValueError(
                f"the task has {dims} actions and the model room for {model_slots}; choose another task (or, with "
                "random weights, gr00t.size=n1.7)"
            )
        return torch.arange(dims)
    if robot is None:
        raise ValueError("gr00t.action_names needs gr00t.checkpoint, whose actions have names; leave it out")
    if len(names) != dims:
        raise ValueError(f"gr00t.action_names has {len(names)} names, the task {dims} actions; give one for each")
    unknown = [n for n in names if n not in robot.action_names]
    if unknown or len(set(names)) < len(names):
        raise ValueError(
            f"gr00t.action_names: {', '.join(unknown) or 'a name'} {'do not exist' if unknown else 'appears twice'}; "
            f"the checkpoint has {', '.join(robot.action_names)}. Leave it out for a learned linear map"
        )
    relative = [n for n in names if n in robot.relative]
    if relative:
        raise ValueError(
            f"gr00t.action_names: {', '.join(relative)} count from the robot's state in this checkpoint, which is not "
            "supported; name others, or leave it out for a learned linear map"
        )
    slots = torch.tensor([robot.action_names.index(n) for n in names])
    fixed = [n for n, i in zip(names, slots.tolist(), strict=True) if robot.low[i] == robot.high[i]]
    if fixed:
        raise ValueError(
            f"gr00t.action_names: {', '.join(fixed)} never moved in the data of this checkpoint (lowest and highest "
            "are equal), so nothing gives it a scale; name others, or leave it out for a learned linear map"
        )
    return slots
