"""Speed of this model against the published formulation: `python -m benchmarks.f1_speed [--json FILE] [--seed N]`.

Same weights, same batch, float32. Measured are a window of teacher steps (forward and backward through the memory, und
expert frozen) and the sampling of one action chunk. The published formulation (benchmarks/published_f1.py) encodes all
pictures of a step again and attends eagerly under dense masks; here every picture is encoded once, when it arrives.
The medium preset has the published token layout (two 224 px cameras, ten scales to 16 x 16, chunk of 50) and tokenizer;
width 512 and 6 layers.
"""

import argparse
import json
import os
import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.published_f1 import Inputs, PublishedF1
from f1_vla.batch import F1Batch, FrameFeatures
from f1_vla.builders import build_policy
from f1_vla.config import (
    ExpertConfig,
    F1Config,
    MemoryConfig,
    TokenizerConfig,
    TrunkConfig,
    VisionConfig,
    WorldModelConfig,
)
from f1_vla.policy import F1Policy
from f1_vla.rollout import Sampling
from f1_vla.trainable import set_policy_requires_grad

SCALES = [1, 2, 3, 4, 5, 6, 8, 10, 13, 16]


def medium(tokenizer_channels: int, backend: str) -> F1Config:
    """Width 512, 6 layers, published token layout; nothing but the memory beyond the published model."""
    expert = ExpertConfig(512, 1536)
    return F1Config(
        trunk=TrunkConfig(6, 8, 1, 64, expert, expert, expert, text_vocab_size=1024, attention_backend=backend),
        vision=VisionConfig(224, 14, 384, 1536, 6, 6),
        tokenizer=TokenizerConfig(256, SCALES, 4096, 32, tokenizer_channels, [1, 1, 2, 2, 4], 2, 3, 32),
        memory=MemoryConfig(memory_hidden=512, memory_num_layers=1),
        world_model=WorldModelConfig(
            num_resolutions=len(SCALES), mask_sample_prob=0.0, action_conditioning=False, state_conditioning=False
        ),
        chunk_size=50,
        tokenizer_max_length=48,
    )


class Pictures:
    """A window of T steps of B rows: T + O world-model frames and T pairs of camera pictures, random, in [0, 1]."""

    def __init__(self, cfg: F1Config, batch: int, steps: int) -> None:
        self.cfg, self.B, self.T, self.O = cfg, batch, steps, cfg.n_obs_img_steps
        side, camera = cfg.tokenizer.image_size, cfg.vision.image_size
        self.frames = torch.rand(batch, steps + self.O, 3, side, side)
        self.cameras = torch.rand(batch, steps, 2, 3, camera, camera)
        self.words = torch.randint(3, 1000, (batch, cfg.tokenizer_max_length))
        self.state = torch.randn(batch, steps, cfg.max_state_dim)

    def encode(self, policy: F1Policy) -> FrameFeatures:
        """Every picture once: what a run has done before it trains."""
        features = policy.encode_frames(self.frames.flatten(0, 1))
        with torch.no_grad():
            features.vision = policy.vision.features(self.cameras.flatten(0, 2))
        return features

    def batch(self, features: FrameFeatures) -> F1Batch:
        B, T, O = self.B, self.T, self.O  # noqa: E741
        ids = features.ids.unflatten(0, (B, -1))
        slots = torch.arange(T)[:, None] + torch.arange(O)
        yes = torch.ones(B, T, O, dtype=torch.bool)
        assert features.vision is not None
        return F1Batch(
            lang_tokens=self.words,
            lang_masks=torch.ones_like(self.words, dtype=torch.bool),
            camera_mask=torch.ones(B, T, 2, dtype=torch.bool),
            history_ids=ids[:, slots],
            history_mask=yes,
            actions=torch.zeros(B, T, O, self.cfg.max_action_dim),
            action_known=yes,
            state=self.state,
            vision=features.vision.unflatten(0, (B, T, 2)),
            target_ids=ids[:, O:],
        )

    def published(self, step: int, shift: Tensor, with_target: bool = True) -> Inputs:
        yes = torch.ones(self.B, dtype=torch.bool)
        frames = self.frames[:, step : step + self.O + with_target] * 2 - 1
        cameras = [self.cameras[:, step, i] * 2 - 1 for i in range(2)]
        words = (self.words, torch.ones_like(self.words, dtype=torch.bool))
        return Inputs(cameras, [yes, yes], *words, frames, self.state[:, step], shift)


def published_window(policy: F1Policy, f1: PublishedF1, pictures: Pictures) -> Tensor:
    """Mean loss over the window, the memory carried through."""
    assert policy.memory is not None
    h, losses = policy.initial_memory_state(pictures.B), []
    for t in range(pictures.T):
        out = f1.teacher_forced(pictures.published(t, policy.memory.read(h)))
        losses.append(out["loss"])
        h = policy.memory.write(h, out["pooled"], torch.zeros(pictures.B, 32), pictures.state[:, t])
    return torch.stack(losses).mean() + 0.0 * h.sum()


def timed(run: Callable[[], Any], repeats: int) -> tuple[float, Any]:
    """(shortest seconds, last result) of `repeats` runs."""
    best, result = float("inf"), None
    for _ in range(repeats):
        start = time.perf_counter()
        result = run()
        best = min(best, time.perf_counter() - start)
    return best, result


