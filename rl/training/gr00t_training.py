"""PPO's policy from a configuration, and what GR00T adds to a run: stages, their learning rates, its base.

Parts of the model begin to train one after another (`gr00t.stages`, `gr00t.unfreeze_at`). A stage begins between a
rollout and its update: new parameters get a group of their own in the optimizer, without moments of the past and with a
learning rate that grows, and the log-probabilities of the waiting rollout are computed again by the network that the
update will see.
"""

import dataclasses
import logging
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError
from torch import nn

from rl.algorithms.ppo import make_optimizer
from rl.algorithms.ppo_rollout import Batch
from rl.config import Config, ObservationNorm
from rl.data.rollout import tree_flat, tree_index
from rl.envs.vector import VectorEnv
from rl.models import gr00t_backend, gr00t_checkpoint, gr00t_real, gr00t_state, gr00t_weights
from rl.models.actor_critic import ActorCritic
from rl.models.gr00t import GR00TActorCritic
from rl.training import gr00t_memory

log = logging.getLogger(__name__)
NOT_NOTED = ""  # the base of a best_model.pt that an earlier version wrote
# By how much a decision's log-probability may differ between acting and training: rows go through in other numbers.
LOGP_TOLERANCE = {"float32": 1e-3, "bfloat16": 0.5, "float16": 0.5}


def make_policy(cfg: Config, env: VectorEnv) -> ActorCritic:
    """The network of `ppo.network`, or GR00T (same interface). Raises ValueError for what does not go together."""
    if cfg.gr00t.backend == "none":
        return ActorCritic(env.observation_space, env.action_space, cfg.ppo.network)
    if cfg.ppo.compile or cfg.ppo.network.lstm:
        raise ValueError(
            "gr00t.backend goes neither with ppo.compile nor with ppo.network.lstm; set compile=false, lstm=0"
        )
    try:
        policy = load_gr00t(cfg, env)
    except gr00t_real.BackendMissingError as e:
        if not cfg.gr00t.mlp_fallback:
            raise
        log.warning("!!! NOT GR00T: a small network (ppo.network) takes its place, as gr00t.mlp_fallback asks: %s", e)
        return ActorCritic(env.observation_space, env.action_space, cfg.ppo.network)
    return cast(ActorCritic, policy)


def load_gr00t(cfg: Config, env: VectorEnv) -> GR00TActorCritic:
    """Raises ValueError for a backend that is not installed, a damaged checkpoint and a task that does not fit."""
    g = cfg.gr00t
    gr00t_memory.return_freed_memory()
    robot = folder = told = None
    if g.checkpoint is not None:
        folder = Path(g.checkpoint).expanduser().resolve()  # a relative path would be taken for a name on the hub
        robot = gr00t_checkpoint.read_embodiment(folder, g.backend, g.embodiment)
    if folder is not None and g.state_names is not None:
        layout = gr00t_checkpoint.read_state(folder, g.embodiment)
        told = gr00t_state.map_state(g.state_names, layout, env.observation_space)
    if g.backend == "stub":
        model = gr00t_backend.stub(g.size)
    else:
        try:
            model = gr00t_real.load(g.backend, folder, g.size, g.instruction)
        except (OSError, RuntimeError, SafetensorError) as e:  # the latter two: tensors that do not fit, cut files
            if folder is None:
                raise
            raise ValueError(
                f"gr00t.checkpoint {folder} cannot be read: {e}; give the local directory of a downloaded checkpoint, "
                "whose config.json and *.safetensors belong together"
            ) from e
    if robot is not None and robot.index >= model.embodiments:
        raise ValueError(
            f"gr00t.checkpoint {folder}: the row of {g.embodiment} (embodiment_id.json, or as published) is "
            f"{robot.index}, its weights have {model.embodiments} rows; copy the checkpoint again, or choose another "
            "gr00t.embodiment"
        )
    policy = GR00TActorCritic(model, env.observation_space, env.action_space, g, robot, told)
    seen = ", ".join(camera.name or "picture" for camera in policy.pictures)
    log.info("GR00T sees, in this order: %s", seen or "no camera, but a black picture")
    if folder is not None:
        policy.refer_to(gr00t_weights.fingerprint(folder))
    return policy


def make_policy_optimizer(cfg: Config, policy: ActorCritic) -> torch.optim.Optimizer:
    """One group, or of GR00T what trains now and the value head, each with its learning rate."""
    if not isinstance(policy, GR00TActorCritic):
        return make_optimizer(cfg.ppo, policy.parameters())
    policy.enter(sum(share == 0 for share in cfg.gr00t.unfreeze_at))
    return make_optimizer(
        cfg.ppo,
        [{"params": policy.actor_parameters(), "lr_scale": 1.0},
         {"params": policy.critic_parameters(), "lr_scale": cfg.gr00t.value_lr_scale}],
    )  # fmt: skip


def check_stages(cfg: Config, world_size: int) -> None:
    """Raises ValueError for later stages in several processes, whose gradients would not be averaged."""
    if world_size > 1 and any(share > 0 for share in cfg.gr00t.unfreeze_at):
        raise ValueError("gr00t.unfreeze_at above 0 works in one process; set all shares to 0 for several")


