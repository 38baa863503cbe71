"""Early signs that a game of two players collapses, and the bounds outside of which they are one."""

import logging

import torch
from torch import Tensor

from rl.config import CollapseConfig

log = logging.getLogger(__name__)


def token_share(ids: list[Tensor], vocab_size: int) -> float:
    """Share of the most used class among the tokens of some frames: near 1 when all pictures are the same wall."""
    counts = torch.zeros(vocab_size, dtype=torch.int64)
    for frames in ids:
        counts += torch.bincount(frames.flatten().long(), minlength=vocab_size)
    return float(counts.max() / counts.sum())


def collapse_signs(cfg: CollapseConfig, action_std: float, reward_std: float, token_top_share: float) -> list[str]:
    """What lies outside its bounds, in words; empty when all is well."""
    signs = []
    if action_std < cfg.min_action_std:
        signs.append(f"action std {action_std:.3g} below {cfg.min_action_std:g}: the explorer stands still")
    if action_std > cfg.max_action_std:
        signs.append(f"action std {action_std:.3g} above {cfg.max_action_std:g}: actions sit at their bounds")
    if reward_std < cfg.min_reward_std:
        signs.append(f"reward std {reward_std:.3g} below {cfg.min_reward_std:g}: nothing is left to tell actions apart")
    if token_top_share > cfg.max_token_share:
        signs.append(f"one token makes {token_top_share:.0%} of what the explorer sees, over {cfg.max_token_share:.0%}")
    return signs


def warn(signs: list[str], iteration: int) -> None:
    for sign in signs:
        log.warning("iteration %d: sign of a collapse: %s", iteration, sign)
