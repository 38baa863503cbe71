"""Flat metric dicts of world-model passes."""

import torch
from torch import Tensor


def window_metrics(metrics: dict[str, Tensor], prefix: str = "") -> dict[str, float]:
    """The `metrics` of a teacher-forced window as floats; scales are numbered from 1."""
    flat = {f"{prefix}{k}": float(metrics[k]) for k in ("loss", "accuracy")}
    for name in ("loss", "accuracy"):
        for k, value in enumerate(metrics[f"{name}_per_scale"].tolist(), 1):
            flat[f"{prefix}{name}_scale_{k}"] = value
    if not prefix:
        flat |= {k: float(metrics[k]) for k in ("memory_norm", "memory_gate")}
    return flat


def copy_accuracy(windows: dict[str, Tensor]) -> float:
    """Share of tokens that predicting the last frame's tokens gets right, over valid steps."""
    hits = (windows["history_ids"][:, :, -1] == windows["target_ids"]).float().mean(-1)
    valid = windows["valid"].float()
    return float((hits * valid).sum() / valid.sum().clamp(min=1))


def as_uint8(pictures_N3HW: Tensor) -> Tensor:
    """Pictures in [-1, 1] -> (N, H, W, 3) uint8 on the CPU."""
    scaled = ((pictures_N3HW.float() + 1) * 127.5).round().clamp(0, 255)
    return scaled.to(torch.uint8).permute(0, 2, 3, 1).cpu()


def psnr_per_picture(a: Tensor, b: Tensor) -> Tensor:
    """(N,) dB of two stacks (N, 3, H, W) in [-1, 1]; identical pictures count as 100 dB."""
    mse = (a.float() - b.float()).square().flatten(1).mean(1)
    return (10 * torch.log10(4 / mse.clamp_min(4e-10))).clamp(max=100.0)
