"""Advantages and returns of a rollout. T time, E environments; `terminated` and `truncated` are never one flag."""

import torch
from torch import Tensor

from rl.config import TimeoutBootstrap


def gae(
    rewards_TE: Tensor, values_TE: Tensor, next_values_TE: Tensor, terminated_TE: Tensor, truncated_TE: Tensor,
    valid_TE: Tensor, gamma: float, lam: float, timeout_bootstrap: TimeoutBootstrap = TimeoutBootstrap.final_obs,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Generalised advantage estimation (Schulman et al. 2016, equation 16) with exact episode ends.

    rewards, values, next_values: (T, E) float; terminated, truncated, valid: (T, E) bool. `next_values_TE[t]` is the
    value of the true observation after step t, also where an episode ended there (final_obs of an automatic reset).
    Termination: no bootstrap. Truncation: `timeout_bootstrap` says from what; a step that is both is a termination.
    Both cut the recursion over lambda. A row that is not `valid` gets advantage and return 0, and no other row sees
    it; its numbers, and next values after a termination, may be anything, even NaN.

    Returns advantages and returns (advantage + value, the TD(lambda) target), (T, E) each. lambda 1 gives n-step
    returns minus the value. Raises ValueError for shapes that differ.
    """
    shapes = {tuple(t.shape) for t in (rewards_TE, values_TE, next_values_TE, terminated_TE, truncated_TE, valid_TE)}
    if len(shapes) != 1 or rewards_TE.dim() != 2:
        raise ValueError(f"gae needs six tensors of one shape (T, E), got {sorted(shapes)}")
    zero = torch.zeros((), dtype=values_TE.dtype, device=values_TE.device)
    after_TE = torch.where(terminated_TE, zero, next_values_TE)
    cut_by_time_TE = truncated_TE & ~terminated_TE
    if timeout_bootstrap is TimeoutBootstrap.current_value:
        after_TE = torch.where(cut_by_time_TE, values_TE, after_TE)
    elif timeout_bootstrap is TimeoutBootstrap.none:
        after_TE = torch.where(cut_by_time_TE, zero, after_TE)
    delta_TE = torch.where(valid_TE, rewards_TE + gamma * after_TE - values_TE, zero)
    decay_TE = torch.where(valid_TE & ~terminated_TE & ~truncated_TE, zero + gamma * lam, zero)
    advantages_TE = torch.empty_like(delta_TE)
    running_E = torch.zeros_like(delta_TE[0])
    for t in range(len(delta_TE) - 1, -1, -1):
        running_E = torch.addcmul(delta_TE[t], decay_TE[t], running_E)
        advantages_TE[t] = running_E
    return advantages_TE, torch.where(valid_TE, advantages_TE + values_TE, zero)


def next_values(
    values_TE: Tensor, last_values_E: Tensor, final_index: tuple[Tensor, Tensor], final_values_N: Tensor
) -> Tensor:
    """(T, E) values of the true next observation: the next row's, the last observation's after the last row, and
    `final_values_N` at the rows (t, e) of `final_index`, where an episode was cut by time."""
    shifted_TE = torch.cat([values_TE[1:], last_values_E[None]])
    shifted_TE[final_index] = final_values_N
    return shifted_TE
