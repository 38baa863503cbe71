"""GRU memory of the policy. The state is an argument and a return value, never an attribute.

Letters: B batch, A padded action dims, S padded state dims.
"""

import torch
from torch import Tensor, nn

from f1_vla.config import MemoryConfig

GATE_INIT = 0.1


def initial_state(cfg: MemoryConfig, batch_size: int, device: torch.device | str) -> Tensor:
    """Zeros (num_layers, B, hidden) float32."""
    return torch.zeros(cfg.memory_num_layers, batch_size, cfg.memory_hidden, device=device)


def check_state(cfg: MemoryConfig, h: Tensor | None, batch_size: int, call: str) -> Tensor:
    """`h` itself; ValueError when it is None or has another shape."""
    shape = (cfg.memory_num_layers, batch_size, cfg.memory_hidden)
    if h is None:
        raise ValueError(f"initial_memory_state is None in {call}; pass policy.initial_memory_state({batch_size})")
    if tuple(h.shape) != shape:
        raise ValueError(f"initial_memory_state has shape {tuple(h.shape)} in {call}; expected {shape}")
    return h


def reset_rows(h: Tensor, reset_B: Tensor) -> Tensor:
    """Zeroes the rows of h (num_layers, B, hidden) where a new episode begins (bool (B,))."""
    return h.masked_fill(reset_B[None, :, None], 0.0)


class Memory(nn.Module):
    """h (num_layers, B, hidden), zeros at episode start, float32 also under autocast.

    `read` gives what is added to the world model's history vectors; `write` is the GRU step that follows.
    """

    memory_gate: nn.Parameter

    def __init__(self, cfg: MemoryConfig, feature_width: int, action_dim: int, state_dim: int, out: int) -> None:
        super().__init__()
        self.in_proj = nn.Linear(feature_width + action_dim + state_dim, cfg.memory_hidden)
        self.cells = nn.ModuleList(
            nn.GRUCell(cfg.memory_hidden, cfg.memory_hidden) for _ in range(cfg.memory_num_layers)
        )
        self.out_proj = nn.Linear(cfg.memory_hidden, out, bias=False)  # zero at the start
        self.memory_gate = nn.Parameter(torch.tensor(GATE_INIT))

    def read(self, h: Tensor) -> Tensor:
        """(B, C or d): zero until trained."""
        with torch.autocast(h.device.type, enabled=False):
            return self.memory_gate * self.out_proj(h[-1])

    def write(self, h: Tensor, features_BF: Tensor, action_BA: Tensor, state_BS: Tensor) -> Tensor:
        """Next state from the pooled hidden states of the experts, the executed action and the state."""
        with torch.autocast(h.device.type, enabled=False):
            x = self.in_proj(torch.cat([features_BF.float(), action_BA.float(), state_BS.float()], -1))
            rows = []
            for cell, row in zip(self.cells, h, strict=True):
                x = cell(x, row)
                rows.append(x)
            return torch.stack(rows)
