"""`train.sh tokenizer`: trains the multi-scale VQ-VAE on wrist frames of random episodes and writes one file."""

import json
import logging
import shlex
import sys
import time
from pathlib import Path

import torch
from torch import Tensor

from f1_vla.tokenizer import MultiScaleVQVAE
from f1_vla.tokenizer_io import save_tokenizer
from rl.algorithms import vq_tokenizer as vq
from rl.config import Config
from rl.training import cli
from rl.training.atomic_io import write_atomic
from rl.training.collector import EpisodeCollector, RandomActions
from rl.training.errors import NumericalError
from rl.training.logging_setup import setup_logging
from rl.training.optim import setup_scheduler
from rl.training.parallel_utils import ParallelContext
from rl.training.preemption import StopFlag
from rl.training.progress import Progress

log = logging.getLogger("rl.training.train_tokenizer")
SCENE_SEED_OFFSET = 500_000  # scenes of the held-out frames


def collect_frames(cfg: Config, count: int, seed: int) -> Tensor:
    """(count, 3, S, S) uint8 wrist frames, every `frame_interval`-th of random episodes, each in a scene of its own."""
    cfg.environment.scene_reset_interval = 1
    collector = EpisodeCollector(cfg, "teacher", 0, "cpu", num_obs=1, stride=1, seed=seed)
    act = RandomActions(seed, 0, collector.action_mask, collector.num_envs)
    progress = Progress(count, unit="frame", log_every=4000)
    frames, have = [], 0
    while have < count:
        for record in collector.collect_steps(collector.num_envs * collector.steps_per_episode, act):
            frames.append(torch.from_numpy(record.wrist[:: cfg.tokenizer.frame_interval]).permute(0, 3, 1, 2))
            have += len(frames[-1])
        progress.update(min(have, count), have * cfg.tokenizer.frame_interval, {})
    progress.close()
    collector.close()
    return torch.cat(frames)[:count].contiguous()


def to_pictures(frames: Tensor) -> Tensor:
    """uint8 -> float32 in [-1, 1]."""
    return frames.float() / 127.5 - 1.0


def fit(model: MultiScaleVQVAE, frames: Tensor, cfg: Config, ctx: ParallelContext, stop: StopFlag) -> MultiScaleVQVAE:
    """Autoencoder steps, k-means codebook, straight-through steps; returns the weight average."""
    t, generator = cfg.tokenizer, torch.Generator().manual_seed(cfg.training.seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=t.learning_rate, betas=(0.9, 0.99), weight_decay=0.01)
    for group in optimizer.param_groups:
        group["scale"] = 1.0
    schedule = setup_scheduler(optimizer, "cosine", t.steps, t.learning_rate * 0.02, warmup=50)
    average = torch.optim.swa_utils.AveragedModel(
        model, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(t.weight_average_decay)
    )
    codebook, progress = None, Progress(t.steps, unit="step", log_every=t.log_every)
    for step in range(t.steps):
        if stop.stop_requested():
            raise ValueError("stopped before the tokenizer was finished; nothing was written, start again")
        if step == t.autoencoder_steps:
            with torch.no_grad():
                sample = frames[torch.randint(len(frames), (1024,), generator=generator)]
                latents = torch.cat([model.encode_latent(to_pictures(s)) for s in sample.split(128)])
            vq.init_codebook(model, latents, generator)
            codebook = vq.EMACodebook(model, t, generator)
            average.load_state_dict({f"module.{k}": v for k, v in model.state_dict().items()}, strict=False)
        img = to_pictures(frames[torch.randint(len(frames), (t.batch_size,), generator=generator)])
        schedule.set(step, step)
        with ctx.autocast():
            if codebook is None:
                losses = vq.autoencoder_loss(model, img, t)
            else:
                losses, rows, index = vq.quantized_loss(model, img, t)
        if not torch.isfinite(losses.loss):
            raise NumericalError(f"tokenizer loss is not finite at step {step}; lower tokenizer.learning_rate")
        optimizer.zero_grad()
        losses.loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), cfg.training.max_grad_norm)
        optimizer.step()
        if codebook is not None:
            codebook.update(rows.float(), index)
        average.update_parameters(model)
        shown = {"loss": float(losses.loss.detach()), "psnr": float(losses.psnr)}
        progress.update(step + 1, (step + 1) * t.batch_size, shown)
    progress.close()
    model.load_state_dict(average.module.state_dict())
    return model


@torch.no_grad()
def measure(model: MultiScaleVQVAE, frames: Tensor) -> dict[str, float]:
    """PSNR (dB) of the reconstruction, with and without quantisation, and the use of the codebook."""
    img = to_pictures(frames)
    ids = torch.cat([model.img_to_ids(x) for x in img.split(100)])
    recon = torch.cat([model.decode(model.ids_to_fhat(i)) for i in ids.split(100)])
    plain = torch.cat([model.decode(model.encode_latent(x)) for x in img.split(100)])
    used, perplexity = vq.codebook_usage(ids.flatten(), model.cfg.vocab_size)
    return {
        "psnr_db": float(vq.picture_psnr(recon, img)),
        "unquantised_psnr_db": float(vq.picture_psnr(plain, img)),
        "codes_used": used,
        "perplexity": perplexity,
    }


def main(args: cli.Args) -> None:
    cfg, out = args.config, args.output_dir
    target = out / f"tokenizer_{Path(cfg.model.config_file).stem}.safetensors"
    if target.exists() and not args.overwrite:
        raise ValueError(f"{target} exists; replace it with --overwrite or choose another --output_dir")
    if cfg.environment.wm_size != args.arch.tokenizer.image_size:
        raise ValueError(
            f"environment.wm_size {cfg.environment.wm_size} differs from the tokenizer's image_size "
            f"{args.arch.tokenizer.image_size}; set environment.wm_size={args.arch.tokenizer.image_size}"
        )
    if cfg.training.seed >= SCENE_SEED_OFFSET:
        raise ValueError(f"training.seed is {cfg.training.seed}; the tokenizer takes seeds below {SCENE_SEED_OFFSET}")
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise ValueError(f"output directory {out}: {e.strerror or e}; choose another --output_dir") from e
    stop = StopFlag()
    stop.install()
    ctx = ParallelContext.create(cfg.training)
    setup_logging(cfg.logging, out)
    torch.manual_seed(cfg.training.seed)
    held_out = collect_frames(cfg, cfg.tokenizer.held_out_frames, cfg.training.seed + SCENE_SEED_OFFSET)
    frames = collect_frames(cfg, cfg.tokenizer.frames, cfg.training.seed)
    model = MultiScaleVQVAE(args.arch.tokenizer)
    vq.initialise(model)
    start = time.monotonic()
    model = fit(model, frames, cfg, ctx, stop)
    numbers = measure(model, held_out)
    provenance = {
        **numbers,
        "command": "bash train.sh tokenizer " + shlex.join(sys.argv[1:]),
        "seed": cfg.training.seed,
        "seconds": round(time.monotonic() - start),
        "parameters": sum(p.numel() for p in model.parameters()),
    }
    save_tokenizer(model, target, provenance)
    log.info("tokenizer written to %s: %s", target, json.dumps(provenance))
    if args.json is not None:
        write_atomic(args.json, json.dumps(provenance, indent=1) + "\n")


if __name__ == "__main__":
    cli.run_main("tokenizer", main)
