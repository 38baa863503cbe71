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
from rl.training.errors import NumericalError
from rl.training.model_setup import Model, build_world_model
from rl.training.optim import guarded_step
from rl.training.parallel_utils import ParallelContext, parameter_hash
from rl.training.world_model_data import WorldModelData
from rl.training.world_model_update import WorldModelUpdate
from rl.types import EpisodeRecord

STEPS, WINDOWS, LENGTH, EPISODE = 20, 4, 3, 6


def config(tokenizer: str, *more: str) -> Config:
    """Nothing is left to chance: what a rank draws would depend on how many windows it has."""
    return load(
        overrides=[
            f"model.tokenizer_path={tokenizer}", "model.config_file=debug_test", "training.device=cpu",
            "training.num_threads=1", f"training.bptt_length={LENGTH}", f"training.steps_per_episode={EPISODE}",
            "teacher.view_dropout=0", "teacher.action_dropout=0", "teacher.latent_batch_size=0", *more,
        ]
    )  # fmt: skip


class Trainer:
    """The update of phase 1 on made-up episodes."""

    def __init__(self, cfg: Config, ctx: ParallelContext, *architecture: str) -> None:
        fixed = ["world_model.mask_sample_prob=0.0", "world_model.ensemble_heads=0"]
        arch = load_model("debug_test", [*fixed, *architecture])
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
        count = self.cfg.training.gradient_accumulation_steps
        for step in steps:
            total = 0.0
            for micro in range(count):
                with self.ctx.accumulate(self.model.wrapped):
                    loss = self.loss(count * step + micro)
                    self.ctx.backward(loss)
                total += float(loss.detach()) / count
            guarded_step(self.ctx, self.model.optimizer, self.model.trainable, loss, 1.0, "a step")
            losses.append(self.ctx.mean({"loss": total})["loss"])
        return losses

    def state(self) -> dict[str, Any]:
        """As a checkpoint holds it."""
        with self.ctx.whole():
            state = {"model": self.model.policy.state_dict(), "optimizer": self.model.optimizer.state_dict()}
            return copy.deepcopy(self.ctx.gathered(state))

    def load(self, state: dict[str, Any]) -> None:
        policy = self.model.policy
        self.ctx.load_whole(policy, state["model"], lambda weights: policy.load_state_dict(weights) and None)
        self.ctx.load_optimizer(self.model.optimizer, copy.deepcopy(state["optimizer"]))


def _alone(cfg: Config) -> ParallelContext:
    kept = {k: os.environ.pop(k) for k in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE") if k in os.environ}
    ctx = ParallelContext.create(cfg.training)
    os.environ.update(kept)
    return ctx


FSDP = {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}


def _together(cfg: Config, port: int, request: dict[str, str]) -> ParallelContext:
    os.environ |= {"TORCHELASTIC_USE_AGENT_STORE": "False", "MASTER_PORT": str(port), **request}
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
    ctx = _together(cfg, ports[0], {})
    found["ddp"] = Trainer(cfg, ctx).train(range(STEPS))
    ctx.close()
    ctx = _together(cfg, ports[1], FSDP)
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


def compare_deepspeed(
    world: ParallelContext, tokenizer: str, port: int, stage: int, accumulation: int
) -> dict[str, Any]:
    """As `compare`, with DeepSpeed; it keeps its group, so a process can take part in one only."""
    world.close()
    cfg = config(str(Path(tokenizer)), f"training.gradient_accumulation_steps={accumulation}")
    more = range(STEPS, STEPS + 2)
    found: dict[str, Any] = {}
    ctx = _alone(cfg)
    alone = Trainer(cfg, ctx)
    found["alone"] = alone.train(range(STEPS))
    of_one = alone.state()
    found["alone_more"] = alone.train(more)
    ctx.close()
    request = {"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_ZERO_STAGE": str(stage)}
    ctx = _together(cfg, port, request)
    split = Trainer(cfg, ctx)
    found["whole"], found["own"] = _numbers(split)
    fresh = split.state()
    found["fresh"] = fresh["optimizer"]["state"] == {}
    found["split"] = split.train(range(STEPS))
    of_two = split.state()
    found["split_more"] = split.train(more)
    split.load(of_one)
    found["one_to_two"] = split.train(more)
    split.load(fresh)
    found["again"] = split.train(range(STEPS))
    ctx.assert_ranks_equal(split.model.policy, "after a load")
    found["refused"], found["untouched"] = _not_finite_on_rank_1(split)
    ctx.close()
    ctx = _alone(cfg)
    alone = Trainer(cfg, ctx)
    alone.load(of_two)
    found["two_to_one"] = alone.train(more)
    ctx.close()
    found["plain"] = {type(v).__name__ for v in of_two["model"].values()} == {"Tensor"}
    found["keys"] = _shapes(of_two) == _shapes(of_one)
    return found


def _not_finite_on_rank_1(trainer: Trainer) -> tuple[str, bool]:
    """What became of a step with a loss that is not a number on one rank; whether all parameters stayed."""
    policy, ctx = trainer.model.policy, trainer.ctx
    with ctx.whole():
        before = parameter_hash(policy)
    loss = trainer.loss(0) * (float("nan") if ctx.rank == 1 else 1.0)
    ctx.backward(loss)
    try:
        guarded_step(ctx, trainer.model.optimizer, trainer.model.trainable, loss, 1.0, "a step")
        text = "stepped"
    except NumericalError as e:
        text = str(e)
    with ctx.whole():
        return text, parameter_hash(policy) == before


def _numbers(trainer: Trainer) -> tuple[int, int]:
    """Trained numbers of the model, and those that this rank holds between two steps."""
    with trainer.ctx.whole():
        whole = sum(p.numel() for p in trainer.model.policy.parameters() if p.requires_grad)
    return whole, sum(p.numel() for p in trainer.model.policy.parameters() if p.requires_grad)


def _shapes(state: dict[str, Any]) -> Any:
    optimizer = state["optimizer"]
    return (
        {k: (v.dtype, v.shape) for k, v in state["model"].items()},
        {i: {k: (v.dtype, v.shape) for k, v in e.items()} for i, e in optimizer["state"].items()},
        [{k: v for k, v in g.items() if k != "lr"} for g in optimizer["param_groups"]],
    )
