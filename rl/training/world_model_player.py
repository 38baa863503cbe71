"""The world model as a player of phase 3: its role, optimizer, schedule, and the way back when it forgets."""

import logging
import math
from dataclasses import replace
from typing import Any

import torch

from f1_vla.ensemble import mean_over_scales
from f1_vla.lora import Role
from f1_vla.policy import F1Policy
from rl.config import Config, FreezeConfig
from rl.data.adversarial_replay import AdversarialReplay, MixedWindows, Source
from rl.data.episode_buffer import WindowIndex
from rl.training.model_setup import Model, freeze_for_world_model, uses_lora
from rl.training.optim import guarded_step, setup_optimizer, setup_scheduler
from rl.training.parallel_utils import ParallelContext
from rl.training.tensor_swap import Version, on_device_of, put, taken, trained
from rl.training.world_model_data import WorldModelData
from rl.training.world_model_update import WorldModelUpdate

log = logging.getLogger(__name__)


def enable_world_model(policy: F1Policy, freeze: FreezeConfig, lora: bool) -> None:
    """requires_grad as in phase 1, on a policy that has the adapters of both roles already."""
    freeze_for_world_model(policy, freeze, lora)
    for name, p in policy.named_parameters():
        if ".lora_" in name:
            p.requires_grad_(f".{Role.world_model.value}." in name)
        elif lora and name.startswith(("trunk.und.", "trunk.gen.")):
            p.requires_grad_(False)


def build_role(cfg: Config, policy: F1Policy, ctx: ParallelContext) -> Model:
    """Collective. Wraps the policy a second time, for what the world model trains. The explorer's role was wrapped
    before: each wrapper reduces the gradients of its own parameters only, and no parameter has two roles.

    The vision tower stays frozen, because both players read its stored outputs.
    """
    a, t, lora = cfg.adversarial, cfg.training, uses_lora(cfg)
    explorer = [p for p in policy.parameters() if p.requires_grad]
    enable_world_model(policy, replace(cfg.teacher.freeze, freeze_vision_encoder=True), lora)
    assert not any(p.requires_grad for p in explorer), "a parameter has both roles"
    optimizer = setup_optimizer(policy, a.wm_learning_rate, t.weight_decay, t.memory_lr_scale)
    ensemble = policy.world_model.ensemble
    heads = [] if ensemble is None else [p for p in ensemble.parameters() if p.requires_grad]
    trainable = [p for p in policy.parameters() if p.requires_grad and all(p is not h for h in heads)]
    wrapped, prepared = ctx.prepare(policy, optimizer)
    return Model(policy, wrapped, prepared, trainable, lora, heads)


