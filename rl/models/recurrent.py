"""An LSTM over rows of a rollout whose episodes begin anywhere (details 32 to 36)."""

from itertools import pairwise

import torch
from torch import Tensor, nn

from rl.config import InitKind

State = tuple[Tensor, Tensor]  # h and c, (1, E, hidden) each


class ResettingLSTM(nn.Module):
    """One layer."""

    def __init__(self, inputs: int, hidden: int, init: InitKind) -> None:
        """`init` orthogonal: weights with gain 1 and zero biases (detail 32)."""
        super().__init__()
        self.lstm = nn.LSTM(inputs, hidden)
        self.hidden = hidden
        if init is not InitKind.orthogonal:
            return
        for name, parameter in self.lstm.named_parameters():
            if "bias" in name:
                nn.init.zeros_(parameter)
            else:
                nn.init.orthogonal_(parameter, 1.0)

    def initial_state(self, num_envs: int) -> State:
        """Zeros (detail 33)."""
        zero = next(self.lstm.parameters()).new_zeros(1, num_envs, self.hidden)
        return zero, zero.clone()

    def forward(self, x_TEF: Tensor, state: State, begins_TE: Tensor) -> tuple[Tensor, State]:
        """(T, E, F) -> (T, E, hidden) and the state after the last row.

        `begins_TE` bool: an episode begins with this row, so the state before it is zeroed (detail 34).
        """
        T = len(x_TEF)
        cuts = [0, *(t for t in begins_TE.any(1).nonzero()[:, 0].tolist() if t > 0), T]
        parts = []
        for start, stop in pairwise(cuts):
            keep = (~begins_TE[start]).to(x_TEF.dtype)[None, :, None]
            part, state = self.lstm(x_TEF[start:stop], (state[0] * keep, state[1] * keep))
            parts.append(part)
        return torch.cat(parts), state
