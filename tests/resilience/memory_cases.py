"""Memory that runs out on one rank, while the first phase computes gradients."""

import logging
from typing import Any

import torch

from rl.training.optim import guarded_step
from rl.training.parallel_utils import ParallelContext
from tests.resilience import scale_cases

WINDOWS, ROOM, UPDATES = 8, 4, 3


class Kept(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.texts: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.texts.append(record.getMessage())


def room_for_four_on_rank_1(world: ParallelContext, tokenizer: str) -> dict[str, Any]:
    """Updates of a trainer that may take smaller micro-batches, and of one that need not."""
    said = Kept()
    logging.getLogger("rl.training.micro_batches").addHandler(said)
    trainers = {}
    for kind in ("stop", "halve"):
        chance = ("teacher.view_dropout=0.5", "teacher.action_dropout=0.3", "teacher.latent_batch_size=4")
        cfg = scale_cases.config(tokenizer, *chance, f"numbers.on_out_of_memory={kind}")
        trainers[kind] = scale_cases.Trainer(cfg, world, "world_model.latent_head=true")
        trainers[kind].learner.generator.manual_seed(world.rank)
    data, sizes = trainers["halve"].learner.data, []
    whole_batch = data.batch

    def limited(windows: dict[str, torch.Tensor], head_visible: torch.Tensor, known: torch.Tensor | None = None) -> Any:
        sizes.append(len(head_visible))
        if world.rank == 1 and len(head_visible) > ROOM:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return whole_batch(windows, head_visible, known)

    data.batch = limited
    losses: dict[str, list[float]] = {"stop": [], "halve": []}
    for _ in range(UPDATES):
        for kind, trainer in trainers.items():
            learner, model = trainer.learner, trainer.model
            made = learner.gradients(lambda of=learner: of.buffer.sample(WINDOWS, scale_cases.LENGTH, 0, of.generator))
            guarded_step(world, model.optimizer, model.trainable, made.loss, 1.0, "a step", model.heads)
            losses[kind].append(float(made.loss.detach()))
            assert made.samples == WINDOWS * scale_cases.LENGTH
    pairs = zip(*(t.model.policy.parameters() for t in trainers.values()), strict=True)
    world.assert_ranks_equal(trainers["halve"].model.policy, "after halving")
    return {
        "losses": losses, "sizes": sizes, "said": said.texts,
        "apart": max(float((a - b).abs().max()) for a, b in pairs),
        "pieces": trainers["halve"].learner.halving.pieces,
    }  # fmt: skip
