"""A deterministic policy as TorchScript and ONNX, each checked for the same actions as the module it came from."""

import logging
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from rl.envs.vector import VectorEnv
from rl.models.actor_critic import is_privileged
from rl.types import TensorTree

log = logging.getLogger(__name__)
TOLERANCE = 1e-4  # largest difference of an action
STEPS = 8  # of the environments, whose observations the check uses


class _Named(nn.Module):
    """Observations as positional tensors in the order of `names`, which is what both formats want."""

    def __init__(self, policy: nn.Module, names: list[str]) -> None:
        super().__init__()
        self.policy, self.names = policy, names

    def forward(self, *parts: Tensor) -> Tensor:
        observation: TensorTree = (
            parts[0] if self.names == ["observation"] else dict(zip(self.names, parts, strict=True))
        )
        actions: Tensor = self.policy(observation)
        return actions


@torch.no_grad()
def export(policy: nn.Module, env: VectorEnv, folder: Path) -> dict[str, Any]:
    """Writes policy.pt and policy.onnx; returns {"torchscript": largest difference, "onnx": ...} of actions.

    Inputs are the parts of the observation that the actor sees by name ("observation" where it is one tensor), rows
    first, any number of rows; the output is `action`, for the environment. Raises ValueError when a written file acts
    differently.
    """
    observations = _observations(policy, env)
    names = list(observations)
    module = _Named(policy, names).cpu().eval()
    inputs = tuple(observations.values())
    expected = module(*inputs)
    folder.mkdir(parents=True, exist_ok=True)
    try:
        found = {
            "torchscript": _torchscript(module, inputs, folder / "policy.pt"),
            "onnx": _onnx(module, names, inputs, folder / "policy.onnx"),
        }
    finally:
        policy.to(env.device)
    differences = {name: float((actions - expected).abs().max()) for name, actions in found.items()}
    wrong = {name: d for name, d in differences.items() if not d <= TOLERANCE}
    if wrong:
        raise ValueError(f"exported policies act differently from the trained one: {wrong}")
    log.info("exported to %s; largest differences of actions %s", folder, differences)
    return differences


def _observations(policy: nn.Module, env: VectorEnv) -> dict[str, Tensor]:
    """What the actor sees when it acts for a few steps, as rows on the CPU; a robot has nothing for the critic."""
    seen, observation = [], env.reset(0)
    for _ in range(STEPS):
        if isinstance(observation, dict):
            observation = {name: x for name, x in observation.items() if not is_privileged(name)}
        seen.append({"observation": observation} if isinstance(observation, Tensor) else observation)
        observation = env.step(policy(observation)).observation
    return {name: torch.cat([s[name] for s in seen]).cpu() for name in seen[0]}


def _torchscript(module: nn.Module, inputs: tuple[Tensor, ...], path: Path) -> Tensor:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # tracing is what robots' runtimes still read
        traced = torch.jit.trace(module, tuple(x[:2] for x in inputs))
    torch.jit.save(traced, str(path))
    actions: Tensor = torch.jit.load(str(path))(*inputs)
    return actions


def _onnx(module: nn.Module, names: list[str], inputs: tuple[Tensor, ...], path: Path) -> Tensor:
    import onnxruntime  # heavy: only where a policy is exported

    for chatty in ("onnxscript", "onnx_ir"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
    rows = torch.export.Dim("rows")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            module, tuple(x[:2] for x in inputs), str(path), input_names=names, output_names=["action"], dynamo=True,
            dynamic_shapes=(tuple({0: rows} for _ in inputs),), external_data=False, verbose=False,
        )  # fmt: skip
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    feed = {i.name: np.ascontiguousarray(x.numpy()) for i, x in zip(session.get_inputs(), inputs, strict=True)}
    return torch.from_numpy(session.run(None, feed)[0])
