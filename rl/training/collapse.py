"""Early signs that a game of two players collapses, and the bounds outside of which they are one."""

import logging
from collections.abc import Mapping, Sequence

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


def collapse_signs(
    cfg: CollapseConfig, action_std: float, reward_std: float, reward_raw_std_share: float, token_top_share: float
) -> list[str]:
    """What lies outside its bounds, in words; empty when all is well."""
    signs = []
    if action_std < cfg.min_action_std:
        signs.append(f"action std {action_std:.3g} below {cfg.min_action_std:g}: the explorer stands still")
    if action_std > cfg.max_action_std:
        signs.append(f"action std {action_std:.3g} above {cfg.max_action_std:g}: actions sit at their bounds")
    if reward_std < cfg.min_reward_std:
        signs.append(f"reward std {reward_std:.3g} below {cfg.min_reward_std:g}: nothing is left to tell actions apart")
    if reward_raw_std_share < cfg.min_raw_std_share:
        signs.append(
            f"a raw reward varies {reward_raw_std_share:.1%} as much as at the start of the game, less than "
            f"{cfg.min_raw_std_share:.0%}: what is left of it is scaled up noise"
        )
    if token_top_share > cfg.max_token_share:
        signs.append(f"one token makes {token_top_share:.0%} of what the explorer sees, over {cfg.max_token_share:.0%}")
    return signs


class CollapseWatch:
    """Judges the numbers of every iteration, some of them against those of the first."""

    def __init__(self, cfg: CollapseConfig, rewarded: Sequence[str]) -> None:
        """rewarded: the components of the reward whose raw std is watched."""
        self.cfg, self.rewarded = cfg, list(rewarded)
        self.start: dict[str, float] = {}  # raw std of each in the first iteration

    def judge(self, line: Mapping[str, float], iteration: int, warns: bool) -> dict[str, float]:
        """The signs of one iteration as metrics; `line` holds means over ranks, so all say the same. warns: in the log,
        too."""
        now = {name: line[f"reward_raw_std_{name}"] for name in self.rewarded}
        self.start = self.start or now
        # A component that did not vary at the start cannot tell actions apart now, either: a share of 0.
        share = min(now[n] / self.start[n] if self.start[n] > 0 else 0.0 for n in self.rewarded)
        signs = collapse_signs(self.cfg, line["action_std"], line["reward_std"], share, line["token_top_share"])
        for sign in signs if warns else ():
            log.warning("iteration %d: sign of a collapse: %s", iteration, sign)
        return {"reward_raw_std_share": share, "collapse_signs": float(len(signs))}

    def state_dict(self) -> dict[str, float]:
        """Plain data."""
        return dict(self.start)

    def load_state_dict(self, state: dict[str, float]) -> None:
        self.start = dict(state)
