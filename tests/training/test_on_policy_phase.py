"""PPO in the training loop: what it reports, that a resume continues bit for bit, that ranks train one model."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import pytest
import torch

from rl.config import CONFIG_DIR, Config, MixedPrecision, load, load_model
from rl.training.checkpoint import CheckpointManager, open_checkpoint
from rl.training.errors import NumericalError
from rl.training.loop import Loop
from rl.training.on_policy_phase import OnPolicyPhase
from rl.training.parallel_utils import ParallelContext
from rl.training.preemption import StopFlag
from rl.training.run_dir import ResumeMode, RunDir
from tests.helpers.ppo_learner import WalkEnv
from tests.helpers.ranks import run_ranks
from tests.training import ppo_rank_cases

E, T = 4, 8
ROWS = E * T


class Unsaveable(WalkEnv):
    """Environments that cannot be saved, as most simulators."""

    def state_dict(self) -> dict[str, Any]:
        raise ValueError("this simulator cannot be saved")


def config(algo: str = "ppo_reach", *overrides: str) -> Config:
    small = [f"ppo.n_steps={T}", "ppo.network.hidden=[8,8]", "ppo.n_epochs=2", "training.device=cpu"]
    return load(CONFIG_DIR / "algo" / f"{algo}.yaml", [*small, *(f"ppo.{o}" for o in overrides)])


@pytest.fixture
def train(world: ParallelContext, tmp_path: Path) -> Callable[..., OnPolicyPhase]:
    """Trains `units` of `total` steps in `tmp_path / name`, continuing what is there."""

    def run(name: str, units: int, cfg: Config, env: Any, every: int = ROWS, algorithm: str = "ppo") -> OnPolicyPhase:
        cfg.training.save_every = every
        arch = load_model("debug_test")
        with RunDir.open(tmp_path / name, "teacher", cfg, arch, world, ResumeMode.auto) as directory:
            phase = OnPolicyPhase(cfg, env, world, total=6 * ROWS, name=algorithm)
            manager = CheckpointManager(directory.path, 10, world)
            loop = Loop(phase, cfg.training, units, world, directory, manager, StopFlag(), False)
            saved = manager.load(directory.resume_from) if directory.resuming else None
            if saved is not None:
                loop.restore(saved)
            loop.run()
        return phase

    return run


@pytest.mark.parametrize(("algo", "cut"), [("ppo_reach", "minibatch_size=16"), ("rsl_rl", "num_minibatches=2")])
def test_one_process_leaves_accelerate_out_and_trains_the_same_model_bit_for_bit(
    world: ParallelContext, algo: str, cut: str
) -> None:
    direct, prepared = (OnPolicyPhase(config(algo, cut), WalkEnv(E), world, total=99) for _ in "ab")
    ppo = prepared.ppo
    ppo.wrapped, ppo.optimizer = world.prepare(prepared.policy, ppo.optimizer)
    ppo.parallel = world
    lines = []
    for phase in (direct, prepared):
        for i in range(3):
            phase.collect(i)
            lines.append(phase.update(i * ROWS))
    assert all(torch.equal(a, b) for a, b in zip(direct.policy.parameters(), prepared.policy.parameters(), strict=True))
    assert all(lines[i][k] == lines[i + 3][k] for i in range(3) for k in ("policy_loss", "value_loss", "grad_norm"))


def updated(cfg: Config) -> tuple[torch.Tensor, dict[str, float]]:
    """Parameters after one update, and what it reported, in a group as the configuration says."""
    world = ParallelContext.create(cfg.training)
    phase = OnPolicyPhase(cfg, WalkEnv(E), world, total=99)
    phase.collect(0)
    line = phase.update(0.0)
    world.close()
    assert {p.dtype for p in phase.policy.parameters()} == {torch.float32}
    return torch.cat([p.detach().flatten() for p in phase.policy.parameters()]), line


def test_micro_batches_accumulate_to_the_update_of_the_whole_minibatch() -> None:
    whole, cut = config("ppo_reach", "minibatch_size=16"), config("ppo_reach", "minibatch_size=16")
    cut.training.gradient_accumulation_steps = 2
    (expected, of_whole), (found, of_cut) = updated(whole), updated(cut)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    for name in ("policy_loss", "value_loss", "grad_norm", "approx_kl"):  # Adam alone would hide a factor of two
        assert of_cut[name] == pytest.approx(of_whole[name], rel=1e-4, abs=1e-6), name
    assert of_cut["optimizer_steps"] == of_whole["optimizer_steps"] == 4  # two epochs of two minibatches


def test_bf16_keeps_the_parameters_in_float32_and_comes_close_to_full_precision() -> None:
    full, half = config("ppo_reach", "minibatch_size=16"), config("ppo_reach", "minibatch_size=16")
    half.training.mixed_precision = MixedPrecision.bf16
    (expected, of_full), (found, of_half) = updated(full), updated(half)
    # Adam moves a parameter by about the learning rate a step: these four have hardly gone apart.
    assert 0 < (found - expected).abs().mean() < 4 * full.ppo.learning_rate
    for name in ("value_loss", "entropy"):
        assert of_half[name] != of_full[name] and of_half[name] == pytest.approx(of_full[name], rel=0.05), name


def same_model(a: Path, b: Path, step: int) -> bool:
    models = [open_checkpoint(p / f"checkpoint-{step}").read("model.pt") for p in (a, b)]
    return models[0].keys() == models[1].keys() and all(torch.equal(models[0][k], models[1][k]) for k in models[0])


@pytest.mark.parametrize("kind", [WalkEnv, Unsaveable])
@pytest.mark.parametrize(
    "settings",
    [
        ["ppo_reach"],
        ["rsl_rl"],
        ["a2c_reach"],
        ["ppo_reach", "network.lstm=6", "minibatches=by_environment", "minibatch_size=16"],
    ],
)
def test_a_resumed_run_equals_the_uninterrupted_one(
    train: Callable, tmp_path: Path, kind: type, settings: list[str]
) -> None:
    train("straight", 4 * ROWS, config(*settings), kind(E))
    train("resumed", 2 * ROWS, config(*settings), kind(E))
    train("resumed", 4 * ROWS, config(*settings), kind(E))
    assert same_model(tmp_path / "straight", tmp_path / "resumed", 4 * ROWS)
    first, last = (open_checkpoint(tmp_path / "straight" / f"checkpoint-{n * ROWS}").read("model.pt") for n in (2, 4))
    assert any(not torch.equal(first[k], last[k]) for k in first)


def test_an_iteration_counts_transitions_and_reports_what_it_learned(world: ParallelContext) -> None:
    phase = OnPolicyPhase(config(), WalkEnv(E), world, total=100)
    line = phase.collect(0)
    assert line["env_steps"] == ROWS and phase.units_per_iteration == ROWS
    assert -100 < line["return"] < 0 and 1 <= line["length"] <= 7
    found = phase.update(0.0)
    assert {"policy_loss", "value_loss", "entropy", "approx_kl", "clip_fraction", "explained_variance"} <= found.keys()
    assert {"learning_rate", "grad_norm", "action_std", "memory_gb"} <= found.keys()
    assert found["learning_rate"] == pytest.approx(1e-3)
    phase.collect(0)
    assert phase.update(50.0)["learning_rate"] == pytest.approx(1e-3 * (1 - 0.5 * 0.95))


def test_rows_of_an_automatic_reset_are_not_counted(world: ParallelContext) -> None:
    phase = OnPolicyPhase(config(), WalkEnv(E, limit=3, next_step=True), world, total=100)
    line = phase.collect(0)
    # Episodes of at most 3 steps and a reset row: at least one row in four is none.
    assert line["env_steps"] <= ROWS * 3 / 4 and line["length"] <= 3


def test_iterations_can_be_the_unit(world: ParallelContext) -> None:
    assert OnPolicyPhase(config(), WalkEnv(E), world, total=10, unit="iteration").units_per_iteration == 1


def test_acting_is_deterministic_within_bounds_and_takes_raw_observations(world: ParallelContext) -> None:
    phase = OnPolicyPhase(config(), WalkEnv(E), world, total=100)
    phase.collect(0)
    x = torch.randn(5, 3) * 100
    assert torch.equal(phase.act(x), phase.act(x)) and phase.act(x).shape == (5, 2)
    assert phase.act(x).abs().max() <= 1


def test_a_loss_that_is_not_finite_stops_with_the_parameters_untouched(world: ParallelContext) -> None:
    phase = OnPolicyPhase(config(), WalkEnv(E), world, total=100)
    phase.collect(0)
    before = [p.clone() for p in phase.policy.parameters()]
    assert phase._batch is not None
    phase._batch.returns[3, 1] = torch.nan
    with pytest.raises(NumericalError, match=r"ppo\.learning_rate"):
        phase.update(0.0)
    assert all(torch.equal(a, b) for a, b in zip(before, phase.policy.parameters(), strict=True))
    assert "returns" in phase.last_batch()


def test_a_checkpoint_of_another_algorithm_is_refused(train: Callable, world: ParallelContext, tmp_path: Path) -> None:
    train("run", ROWS, config(), WalkEnv(E))
    loaded = CheckpointManager(tmp_path / "run", 10, world).load()
    with pytest.raises(ValueError, match="a checkpoint of ppo, not of a2c"):
        OnPolicyPhase(config("a2c_reach"), WalkEnv(E), world, total=100, name="a2c").restore(loaded)  # type: ignore[arg-type]


def test_a_checkpoint_of_another_network_is_refused(train: Callable, world: ParallelContext, tmp_path: Path) -> None:
    train("run", ROWS, config(), WalkEnv(E))
    loaded = CheckpointManager(tmp_path / "run", 10, world).load()
    with pytest.raises(ValueError, match="of another shape"):
        OnPolicyPhase(config("ppo_reach", "network.hidden=[9,9]"), WalkEnv(E), world, total=100).restore(loaded)  # type: ignore[arg-type]


def test_discrete_actions_train_too(world: ParallelContext) -> None:
    phase = OnPolicyPhase(config(), WalkEnv(E, action_space=gym.spaces.MultiDiscrete([2, 3])), world, total=100)
    phase.collect(0)
    assert "action_std" not in phase.update(0.0)
    assert phase.act(torch.randn(5, 3)).shape == (5, 2)


def test_two_ranks_train_one_model_and_divide_the_rows_of_one(tmp_path: Path) -> None:
    ranks = run_ranks(ppo_rank_cases.one_update, 2, tmp_path, 120)
    assert ranks[0]["hash"] == ranks[1]["hash"] and ranks[0]["before"] != ranks[0]["hash"]
    assert ranks[0]["norm"] == ranks[1]["norm"]  # observation statistics are shared
    assert ranks[0]["sent"] != ranks[1]["sent"]  # but every rank acts on its own
    assert ranks[0]["gap"] < 1e-5 and ranks[1]["gap"] < 1e-5  # against one process with the rows of both
    assert ROWS < ranks[0]["line"]["env_steps"] < 2 * ROWS  # of both, without the reset rows