class WorldModelPlayer:
    def __init__(
        self, cfg: Config, model: Model, data: WorldModelData, replay: AdversarialReplay, ctx: ParallelContext,
        generator: torch.Generator,
    ) -> None:  # fmt: skip
        """model: of `build_role`, whose requires_grad is still that of the role. generator: draws windows."""
        a = cfg.adversarial
        self.cfg, self.model, self.replay, self.ctx, self.generator = cfg, model, replay, ctx, generator
        self.parameters = trained(model.policy)
        self.learner = WorldModelUpdate(cfg, model, data, replay.buffer, ctx, generator, replay.sample)
        horizon = a.schedule_iterations or a.total_iterations
        self.schedule = setup_scheduler(model.optimizer, "cosine", horizon, a.wm_min_learning_rate, a.wm_warmup_updates)
        self.updates = 0
        self.rollbacks = 0
        self.best = math.inf  # loss on the random suite
        self.good: Version = {}  # weights of the newest evaluation that passed, and their optimizer
        self.good_optimizer: dict[str, Any] = {}
        self._losses: dict[Source, list[tuple[float, float]]] = {}

    def update(self, progress: float) -> dict[str, float]:
        """Collective. One optimizer step on the mixture."""
        lr = self.schedule.set(progress, self.updates) * self._brake()
        self._losses = {s: [] for s in Source}
        made = self.learner.gradients(self._sample, self._seen)
        norm = guarded_step(
            self.ctx, self.model.optimizer, self.model.trainable, made.loss, self.cfg.adversarial.wm_max_grad_norm,
            f"world-model update {self.updates}", self.model.heads,
        )  # fmt: skip
        self.updates += 1
        return self.ctx.mean(made.line) | self._by_source() | {"grad_norm": norm, "learning_rate": lr}

    def _brake(self) -> float:
        """Every rollback halves the learning rate: the same steps again would lead to the same place."""
        factor = 0.5**self.rollbacks
        for group in self.model.optimizer.param_groups:
            group["lr"] = group["lr"] * factor
        return factor

    def _sample(self) -> MixedWindows:
        t = self.cfg.training
        if t.sequential_training:
            return self.replay.sample(t.batch_size, t.bptt_length, self.cfg.teacher.burn_in, self.generator)
        return self.replay.sample(t.batch_size * t.bptt_length, 1, 0, self.generator)

    def _seen(self, where: WindowIndex, out: dict[str, Any]) -> None:
        """Newest losses into the priorities, and by source into the metrics, corrected for how windows were drawn."""
        assert isinstance(where, MixedWindows)
        policy = self.model.policy
        sizes = policy.world_model.scale_sizes[: policy.cfg.world_model.num_resolutions]
        loss_BT = mean_over_scales(out["nll"], sizes).float().cpu()
        self.replay.record(where, loss_BT)
        for source, weight, loss in zip(where.source, where.importance, loss_BT.mean(1).tolist(), strict=True):
            self._losses[source].append((weight, loss))

    def _by_source(self) -> dict[str, float]:
        """Collective. Mean loss of the windows of each source that any rank has drawn (self-normalised weights)."""
        sums = torch.zeros(len(Source), 2, dtype=torch.float64)
        for i, source in enumerate(Source):
            for weight, loss in self._losses[source]:
                sums[i] += torch.tensor([weight, weight * loss], dtype=torch.float64)
        sums = torch.stack([torch.tensor(x) for x in self.ctx.gather_objects(sums.tolist())]).sum(0)
        return {f"loss_{s.value}": float(v / w) for s, (w, v) in zip(Source, sums, strict=True) if w > 0}

    # --- the way back ----------------------------------------------------------------------------------------------

    def judge(self, random_loss: float) -> bool:
        """Keeps the present weights as good, or goes back to the last good ones; True when it went back.

        random_loss: on the random suite, equal on all ranks.
        """
        limit = self.best * (1 + self.cfg.adversarial.held_out.max_regression)
        if math.isfinite(self.best) and not random_loss <= limit:
            self.rollbacks += 1
            log.warning(
                "loss on the random suite is %.4f, more than %.0f %% over its best %.4f: the world model goes back to "
                "the last good weights, learning rate halved (rollback %d)",
                random_loss, 100 * self.cfg.adversarial.held_out.max_regression, self.best, self.rollbacks,
            )  # fmt: skip
            put(self.parameters, self.good)
            self.model.optimizer.load_state_dict(_copied(self.good_optimizer))
            return True
        self.best = min(self.best, random_loss)
        self.good = taken(self.parameters)
        self.good_optimizer = _copied(self.model.optimizer.state_dict())
        return False

    # --- checkpoints -----------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Plain data, equal on all ranks."""
        return {
            "optimizer": self.model.optimizer.state_dict(), "updates": self.updates, "rollbacks": self.rollbacks,
            "best": self.best, "good": dict(self.good), "good_optimizer": self.good_optimizer,
        }  # fmt: skip

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.model.optimizer.load_state_dict(state["optimizer"])
        self.updates, self.rollbacks, self.best = state["updates"], state["rollbacks"], state["best"]
        self.good = on_device_of(self.parameters, state["good"]) if state["good"] else {}
        self.good_optimizer = state["good_optimizer"]


def _copied(value: Any) -> Any:
    """A deep copy of an optimizer's state: load_state_dict would let the next steps write into the given tensors."""
    if isinstance(value, torch.Tensor):
        return value.detach().clone()
    if isinstance(value, dict):
        return {k: _copied(v) for k, v in value.items()}
    if isinstance(value, list):
        return [_copied(v) for v in value]
    return value
