"""How PPO cuts a rollout into minibatches, and which cuts it refuses."""

from rl.config import Minibatches, PPOConfig
from rl.data.rollout import fixed_sizes


def minibatch_sizes(cfg: PPOConfig, n_steps: int, num_envs: int, micro_batches: int) -> tuple[int, list[int]]:
    """Of a rollout of `n_steps` of `num_envs` environments: how many rows there are to draw (environments where these
    stay whole), and how many of them each minibatch of an epoch takes.

    Raises ValueError naming the key for what no update can cut, into minibatches or those into `micro_batches`.
    """
    whole = cfg.minibatches is Minibatches.by_environment
    count, rows_of_one = (num_envs, n_steps) if whole else (n_steps * num_envs, 1)
    size = max(1, cfg.minibatch_size // rows_of_one) if cfg.minibatch_size > 0 else count // cfg.num_minibatches
    sizes = fixed_sizes(count, size, drop_last=cfg.minibatch_size == 0)
    if micro_batches > 1 and cfg.network.lstm:
        raise ValueError("training.gradient_accumulation_steps above 1 does not go with ppo.network.lstm")
    smallest = min(sizes) * rows_of_one
    if smallest < micro_batches:
        raise ValueError(
            f"a minibatch of {smallest} rows cannot be cut into {micro_batches} micro-batches; lower "
            f"training.gradient_accumulation_steps, or cut the {n_steps * num_envs} rows of a rollout otherwise "
            "(ppo.minibatch_size, ppo.num_minibatches)"
        )
    return count, sizes