class Stages:
    """Which parts train when; `advance` before every update."""

    def __init__(
        self, cfg: Config, policy: GR00TActorCritic, optimizer: torch.optim.Optimizer, world_size: int
    ) -> None:
        """Raises ValueError for later stages in several processes, whose gradients would not be averaged."""
        check_stages(cfg, world_size)
        self.cfg, self.policy, self.optimizer = cfg.gr00t, policy, optimizer
        self.rows = gr00t_memory.rows_of_an_update(cfg)  # more at once would take more memory than learning does
        self.ages: list[int] = []  # updates of each group that was added
        # With `raw` observations an update normalises them otherwise than acting did, and likelihoods do differ.
        self.unchecked = cfg.ppo.observation_norm is not ObservationNorm.raw
        device = next(policy.parameters()).device
        for line in gr00t_memory.report(policy, cfg, device, world_size).lines():
            log.info("%s", line)

    def advance(self, share: float, batch: Batch) -> Batch:
        """`share` of the run is done; `batch` waits for its update. Begins what is due and returns the batch.

        Raises ValueError where, before the first update of a process, acting and training disagree.
        """
        if self.unchecked:
            check_likelihood(self.policy, batch, self.rows)
            self.unchecked = False
        due = sum(s <= share for s in self.cfg.unfreeze_at)
        begun = list(range(self.policy.stage + 1, due + 1))
        for stage in begun:
            self._begin(stage)
        first = len(self.optimizer.param_groups) - len(self.ages)
        for group, age in zip(self.optimizer.param_groups[first:], self.ages, strict=True):
            group["lr_scale"] = min(1.0, (age + 1) / max(self.cfg.warmup_updates, 1))
        self.ages = [age + 1 for age in self.ages]
        return recomputed(self.policy, batch, self.rows) if begun else batch

    def _begin(self, stage: int) -> None:
        new = self.policy.enter(stage)
        self.optimizer.add_param_group({"params": new, "lr_scale": 0.0})
        self.ages.append(0)
        count = sum(p.numel() for p in new)
        log.info("GR00T: %s begins to train, %d parameters more", self.cfg.stages[stage - 1], count)

    def state_dict(self) -> dict[str, Any]:
        return {"stage": self.policy.stage, "ages": list(self.ages), "base": self.policy.base}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Before the optimizer's own state is loaded; `check_base` comes first."""
        for stage in range(self.policy.stage + 1, state["stage"] + 1):
            self._begin(stage)
        self.ages = list(state["ages"])


def base_of(policy: nn.Module) -> str | None:
    """sha256 of the released weights of which the policy's state dict holds what is trained only; None without any."""
    return policy.base if isinstance(policy, GR00TActorCritic) else None


def noted_base(training: dict[str, Any]) -> str | None:
    """The same of the run whose training_state.pt this is."""
    found: str | None = training.get("gr00t", {}).get("base")
    return found


def check_base(policy: nn.Module, noted: str | None, source: str) -> None:
    """Raises ValueError where the weights in `source` were trained on another base than the policy's.

    `noted`: sha256 of theirs, None for none, NOT_NOTED where the file does not say.
    """
    own = base_of(policy)
    if own == noted or (own is None and noted == NOT_NOTED):
        return
    if noted == NOT_NOTED:
        raise ValueError(
            f"{source} does not say on which GR00T weights it was trained (an earlier version wrote it); name a "
            "checkpoint-N of the run instead"
        )
    if noted is None:
        raise ValueError(f"{source} was trained without released GR00T weights; leave gr00t.checkpoint out")
    folder = policy.cfg.checkpoint if isinstance(policy, GR00TActorCritic) else None
    if own is None:
        raise ValueError(f"{source} was trained on GR00T weights with sha256 {noted}; name them with gr00t.checkpoint")
    raise ValueError(
        f"{source} was trained on GR00T weights with sha256 {noted}, those of gr00t.checkpoint {folder} have {own}; "
        f"put the weights it was trained on back at {folder}"
    )


def check_likelihood(policy: GR00TActorCritic, batch: Batch, size: int) -> None:
    """Raises ValueError where the network gives its own decisions other log-probabilities than when it took them."""
    difference = recomputed(policy, batch, size).logp - batch.logp
    largest, ratio = float(difference.abs().max()), float(difference.exp().mean())
    allowed = LOGP_TOLERANCE[policy.cfg.dtype]
    if not largest <= allowed:
        raise ValueError(
            f"GR00T: likelihoods of acting and training disagree before any update: log-probabilities by up to "
            f"{largest:.1e} (at most {allowed:.0e} with gr00t.dtype={policy.cfg.dtype}), mean ratio {ratio:.6f}; the "
            "model is not the same function twice (dropout, state of its own), so PPO cannot train it"
        )
    log.info("GR00T: acting and training agree on log-probabilities within %.1e, mean ratio %.6f", largest, ratio)


@torch.no_grad()
def recomputed(policy: nn.Module, batch: Batch, size: int) -> Batch:
    """The batch with log-probabilities and distributions of the present network, `size` rows at a time."""
    T, E = batch.logp.shape
    observation, actions = tree_flat(batch.observation), batch.actions.flatten(0, 1)
    logp, out = [], []
    for rows in torch.arange(T * E, device=batch.logp.device).split(size):
        found = policy(tree_index(observation, rows), actions[rows])
        logp.append(found.logp)
        out.append(found.out)
    return dataclasses.replace(batch, logp=torch.cat(logp).view(T, E), out=torch.cat(out).view(T, E, -1))
