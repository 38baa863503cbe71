"""The first phase on two ranks, copied and split, against one process that sees the whole batch."""

import copy
import os
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rl.config import Config, load, load_model
from rl.data.episode_buffer import EpisodeBuffer, WindowIndex
from rl.normalizers import Normalizer
from rl.training.model_setup import Model, build_world_model
from rl.training.optim import guarded_step
from rl.training.parallel_utils import ParallelContext
from rl.training.world_model_data import WorldModelData
from rl.training.world_model_update import WorldModelUpdate
from rl.types import EpisodeRecord

STEPS, WINDOWS, LENGTH, EPISODE = 20, 4, 3, 6


def config(tokenizer: str) -> Config:
    """Nothing is left to chance: what a rank draws would depend on how many windows it has."""
    return load(
        overrides=[
            f"model.tokenizer_path={tokenizer}", "model.config_file=debug_test", "training.device=cpu",
            "training.num_threads=1", f"training.bptt_length={LENGTH}", f"training.steps_per_episode={EPISODE}",
            "teacher.view_dropout=0", "teacher.action_dropout=0", "teacher.latent_batch_size=0",
        ]
    )  # fmt: skip


class Trainer:
    """The update of phase 1 on made-up episodes."""

    def __init__(self, cfg: Config, ctx: ParallelContext) -> None:
        arch = load_model("debug_test", ["world_model.mask_sample_prob=0.0", "world_model.ensemble_heads=0"])
        self.cfg, self.ctx = cfg, ctx
        self.model: Model = build_world_model(cfg, arch, cfg.teacher.freeze, ctx)
        states = Normalizer(torch.ones(32, dtype=torch.bool))
        states.update(torch.randn(50, 32, generator=torch.Generator().manual_seed(0)))
        data = WorldModelData(self.model.policy, states, cfg.environment.instruction, True)
        buffer = EpisodeBuffer(4, arch.n_obs_img_steps, arch.obs_img_stride)
        rng = np.random.default_rng(0)
        for i in range(4):
            pictures = [rng.integers(0, 255, (EPISODE + 1, 64, 64, 3), dtype=np.uint8) for _ in range(3)]
            numbers = [rng.normal(size=(n, 32)).astype(np.float32) for n in (EPISODE + 1, EPISODE)]
            buffer.add(data.encode(EpisodeRecord(*pictures, *numbers, 0, i), i))
        self.learner = WorldModelUpdate(cfg, self.model, data, buffer, ctx, torch.Generator().manual_seed(0))
        # Each rank would refresh the windows it has, the whole batch all of them.
        self.learner._refresh_memory = lambda *_: None  # type: ignore[method-assign]
        self.model.wrapped.train()

    def loss(self, step: int) -> torch.Tensor:
        """Of this rank's share of the windows of that step."""
        rng = np.random.default_rng(step)
        episodes, starts = rng.integers(0, 4, WINDOWS).tolist(), rng.integers(0, EPISODE - LENGTH, WINDOWS).tolist()
        r, n = self.ctx.rank, self.ctx.world_size
        where = WindowIndex(episodes[r::n], starts[r::n], LENGTH, 0)
        return self.learner.forward(where)[1]

    def train(self, steps: range) -> list[float]:
        """Losses of the whole batch."""
        losses = []
        for step in steps:
            loss = self.loss(step)
            self.ctx.backward(loss)
            guarded_step(self.ctx, self.model.optimizer, self.model.trainable, loss, 1.0, "a step")
            losses.append(self.ctx.mean({"loss": float(loss.detach())})["loss"])
        return losses

    def state(self) -> dict[str, Any]:
        """As a checkpoint holds it."""
        state = {"model": self.model.policy.state_dict(), "optimizer": self.model.optimizer.state_dict()}
        return copy.deepcopy(self.ctx.gathered(state))

    def load(self, state: dict[str, Any]) -> None:
        self.model.policy.load_state_dict(self.ctx.split_like(self.model.policy, state["model"]))
        self.ctx.load_optimizer(self.model.optimizer, copy.deepcopy(state["optimizer"]))


def _alone(cfg: Config) -> ParallelContext:
    kept = {k: os.environ.pop(k) for k in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE") if k in os.environ}
    ctx = ParallelContext.create(cfg.training)
    os.environ.update(kept)
    return ctx


def _together(cfg: Config, port: int, sharded: bool) -> ParallelContext:
    os.environ |= {"TORCHELASTIC_USE_AGENT_STORE": "False", "MASTER_PORT": str(port)}
    if sharded:
        os.environ |= {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}
    return ParallelContext.create(cfg.training, timeout_s=60)


def compare(world: ParallelContext, tokenizer: str, ports: list[int]) -> dict[str, Any]:
    """Losses of 20 steps alone, copied (DDP) and split (FSDP2); then two more steps after a change of ranks."""
    world.close()
    cfg, found = config(str(Path(tokenizer))), {}
    more = range(STEPS, STEPS + 2)
    ctx = _alone(cfg)
    alone = Trainer(cfg, ctx)
    found["alone"] = alone.train(range(STEPS))
    of_one = alone.state()
    found["alone_more"] = alone.train(more)
    ctx.close()
    ctx = _together(cfg, ports[0], False)
    found["ddp"] = Trainer(cfg, ctx).train(range(STEPS))
    ctx.close()
    ctx = _together(cfg, ports[1], True)
    split = Trainer(cfg, ctx)
    found["split"] = sum(type(p).__name__ == "DTensor" for p in split.model.policy.parameters())
    found["fsdp"] = split.train(range(STEPS))
    of_two = split.state()
    found["fsdp_more"] = split.train(more)
    split.load(of_one)  # one process -> two that split
    found["one_to_two"] = split.train(more)
    split.ctx.assert_ranks_equal(split.model.policy, "after a load")
    ctx.close()
    ctx = _alone(cfg)
    alone = Trainer(cfg, ctx)
    alone.load(of_two)  # two that split -> one process
    found["two_to_one"] = alone.train(more)
    ctx.close()
    found["plain"] = all(type(v) is torch.Tensor for v in of_two["model"].values())
    return found
