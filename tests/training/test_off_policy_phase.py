"""SAC, FastSAC and the diffusion policy as a phase: when learning starts, what is saved, what is refused."""

import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch

from rl.algorithms.diffusion import DiffusionNetworks
from rl.config import Config, CriticHead, DiffusionNetworkConfig, SACNetworkConfig, TrainingConfig, Warmup, load_model
from rl.envs.arm_reach import ArmReach
from rl.training import off_policy_phase, policies, policy_export
from rl.training.checkpoint import CheckpointManager
from rl.training.errors import NumericalError
from rl.training.loop import Loop
from rl.training.off_policy_phase import OffPolicyPhase
from rl.training.parallel_utils import ParallelContext
from rl.training.preemption import StopFlag
from rl.training.run_dir import ResumeMode, RunDir
from tests.training.point_env import PicturePointEnv, PointEnv


def config(**changes: Any) -> Config:
    """Small networks; changes go to both blocks."""
    cfg = Config()
    cfg.sac.network = SACNetworkConfig(actor_hidden=[16], critic_hidden=[16])
    cfg.diffusion.network = DiffusionNetworkConfig(width=16, num_blocks=1, num_heads=2, critic_hidden=[16])
    cfg.diffusion.actor_batch_size, cfg.diffusion.train_samples = 8, 2
    cfg.diffusion.eval_samples, cfg.diffusion.entropy_actions, cfg.diffusion.act_samples = 2, 1, 2
    for block in (cfg.sac, cfg.diffusion):
        for key, value in {"batch_size": 16, "buffer_size": 400, "learning_starts": 12, **changes}.items():
            setattr(block, key, value)
    return cfg


Make = Callable[..., OffPolicyPhase]


@pytest.fixture
def world() -> Iterator[ParallelContext]:
    """A group of one process with one thread: the networks are tiny."""
    context = ParallelContext.create(TrainingConfig(device="cpu", num_threads=1))
    yield context
    context.close()


@pytest.fixture
def make(world: ParallelContext) -> Make:
    def build(cfg: Config | None = None, env: PointEnv | None = None, **options: Any) -> OffPolicyPhase:
        return OffPolicyPhase(cfg or config(), env or PointEnv(4), world, 400, **options)

    return build


def test_steps_are_counted_over_environments_and_learning_waits_for_its_start(make: Make) -> None:
    phase = make(config(vector_steps=2))
    assert phase.units_per_iteration == 8 and phase.updates_per_iteration == 0
    assert phase.collect(0)["env_steps"] == 8 and phase.updates_per_iteration == 0
    assert phase.collect(8)["env_steps"] == 8 and phase.updates_per_iteration == 1  # 16 of 12 steps
    assert make(unit="iteration").units_per_iteration == 1


def test_one_round_of_updates_is_those_of_its_vector_steps(make: Make) -> None:
    phase = make(config(vector_steps=3, updates_per_step=2))
    phase.collect(0)
    line = phase.update(12)
    assert phase.learner.state_dict()["updates"] == 6
    assert {"critic_loss", "actor_loss", "alpha", "entropy", "q_mean", "learning_rate"} <= set(line)


@pytest.mark.parametrize(("name", "rates"), [
    ("sac", {"actor": 3e-3, "critic": 2e-3, "alpha": 1e-3}), ("dit", {"actor": 3e-3, "critic": 2e-3}),
])  # fmt: skip
def test_every_learning_rate_is_reported_as_it_falls(make: Make, name: str, rates: dict[str, float]) -> None:
    """Half way through the 400 steps of the run, to a half: all rates are three quarters of what they were."""
    phase = make(config(lr_final_fraction=0.5, actor_lr=3e-3, critic_lr=2e-3, alpha_lr=1e-3), name=name)
    for step in range(0, 16, 4):
        phase.collect(step)
    line = phase.update(200)
    shown = {k.removeprefix("learning_rate_"): v for k, v in line.items() if k.startswith("learning_rate_")}
    assert shown == pytest.approx({k: 0.75 * v for k, v in rates.items()})
    assert line["learning_rate"] == shown["actor"]


def test_before_learning_actions_are_uniform_within_the_bounds_of_the_task(make: Make) -> None:
    phase = make(config(learning_starts=10_000, buffer_size=1600))
    for step in range(0, 1600, 4):
        phase.collect(step)
    actions = phase.replay.sample(1500).action
    assert actions.abs().max() <= 1 and abs(actions.var().item() - 1 / 3) < 0.03  # of U(-1, 1)
    seen = phase.actions.to_environment(actions)
    assert 1.9 < seen.max() <= 2.0 and -2.0 <= seen.min() < -1.9
    own = make(config(learning_starts=10_000, warmup=Warmup.policy))
    torch.testing.assert_close(own._explore().shape, torch.Size([4, 2]))


