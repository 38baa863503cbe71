"""Policies as files: every kind acts the same as TorchScript and as ONNX, from what its actor sees and nothing else."""

from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch

from rl.config import load
from rl.training import policies, policy_export
from rl.training.parallel_utils import ParallelContext
from rl.types import TensorTree
from tests.training import policy_runs

CPU = torch.device("cpu")
PPO = ["ppo.n_steps=4", "ppo.network.hidden=[16]"]
SAC = ["sac.vector_steps=4", "sac.network.actor_hidden=[16]", "sac.network.critic_hidden=[16]", "sac.buffer_size=100"]
VISION = ["arm.vision=true", "arm.image_size=36", "arm.frame_stack=2"]


def tree_cat(trees: list[TensorTree]) -> TensorTree:
    first = trees[0]
    if isinstance(first, torch.Tensor):
        return torch.cat(trees)
    return {name: torch.cat([t[name] for t in trees]) for name in first}


@pytest.mark.parametrize(
    ("run", "algorithm", "settings", "inputs"),
    [
        ("arm", "PPO", PPO, ["observation"]),  # with statistics of observations
        ("arm", "SAC", SAC, ["observation"]),
        ("arm", "FASTSAC", SAC, ["observation"]),
        ("rl", "PPO", ["rl.task=CartPole-v1", *PPO], ["observation"]),  # discrete
        ("arm", "PPO", [*VISION, *PPO], ["pixels", "state"]),  # not where the target is, which the critic sees
    ],
    ids=["ppo", "sac", "fastsac", "discrete", "vision"],
)
def test_a_policy_acts_the_same_from_its_files_on_what_the_actor_sees(
    run: str, algorithm: str, settings: list[str], inputs: list[str], world: ParallelContext, tmp_path: Path
) -> None:
    cfg = load(None, [f"{run}.algorithm={algorithm}", f"{run}.num_envs=2", *settings], run)
    env = policies.make_env(cfg, run, 2, CPU, 0)
    phase = policies.build_phase(cfg, run, env, world, 1000)
    phase.collect(0)  # statistics of observations are not those of nothing
    policy_export.export(policies.exportable(phase), env, tmp_path)

    session = onnxruntime.InferenceSession(str(tmp_path / "policy.onnx"), providers=["CPUExecutionProvider"])
    assert [i.name for i in session.get_inputs()] == inputs
    starts = [env.reset(seed) for seed in (7, 8, 9)]
    rows = tree_cat(starts)
    expected = phase.act(rows)
    seen = [rows] if isinstance(rows, torch.Tensor) else [rows[name] for name in inputs]
    scripted = torch.jit.load(str(tmp_path / "policy.pt"))(*seen)
    (found,) = session.run(["action"], {name: x.numpy() for name, x in zip(inputs, seen, strict=True)})
    torch.testing.assert_close(scripted, expected, rtol=0, atol=1e-4)
    np.testing.assert_allclose(found, expected.numpy(), rtol=0, atol=1e-4)
    phase.close()


def test_a_run_and_a_play_write_both_files_and_the_largest_differences(tmp_path: Path) -> None:
    place = tmp_path / "run"
    assert policy_runs.arm("PPO", place, "--export", "--steps", "128", "arm.eval_every=1000") == 0
    for name, difference in policy_runs.result(place)["export"].items():
        assert difference <= policy_export.TOLERANCE, name
    for file in ("policy.pt", "policy.onnx"):
        (place / "export" / file).unlink()
    assert policy_runs.played("--checkpoint", str(place), "--steps", "2", "--export", "--device", "cpu") == 0
    assert {p.name for p in (place / "export").iterdir()} == {"policy.pt", "policy.onnx"}