def close(name: str, a: Tensor, b: Tensor) -> None:
    """Both formulations must compute the same thing."""
    error = ((a - b).norm() / b.norm()).item()
    if not error < 1e-3:
        raise SystemExit(f"the formulations disagree on {name}: relative difference {error:.1e}")


def measure_window(policy: F1Policy, f1: PublishedF1, pictures: Pictures, repeats: int) -> dict[str, float]:
    probe = policy.trunk.gen.layers[0].self_attn.k_proj.weight

    def backward(loss: Tensor) -> tuple[Tensor, Tensor]:
        policy.zero_grad(set_to_none=True)
        loss.backward()
        assert probe.grad is not None
        return loss.detach(), probe.grad.clone()

    encode, features = timed(lambda: pictures.encode(policy), 1)
    batch, h = pictures.batch(features), policy.initial_memory_state(pictures.B)

    def own() -> tuple[Tensor, Tensor]:
        return backward(policy(batch, mode="world_model_window", initial_memory_state=h)["loss"])

    ours, (loss, grad) = timed(own, repeats)
    theirs, (their_loss, their_grad) = timed(lambda: backward(published_window(policy, f1, pictures)), repeats)
    close("the loss", loss, their_loss)
    close("a gradient", grad, their_grad)
    again, _ = timed(lambda: recompute(policy, f1, pictures), 1)
    return {"ours_s": ours, "encoding_once_s": encode, "published_s": theirs, "of_which_encoding_s": again}


@torch.no_grad()
def recompute(policy: F1Policy, f1: PublishedF1, pictures: Pictures) -> None:
    """Only what the published formulation encodes in a window."""
    for t in range(pictures.T):
        inputs = pictures.published(t, torch.zeros(pictures.B, policy.cfg.tokenizer.z_channels))
        f1.encode(inputs.frames)
        f1.und_inputs(inputs)


@torch.no_grad()
def measure_sampling(policy: F1Policy, f1: PublishedF1, pictures: Pictures, repeats: int) -> dict[str, float]:
    """One action chunk of every row: the newest frame and both cameras have just arrived, older tokens are known."""
    assert policy.memory is not None
    cfg, h = policy.cfg, policy.initial_memory_state(pictures.B)
    noise = torch.randn(pictures.B, cfg.chunk_size, cfg.max_action_dim)
    scales = cfg.world_model.foresight_scales
    batch = pictures.batch(pictures.encode(policy)).window(0, 1)

    def own() -> Tensor:
        newest = policy.encode_frames(pictures.frames[:, pictures.O - 1], pictures.cameras[:, 0])
        assert newest.vision is not None
        batch.history_ids[:, 0, -1], batch.vision = newest.ids, newest.vision[:, None]
        options = {"sampling": Sampling(), "noise": noise, "num_scales": scales}
        return policy(batch, mode="actions", initial_memory_state=h, **options)["actions"]

    ours, actions = timed(own, repeats)
    shift = policy.memory.read(h)
    theirs, their = timed(lambda: f1.sample(pictures.published(0, shift, False), noise, scales)["actions"], repeats)
    close("the actions", actions, their)
    return {"ours_s": ours, "published_s": theirs}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="write the results there")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--window", type=int, default=8, help="teacher steps of a window")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=1, help="the shortest of so many is reported")
    parser.add_argument("--tokenizer_channels", type=int, default=160, help="the public tokenizer has 160")
    parser.add_argument("--backend", default="auto", help="attention backend of this model")
    args = parser.parse_args()

    torch.manual_seed(args.seed)
    policy = build_policy(medium(args.tokenizer_channels, args.backend)).eval()
    with torch.no_grad():  # the memory acts
        assert policy.memory is not None
        policy.memory.out_proj.weight.normal_(std=0.1)
    set_policy_requires_grad(policy, train_gen_expert_only=True)
    f1, pictures = PublishedF1(policy), Pictures(policy.cfg, args.batch, args.window)
    machine = f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads"
    print(f"{machine}, load {os.getloadavg()[0]:.1f}, torch {torch.__version__}, backend {policy.trunk.backend}")
    sampling = measure_sampling(policy, f1, pictures, args.repeats)
    ours, theirs = sampling["ours_s"], sampling["published_s"]
    print(f"action sampling, batch {args.batch}: {ours:.2f} s, published {theirs:.2f} s, ratio {theirs / ours:.2f}")
    window = measure_window(policy, f1, pictures, args.repeats)
    ours, theirs = window["ours_s"], window["published_s"]
    once = ours + window["encoding_once_s"]
    alone = theirs - window["of_which_encoding_s"]
    print(f"window of {args.window} teacher steps, batch {args.batch}: {ours:.2f} s, published {theirs:.2f} s")
    print(f"  ratio {theirs / ours:.2f} on cached features, as in training")
    print(f"  ratio {theirs / once:.2f} when every picture of the window is encoded once for it ({once:.2f} s)")
    print(f"  ratio {alone / ours:.2f} of the transformer alone (published without encoding: {alone:.2f} s)")
    if args.json is not None:
        result = {"machine": machine, "torch": torch.__version__, "arguments": vars(args) | {"json": str(args.json)}}
        result |= {"window": window, "sampling": sampling, "ratio_window": theirs / ours}
        result |= {"ratio_sampling": sampling["published_s"] / sampling["ours_s"]}
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