@pytest.mark.parametrize("name", ["sac", "fastsac"])
def test_sac_learns_the_point_task(make: Make, name: str) -> None:
    cfg = config(batch_size=64, updates_per_step=2, buffer_size=4000, gamma=0.8, learning_starts=200)
    cfg.sac.actor_lr = cfg.sac.critic_lr = cfg.sac.alpha_lr = 3e-3
    cfg.sac.alpha_init = 0.05
    cfg.sac.network = SACNetworkConfig(actor_hidden=[32, 32], critic_hidden=[32, 32])
    phase = make(cfg, PointEnv(16), name=name)
    returns = []
    for step in range(0, 16 * 250, 16):
        line = phase.collect(step)
        returns.append(line["return"])
        if phase.updates_per_iteration:
            phase.update(step)
    assert returns[-1] > -2.2 > returns[30]  # random: about -9; straight there: about -1


# --- checkpoints -----------------------------------------------------------------------------------------------------


class Stop(StopFlag):
    """Asks to stop after so many looks."""

    def __init__(self, after: int) -> None:
        super().__init__()
        self.after = after

    def stop_requested(self) -> bool:
        self.after -= 1
        return self.after == 0


@pytest.fixture
def train(world: ParallelContext, tmp_path: Path) -> Callable[..., OffPolicyPhase]:
    def run(name: str, algorithm: str, total: int, saves: bool, cfg: Config | None = None) -> OffPolicyPhase:
        cfg = cfg or config(vector_steps=2)
        cfg.training.save_every = 40
        phase = OffPolicyPhase(cfg, PointEnv(4, saves), world, 120, name=algorithm)
        with RunDir.open(tmp_path / name, "teacher", cfg, load_model("debug_test"), world, ResumeMode.auto) as place:
            manager = CheckpointManager(place.path, 10, world)
            loop = Loop(phase, cfg.training, total, world, place, manager, Stop(-1), False)
            saved = manager.load(place.resume_from) if place.resuming else None
            if saved is not None:
                loop.restore(saved)
            loop.run()
        return phase

    return run


def tensors(phase: OffPolicyPhase) -> dict[str, torch.Tensor]:
    replay = phase.replay.state_dict()
    return {**phase.learner.networks.state_dict(), **replay["rings"], **replay["counters"], **replay["observations"]}


@pytest.mark.parametrize("saves", [True, False], ids=["saved-environments", "environments-begin-afresh"])
@pytest.mark.parametrize("algorithm", ["sac", "dit"])
def test_a_resumed_run_is_the_uninterrupted_one_bit_for_bit(train: Callable, algorithm: str, saves: bool) -> None:
    straight = train("straight", algorithm, 120, saves)
    train("parts", algorithm, 40, saves)
    resumed = train("parts", algorithm, 120, saves)
    one, two = tensors(straight), tensors(resumed)
    assert one.keys() == two.keys() and all(torch.equal(one[k], two[k]) for k in one)
    assert straight.statistics.state_dict()["recent"] == resumed.statistics.state_dict()["recent"]


def test_a_checkpoint_of_another_algorithm_is_refused(train: Callable) -> None:
    train("run", "sac", 40, True)
    with pytest.raises(ValueError, match="is a checkpoint of sac, not of dit"):
        train("run", "dit", 80, True)


def test_acting_greedily_is_deterministic_and_leaves_the_random_stream_alone(make: Make) -> None:
    for name in ("sac", "dit"):
        phase = make(name=name)
        observation = torch.randn(5, 4)
        assert phase.learner.generator is not None
        before = phase.learner.generator.get_state()
        first, second = phase.act(observation), phase.act(observation)
        assert torch.equal(first, second) and first.shape == (5, 2) and first.abs().max() <= 2
        assert torch.equal(before, phase.learner.generator.get_state())


# --- refusals and reports --------------------------------------------------------------------------------------------


def test_discrete_and_unbounded_actions_are_refused_and_bounds_can_be_given(make: Make) -> None:
    with pytest.raises(ValueError, match=r"SAC needs continuous actions .*Discrete\(3\)"):
        make(env=PointEnv(2, action_space=gym.spaces.Discrete(3)))
    unbounded = gym.spaces.Box(-np.inf, np.inf, (2,), np.float32)
    with pytest.raises(ValueError, match=r"FASTSAC needs bounded actions.*set sac\.action_low and sac\.action_high"):
        make(env=PointEnv(2, action_space=unbounded), name="fastsac")
    phase = make(config(action_low=[-2.0], action_high=[1.0, 3.0]), PointEnv(2, action_space=unbounded))
    assert phase.actions.to_environment(torch.ones(1, 2)).tolist() == [[1.0, 3.0]]
    assert phase.actions.to_environment(-torch.ones(1, 2)).tolist() == [[-2.0, -2.0]]
    with pytest.raises(ValueError, match=r"sac\.action_low has 3 entries; give 1 or 2"):
        make(config(action_low=[-1.0] * 3))


def test_a_replay_larger_than_memory_is_refused_with_bytes_and_flag(make: Make) -> None:
    with pytest.raises(ValueError, match=r"needs \d{13,} bytes on cpu, where \d+ bytes are free; lower sac\.buffer"):
        make(config(buffer_size=10**12))


