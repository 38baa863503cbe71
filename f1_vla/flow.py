"""Flow-matching action head: suffix embedding, velocity, loss.

Convention: x_t = t * noise + (1 - t) * action, velocity = noise - action, time runs 1 -> 0.
Letters: B batch, Q actions of a chunk, A padded action dims, S padded state dims, w width of the act expert.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

MIN_PERIOD, MAX_PERIOD = 4e-3, 4.0


def time_embedding(time_B: Tensor, width: int) -> Tensor:
    """Sines and cosines of 2 pi t / period, computed in float64, returned as float32 (B, width)."""
    half = width // 2
    j = torch.arange(half, dtype=torch.float64, device=time_B.device)
    period = MIN_PERIOD * (MAX_PERIOD / MIN_PERIOD) ** (j / (half - 1))
    angle = 2 * math.pi * time_B.double()[:, None] / period
    return torch.cat([angle.sin(), angle.cos()], -1).float()


def sample_time(batch_size: int, device: torch.device | str) -> Tensor:
    """0.001 + 0.999 * Beta(1.5, 1), one a sample."""
    # Beta(a, 1) is U ** (1 / a).
    return 0.001 + 0.999 * torch.rand(batch_size, device=device) ** (1 / 1.5)


def action_errors(velocity_BQA: Tensor, target_BQA: Tensor, is_pad_BQ: Tensor | None) -> Tensor:
    """Squared errors (B, Q, A) in float32; padded time steps are zero and stay in the denominator of a mean."""
    errors = F.mse_loss(velocity_BQA.float(), target_BQA.float(), reduction="none")
    return errors if is_pad_BQ is None else errors * (~is_pad_BQ)[..., None]


class Flow(nn.Module):
    """Projections around the act expert."""

    def __init__(self, width: int, action_dim: int, state_dim: int) -> None:
        super().__init__()
        self.width = width
        self.state_proj = nn.Linear(state_dim, width)
        self.action_in_proj = nn.Linear(action_dim, width)
        self.action_time_mlp_in = nn.Linear(2 * width, width)
        self.action_time_mlp_out = nn.Linear(width, width)
        self.action_out_proj = nn.Linear(width, action_dim)

    def embed(self, state_BS: Tensor, x_BQA: Tensor, time_B: Tensor) -> Tensor:
        """Suffix (B, 1 + Q, w): the state token, then one token an action."""
        a = self.action_in_proj(x_BQA)
        tau = time_embedding(time_B, self.width).to(a.dtype)[:, None].expand(-1, a.shape[1], -1)
        a = self.action_time_mlp_out(F.silu(self.action_time_mlp_in(torch.cat([a, tau], -1))))
        return torch.cat([self.state_proj(state_BS)[:, None], a], 1)

    def velocity(self, hidden_BMw: Tensor) -> Tensor:
        """Outputs of the act expert (B, 1 + Q, w) -> velocity (B, Q, A) in float32."""
        return self.action_out_proj(hidden_BMw[:, 1:].float()).float()
