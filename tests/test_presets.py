"""Presets of algorithms and tasks, and how they are merged."""

import re
from pathlib import Path

import pytest

from rl import config as C
from rl.config import presets

REPO = Path(__file__).resolve().parents[1]
NAMES = sorted(p.stem for p in (C.CONFIG_DIR / "algo").glob("*.yaml"))


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A configuration folder with one algorithm and one task preset."""
    for name, text in {
        "algo/ppo_reach.yaml": "ppo: {n_steps: 11, gamma: 0.5, num_envs: 3}\n",
        "task/ArmReach-v1.yaml": "ppo: {gamma: 0.6, n_epochs: 4}\narm: {eval_episodes: 7}\n",
        "task/ArmReach-v1.ppo.yaml": "ppo: {n_epochs: 5}\n",
        "mine.yaml": "ppo: {n_steps: 2, clip_range: 0.4}\n",
    }.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.setattr(presets, "CONFIG_DIR", tmp_path)
    return tmp_path


def test_defaults_file_algorithm_task_and_command_line_win_in_this_order(folder: Path) -> None:
    config = C.load(folder / "mine.yaml", ["ppo.num_envs=9"], "arm")
    assert config.ppo.clip_range == 0.4  # file over defaults
    assert config.ppo.n_steps == 11  # algorithm over file
    assert (config.ppo.gamma, config.arm.eval_episodes) == (0.6, 7)  # task over algorithm
    assert config.ppo.n_epochs == 5  # task and algorithm over task
    assert config.ppo.num_envs == 9  # command line over all
    assert C.load(folder / "mine.yaml").ppo.n_steps == 2  # without a run there are no presets


def test_a_preset_chosen_by_name_is_not_changed_by_what_is_tuned_for_task_and_algorithm(folder: Path) -> None:
    config = C.load(folder / "mine.yaml", ["arm.preset=ppo_reach"], "arm")
    assert (config.ppo.gamma, config.ppo.n_epochs) == (0.6, 4)


def test_the_number_of_environments_goes_to_the_block_of_the_algorithm(folder: Path) -> None:
    assert C.load(folder / "mine.yaml", ["arm.num_envs=5"], "arm").ppo.num_envs == 5
    assert C.load(folder / "mine.yaml", ["arm.compile=false", "ppo.compile=true"], "arm").ppo.compile is False


def test_an_unknown_preset_or_algorithm_names_the_nearest_one(folder: Path) -> None:
    with pytest.raises(ValueError, match=r"arm\.preset 'ppo_reech' is unknown; did you mean ppo_reach\?"):
        C.load(None, ["arm.preset=ppo_reech"], "arm")
    with pytest.raises(ValueError, match=r"arm\.algorithm 'FASTSACK' is unknown; did you mean FASTSAC"):
        C.load(None, ["arm.algorithm=FASTSACK"], "arm")


@pytest.mark.parametrize("name", NAMES)
def test_every_preset_of_an_algorithm_loads(name: str) -> None:
    assert isinstance(C.load(None, [f"rl.preset={name}"], "rl"), C.Config)


@pytest.mark.parametrize("algorithm", C.ALGORITHMS)
def test_every_algorithm_has_its_presets(algorithm: str) -> None:
    for run in ("arm", "rl"):
        files = presets.preset_files(run, C.load(None, [f"{run}.algorithm={algorithm}"]))
        assert files[0].is_file()


@pytest.mark.parametrize(
    ("task", "name"),
    [
        ("ArmReach-v1", "fastsac_reach"), ("VisionArmReach-v1", "fastsac_reach"), ("Pendulum-v1", "fastsac"),
        ("Humanoid-v5", "fastsac"), ("Isaac-Ant-Direct", "fastsac_loco"), ("IsaacContrib-Walk-v0", "fastsac_loco"),
    ],
)  # fmt: skip
def test_fastsac_fills_a_gpu_with_environments_only_for_isaac_labs_tasks(task: str, name: str) -> None:
    config = C.load(None, ["rl.algorithm=FASTSAC", f"rl.task={task}"])
    assert presets.preset_files("rl", config)[0].stem == name


DOCUMENTED = sorted(
    {task for task in re.findall(r"--task (\S+)", (REPO / "docs" / "isaaclab.md").read_text()) if "Isaac" in task}
)


@pytest.mark.parametrize("algorithm", ["PPO", "FASTSAC"])
@pytest.mark.parametrize("task", DOCUMENTED)
def test_every_isaac_lab_task_of_the_docs_has_settings_that_a_cpu_can_run(task: str, algorithm: str) -> None:
    chosen = C.load(None, [f"rl.task={task}", f"rl.algorithm={algorithm}"], "rl")
    assert f"{task}.{algorithm.lower()}.yaml" in [p.name for p in presets.preset_files("rl", chosen)]
    block = getattr(chosen, C.BLOCKS[algorithm])
    assert block.num_envs == 256
    assert not block.compile


def test_the_docs_show_isaac_labs_direct_and_manager_based_tasks() -> None:
    assert {"Isaac-Ant-Direct", "Isaac-Cartpole-Direct", "Isaac-Reach-Franka"} <= set(DOCUMENTED)


def test_the_general_fastsac_preset_is_for_a_laptop_and_any_returns() -> None:
    sac = C.load(None, ["rl.algorithm=FASTSAC", "rl.task=Pendulum-v1"], "rl").sac
    assert (sac.num_envs, sac.batch_size, sac.updates_per_step) == (32, 256, 4)
    assert not sac.compile and not sac.amp
    assert sac.network.critic_head is C.CriticHead.scalar  # atoms would want a range
    assert (sac.network.norm, sac.target_reduce) == (C.NetworkNorm.layernorm, C.TargetReduce.own)


@pytest.mark.parametrize("run", ["arm", "rl"])
def test_published_qvpo_is_chosen_by_name_under_both_commands(run: str) -> None:
    dit = C.load(None, [f"{run}.algorithm=DIT", f"{run}.preset=qvpo"], run).diffusion
    assert (dit.train_samples, dit.act_samples, dit.eval_samples) == (64, 4, 32)
    assert (dit.entropy_actions, dit.entropy_weight, dit.entropy_weight_final) == (10, 0.02, 0.002)
    assert (dit.nearby_samples, dit.noise, dit.denoising_steps, dit.train_passes) == (0, 0.0, 20, 20)
    assert (dit.actor_lr, dit.critic_lr, dit.tau, dit.ema_tau) == (1e-4, 3e-4, 0.005, 0.005)
    assert (dit.num_envs, dit.updates_per_step, dit.learning_starts, dit.gamma) == (1, 1, 10_000, 0.99)


def test_rsl_rl_sends_isaac_labs_tasks_actions_without_a_limit_and_others_keep_theirs() -> None:
    task = "rl.task=Isaac-Cartpole-Direct"
    assert C.load(None, [task, "rl.preset=rsl_rl"], "rl").isaaclab.action_limit is None
    assert C.load(None, [task, "rl.preset=rsl_rl", "isaaclab.action_limit=2"], "rl").isaaclab.action_limit == 2
    assert C.load(None, [task], "rl").isaaclab.action_limit == 1


def test_published_ppo_for_atari_is_a_preset() -> None:
    config = C.load(None, ["rl.preset=ppo37_atari"], "rl")
    ppo = config.ppo
    assert (ppo.num_envs, ppo.n_steps, ppo.num_minibatches, ppo.n_epochs) == (8, 128, 4, 4)
    assert (ppo.learning_rate, ppo.schedule, ppo.final_lr_fraction) == (2.5e-4, C.LearningRate.linear, 0.0)
    assert (ppo.clip_range, ppo.value_clip, ppo.entropy_coef, ppo.value_coef) == (0.1, 0.1, 0.01, 0.5)
    assert (ppo.gamma, ppo.gae_lambda, ppo.max_grad_norm, ppo.optimizer_eps) == (0.99, 0.95, 0.5, 1e-5)
    assert (ppo.network.encoder, ppo.network.cnn_width, ppo.network.hidden) == (C.Encoder.cnn, 512, [])
    assert config.atari == C.AtariConfig(30, 4, True, True, 84, True, 4)
    assert config.rl.max_iterations == 10_000_000 // (8 * 128)


def test_settings_that_exclude_each_other_are_refused() -> None:
    with pytest.raises(ValueError, match="choose one"):
        C.load(None, ["arm.vision=true", "arm.physics=true"], "arm")
    with pytest.raises(ValueError, match="reach_bonus"):
        C.load(None, ["arm.vision=true", "arm.reach_bonus=true"], "arm")
    with pytest.raises(ValueError, match=r"arm\.privileged_critic is for arm\.vision"):
        C.load(None, ["arm.privileged_critic=true"], "arm")
    reach = ["rl.task=VisionArmReach-v1", "arm.reach_bonus=true"]
    with pytest.raises(ValueError, match=r"arm\.reach_bonus needs a flag .*, which VisionArmReach-v1 does not have"):
        C.load(None, reach, "rl")
    with pytest.raises(ValueError, match=r"arm\.privileged_critic .*VisionArmReach-v1"):
        C.load(None, ["rl.task=ArmReach-v1", "arm.privileged_critic=true"], "rl")
    with pytest.raises(ValueError, match=r"rl\.save_every_episodes is 0; it must be at least 1"):
        C.load(None, ["rl.save_every_episodes=0"], "rl")
    with pytest.raises(ValueError, match=r"atari\.screen_size is 20; it must be at least 36"):
        C.load(None, ["atari.screen_size=20"], "rl")
    with pytest.raises(ValueError, match=r"arm\.image_size is 20 px"):
        C.load(None, ["arm.image_size=20"], "arm")


def test_intervals_of_rl_are_shares_of_the_run_unless_given() -> None:
    config = C.load(None, ["rl.max_iterations=1001", "rl.save_every=7"])
    assert C.intervals(config, "rl") == C.Intervals(1001, 7, 6, 101)
    assert C.intervals(config, "arm") == C.Intervals(100_000, 20_000, 2_000, 20_000)