def test_the_replays_of_all_processes_of_a_machine_have_to_fit(
    make: Make, world: ParallelContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A slot of PointEnv is 4 x 4 bytes of observation, 2 x 4 of action, 4 of reward, 2 of flags and 8 of indices;
    4 environments have 101 each of them."""
    needed = 38 * 101 * 4
    monkeypatch.setattr("rl.data.free_memory.free_bytes", lambda device: 2 * needed)
    world.local_world_size = 2
    make(config())
    world.local_world_size = 3
    with pytest.raises(ValueError, match=rf"needs {3 * needed} bytes on cpu \({needed} for each of 3 processes"):
        make(config())


def test_an_unknown_algorithm_names_the_known_ones(make: Make) -> None:
    with pytest.raises(ValueError, match="'ppo' does not learn from replay; there are sac, fastsac, dit"):
        make(name="ppo")


def test_a_gradient_that_is_not_finite_ends_the_run_with_its_batch_at_hand(make: Make) -> None:
    phase = make()
    for step in range(0, 16, 4):
        phase.collect(step)
    phase.replay._rings["reward"].fill_(float("nan"))
    with pytest.raises(NumericalError, match=r"lower|Lower sac\.critic_lr"):
        phase.update(16)
    assert phase.last_batch()["reward"].isnan().all()


def test_atoms_that_do_not_fit_the_returns_are_named_once(
    make: Make, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rl.algorithms.sac.ADVICE_AFTER", 1)
    cfg = config()
    cfg.sac.network.critic_head, cfg.sac.network.num_atoms = CriticHead.c51, 11
    cfg.sac.network.v_min, cfg.sac.network.v_max = -1000.0, 1000.0
    phase = make(cfg)
    with caplog.at_level(logging.WARNING, logger=off_policy_phase.__name__):
        for step in range(0, 40, 4):
            phase.collect(step)
            if phase.updates_per_iteration:
                phase.update(step)
    told = [r.message for r in caplog.records if "atoms" in r.message]
    assert len(told) == 1 and "raise sac.reward_scale, or narrow sac.network.v_min" in told[0]


def test_the_average_of_the_last_ten_returns_is_printed(make: Make, caplog: pytest.LogCaptureFixture) -> None:
    phase = make(config(report_episodes=10, learning_starts=10_000), name="dit")
    with caplog.at_level(logging.INFO, logger=off_policy_phase.__name__):
        for step in range(0, 4 * 24, 4):
            phase.collect(step)
    told = [r.message for r in caplog.records if "average of the last 10 returns" in r.message]
    assert len(told) == 1  # 12 episodes


@pytest.mark.parametrize("name", ["sac", "dit"])
def test_pictures_are_kept_once_a_frame_and_train_the_encoder(make: Make, name: str) -> None:
    phase = make(config(batch_size=8), PicturePointEnv(2), name=name, frame_stack=2)
    assert phase.replay.layout["pixels"].frame == (3, 36, 36)
    encoder = phase.learner.networks.get_parameter(
        "critic.features.encoders.picture_pixels.project.0.weight"
        if name == "sac"
        else "features.encoders.picture_pixels.project.0.weight"
    )
    before = encoder.clone()
    for step in range(0, 40, 2):
        phase.collect(step)
        if phase.updates_per_iteration:
            phase.update(step)
    assert not torch.equal(before, encoder)
    rows = phase.replay.sample(30)
    assert isinstance(rows.observation, dict) and isinstance(rows.next_observation, dict)
    newest = (128 + 40 * rows.next_observation["state"][:, 0]).clamp(0, 255).to(torch.uint8)
    assert torch.equal(rows.next_observation["pixels"][:, 3, 0, 0], newest)
    now = (128 + 40 * rows.observation["state"][:, 0]).clamp(0, 255).to(torch.uint8)
    assert torch.equal(rows.next_observation["pixels"][:, 0, 5, 5], now)  # the older frame


def test_an_exported_diffusion_policy_gives_the_first_of_the_actions_that_compete(make: Make, tmp_path: Path) -> None:
    cfg = config()
    cfg.diffusion.denoising_steps = cfg.diffusion.train_passes = 2
    phase = make(cfg, ArmReach(4), name="dit")
    nets = phase.learner.networks
    assert isinstance(nets, DiffusionNetworks)
    for p in nets.average.parameters():
        torch.nn.init.normal_(p, std=0.2)
    policy = policies.exportable(phase)
    found = policy_export.export(policy, phase.env, tmp_path)
    assert found["torchscript"] <= 1e-5 and found["onnx"] <= 1e-5
    rows = torch.randn(7, 21)
    alone = torch.jit.load(str(tmp_path / "policy.pt"))(rows)
    nets.greedy_noise = nets.greedy_noise[:, :1]
    torch.testing.assert_close(alone, phase.greedy(rows))
