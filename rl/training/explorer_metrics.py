"""Numbers of collected episodes: every reward component raw and scaled, and early signs of a collapse."""

import numpy as np
import numpy.typing as npt
from torch import Tensor

from rl.data.intrinsic import Components
from rl.training.reward_model import Scores
from rl.types import EpisodeRecord


def among_episodes(reward_EN: Tensor) -> float:
    """Std over the E episodes of an iteration, mean over the N decisions: 0 when all episodes are paid alike, however
    much decisions of one episode differ. Of a single episode the std over its decisions."""
    return float(reward_EN.std(0).mean() if len(reward_EN) > 1 else reward_EN.std())


def reward_metrics(
    raw: Components, scaled: Components, reward_EN: Tensor, scores: Scores,
    records: list[EpisodeRecord], action_mask: npt.NDArray[np.bool_],
) -> dict[str, float]:  # fmt: skip
    """Means over decisions (`reward_*`), std among episodes (`reward_std`, `reward_raw_std_*`, see `among_episodes`),
    sums over an episode (`return_*`), and what they are made of.

    reward_EN: what PPO learns from (rl.data.intrinsic.credited_reward). Undiscounted, the rewards of a potential sum up
    to its last value less (1 - gamma) of every value on the way, a drift that nobody is paid for: of the memory
    divergence the sum is therefore its last value, `divergence_last`.
    """
    line = {f"reward_raw_{k}": float(v.mean()) for k, v in raw.items()}
    line |= {f"reward_raw_std_{k}": among_episodes(v) for k, v in raw.items()}
    line |= {f"return_raw_{k}": float(v.sum(1).mean()) for k, v in raw.items() if k != "memory_divergence"}
    line |= {f"reward_scaled_{k}": float(v.mean()) for k, v in scaled.items()}
    line |= {
        "reward": float(reward_EN.mean()),
        "reward_std": among_episodes(reward_EN),
        "return": float(reward_EN.sum(1).mean()),
    }
    line["divergence_mean"] = float(scores.divergence.mean())
    line["divergence_last"] = float(scores.divergence[:, -1].mean())
    line["wm_nll"] = float(scores.nll.mean())
    actions = np.stack([r.actions for r in records])[..., action_mask]
    line["action_std"] = float(actions.std((0, 1)).mean())
    line["action_at_bound"] = float((np.abs(actions) >= 1 - 1e-6).mean())
    return line
