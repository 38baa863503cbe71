"""How an Isaac Lab task is started and refused, and where its robots come from; tests/isaaclab has the real one."""

import contextlib
import importlib.util
import logging
import os
import runpy
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from xml.etree import ElementTree

import gymnasium as gym
import pytest
import torch

from rl.config import IsaacLabConfig, SupervisionConfig, load
from rl.data import free_memory
from rl.envs import registry
from rl.envs.registry import TaskOptions
from rl.sims import asset_cache, isaaclab_assets, isaaclab_launch
from rl.sims.isaaclab_robots import ANT, CARTPOLE, PANDA
from rl.training import cli, play, train_rl
from tests.sims.fake_isaaclab import FakeIsaacEnv
from tests.training.run_here import run_here

INSTALLED = importlib.util.find_spec("isaaclab") is not None


@pytest.mark.skipif(INSTALLED, reason="Isaac Lab is installed in this environment")
def test_a_missing_installation_is_answered_with_the_command() -> None:
    with pytest.raises(ValueError, match=r"bash setup\.sh isaaclab"):
        registry.check_task("Isaac-Cartpole-Direct")
    with pytest.raises(ValueError, match=r"bash setup\.sh isaaclab"):
        registry.make_vector_env("Isaac-Ant-Direct", 4)


def test_isaac_lab_does_not_run_in_supervised_processes() -> None:
    with pytest.raises(ValueError, match=r"environment\.isolation=sync"):
        registry.make_vector_env("Isaac-Ant-Direct", 4, options=TaskOptions(processes=SupervisionConfig()))


class TestStarting:
    """Isaac Lab's part is replaced: nothing of it is imported."""

    @pytest.fixture
    def closed(self, monkeypatch: pytest.MonkeyPatch) -> list[str]:
        """What of the runtime was closed; `isaaclab` seems to be there in version 3."""
        done: list[str] = []

        @contextlib.contextmanager
        def launch_simulation(cfg: Any, args: dict[str, Any]) -> Iterator[None]:
            try:
                yield
            finally:
                done.append("runtime")

        launcher = SimpleNamespace(launch_simulation=launch_simulation)
        monkeypatch.setitem(sys.modules, "isaaclab", SimpleNamespace())
        monkeypatch.setitem(sys.modules, "isaaclab.app", SimpleNamespace(sim_launcher=launcher))
        monkeypatch.setitem(sys.modules, "isaaclab.app.sim_launcher", launcher)
        monkeypatch.setattr(isaaclab_launch, "version", lambda name: "3.0.0")
        monkeypatch.setattr(isaaclab_launch, "choose_asset_root", lambda given: "robots of a test")
        cfg = SimpleNamespace(sim=SimpleNamespace(device="cpu"))
        monkeypatch.setattr(isaaclab_launch, "configured", lambda *_: cfg)
        return done

    @staticmethod
    def making(monkeypatch: pytest.MonkeyPatch, made: FakeIsaacEnv | Exception) -> None:
        def make(task: str, cfg: Any) -> Any:
            if isinstance(made, Exception):
                raise made
            return SimpleNamespace(unwrapped=made)

        monkeypatch.setattr(isaaclab_launch.gym, "make", make)

    def test_closing_the_environment_closes_the_runtime(
        self, closed: list[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        fake = FakeIsaacEnv()
        self.making(monkeypatch, fake)
        env = registry.make_vector_env("Isaac-Ant-Direct", 3)
        assert (fake.closed, closed) == (0, [])
        env.close()
        assert (fake.closed, closed) == (1, ["runtime"])

    def test_an_environment_that_cannot_be_made_leaves_no_runtime(
        self, closed: list[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        self.making(monkeypatch, FileNotFoundError("ant.usd"))
        with pytest.raises(ValueError, match=r"ant\.usd.*isaaclab\.asset_root"):
            registry.make_vector_env("Isaac-Ant-Direct", 3)
        assert closed == ["runtime"]

    def test_an_environment_that_does_not_fit_is_closed_with_its_runtime(
        self, closed: list[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        fake = FakeIsaacEnv()
        fake.single_observation_space = gym.spaces.Dict({"policy": gym.spaces.Discrete(3)})
        self.making(monkeypatch, fake)
        with pytest.raises(ValueError, match="are no Box"):
            registry.make_vector_env("Isaac-Ant-Direct", 3)
        assert (fake.closed, closed) == (1, ["runtime"])

    @pytest.mark.parametrize("cuda", [False, True])
    def test_memory_that_runs_out_in_the_simulator_is_answered_with_what_to_lower(
        self, cuda: bool, closed: list[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        warp = RuntimeError("Failed to allocate 9663676416 bytes on device 'cpu'")
        self.making(monkeypatch, torch.OutOfMemoryError("CUDA out of memory. Tried 2 GiB.") if cuda else warp)
        with pytest.raises(ValueError, match=r"3 environments of Isaac-Ant-Direct do not fit .*--num_envs"):
            registry.make_vector_env("Isaac-Ant-Direct", 3)
        assert closed == ["runtime"]

    def test_another_error_of_the_simulator_is_a_crash(
        self, closed: list[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        self.making(monkeypatch, RuntimeError("no such joint"))
        with pytest.raises(RuntimeError, match="no such joint"):
            registry.make_vector_env("Isaac-Ant-Direct", 3)

    def test_more_environments_than_memory_end_the_command_with_4_before_anything_starts(
        self, closed: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capfd: pytest.CaptureFixture[str]
    ) -> None:
        self.making(monkeypatch, RuntimeError("must not be reached"))
        argv = ["--task", "Isaac-Ant-Direct", "--device", "cpu", "--num_envs", "900000000"]
        assert run_here(train_rl.main, [*argv, "--output_dir", str(tmp_path / "run")], "rl") == 4
        said = capfd.readouterr().err
        assert "900000000 environments of Isaac-Ant-Direct needs" in said and "lower rl.num_envs" in said
        assert closed == []

    def test_a_run_that_is_continued_goes_on_in_the_tasks_curriculum(
        self, closed: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        argv = [
            "--task", "Isaac-Ant-Direct", "--algorithm", "PPO", "--device", "cpu", "--num_envs", "4", "--auto_resume",
            "--output_dir", str(tmp_path / "run"), "ppo.n_steps=8", "ppo.network.hidden=[8]", "rl.eval_episodes=4",
            "rl.final_episodes=4", "rl.save_every=2", "rl.eval_every=1", "logging.tensorboard=false",
        ]  # fmt: skip
        for iterations in (2, 4):
            fake = FakeIsaacEnv(num_envs=4)
            self.making(monkeypatch, fake)
            assert run_here(train_rl.main, [*argv, "--max_iterations", str(iterations)], "rl") == 0
            assert fake.common_step_counter == iterations * 8
            assert len(fake.sent) > 2 * 8  # evaluations step it, too
            assert fake.closed == 1

    def test_other_robots_than_those_of_the_training_are_said_when_it_goes_on_and_when_it_is_played(
        self, closed: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capfd: pytest.CaptureFixture[str]
    ) -> None:
        argv = [
            "--task", "Isaac-Ant-Direct", "--algorithm", "PPO", "--device", "cpu", "--num_envs", "4", "--auto_resume",
            "--output_dir", str(tmp_path / "run"), "ppo.n_steps=8", "ppo.network.hidden=[8]", "rl.eval_episodes=4",
            "rl.final_episodes=4", "rl.save_every=2", "logging.tensorboard=false",
        ]  # fmt: skip

        def said(robots: str, entry: Callable[[cli.Args], None], phase: str, *words: str) -> str:
            monkeypatch.setenv(isaaclab_assets.VARIABLE, robots)
            self.making(monkeypatch, FakeIsaacEnv(num_envs=1 if phase == "play" else 4))
            assert run_here(entry, [*words], phase) == 0
            err = capfd.readouterr().err
            return next((line for line in err.splitlines() if "WARNING" in line and "robots" in line), "")

        ours = str(isaaclab_assets.offline_place())
        assert said(ours, train_rl.main, "rl", *argv, "--max_iterations", "2") == ""
        assert said(ours, train_rl.main, "rl", *argv, "--max_iterations", "4") == ""
        for place in ("run", "run/best_model.pt"):
            played = ["--checkpoint", str(tmp_path / place), "--steps", "3", "--device", "cpu"]
            assert said(ours, play.main, "play", *played) == ""
            warning = said("", play.main, "play", *played)
            assert "trained with robots of this project" in warning and "are robots of NVIDIA's server" in warning
            assert "isaaclab.asset_root" in warning and isaaclab_assets.VARIABLE in warning
        warning = said("/mine", train_rl.main, "rl", *argv, "--max_iterations", "6")
        assert "trained with robots of this project" in warning and "are robots in /mine" in warning

    def test_settings_that_do_not_fit_the_task_leave_nothing_open(
        self, closed: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capfd: pytest.CaptureFixture[str]
    ) -> None:
        fake = FakeIsaacEnv(num_envs=4)
        fake.single_action_space = gym.spaces.Discrete(2)
        self.making(monkeypatch, fake)
        argv = ["--task", "Isaac-Ant-Direct", "--algorithm", "FASTSAC", "--num_envs", "4", "--device", "cpu"]
        assert run_here(train_rl.main, [*argv, "--output_dir", str(tmp_path / "run")], "rl") == 4
        assert "FASTSAC" in capfd.readouterr().err
        assert (fake.closed, closed) == (1, ["runtime"])

    def test_processes_of_one_machine_share_its_memory(
        self, closed: list[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(free_memory, "free_bytes", lambda device: 7 * isaaclab_launch.BYTES_PER_ENV)
        self.making(monkeypatch, FakeIsaacEnv())
        registry.make_vector_env("Isaac-Ant-Direct", 3, options=TaskOptions(local_processes=2)).close()
        with pytest.raises(ValueError, match=r"lower rl\.num_envs"):
            registry.make_vector_env("Isaac-Ant-Direct", 3, options=TaskOptions(local_processes=3))


class TestStartingInIsaacSim:
    """Isaac Lab 2.3, replaced by what of its interface is used."""

    @pytest.fixture
    def started(self, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
        """What Isaac Sim was started with and saw; how often it was closed."""
        seen: dict[str, Any] = {"closed": 0}

        class AppLauncher:
            def __init__(self, arguments: dict[str, Any]) -> None:
                assert "isaaclab_tasks" not in sys.modules  # they can be imported only then
                for taken in (signal.SIGINT, signal.SIGTERM):
                    signal.signal(taken, lambda *_: self.close())
                seen.update(arguments=arguments, argv=list(sys.argv))
                tasks = SimpleNamespace(utils=SimpleNamespace(parse_env_cfg=parse_env_cfg))
                monkeypatch.setitem(sys.modules, "isaaclab_tasks", tasks)
                monkeypatch.setitem(sys.modules, "isaaclab_tasks.utils", tasks.utils)
                self.app = self

            def close(self) -> None:
                seen["closed"] += 1

        def parse_env_cfg(task: str, device: str, num_envs: int) -> Any:
            return DirectRLEnvCfg() if task == "Isaac-Ant-Direct-v0" else object()

        class DirectRLEnvCfg:
            seed: int | None = None

        class ManagerBasedRLEnvCfg:
            pass

        envs = SimpleNamespace(DirectRLEnvCfg=DirectRLEnvCfg, ManagerBasedRLEnvCfg=ManagerBasedRLEnvCfg)
        app = SimpleNamespace(AppLauncher=AppLauncher)
        for name, module in {"isaaclab": SimpleNamespace(), "isaaclab.app": app, "isaaclab.envs": envs}.items():
            monkeypatch.setitem(sys.modules, name, module)
        monkeypatch.delitem(sys.modules, "isaaclab_tasks", raising=False)
        monkeypatch.setattr(isaaclab_launch, "version", lambda name: "2.3.2")
        registry = {"Isaac-Ant-Direct-v0": None, "Isaac-Shadow-Hand-Over-Direct-v0": None}
        monkeypatch.setattr(isaaclab_launch.gym, "registry", registry)
        return seen

    @staticmethod
    def making(monkeypatch: pytest.MonkeyPatch) -> FakeIsaacEnv:
        fake: Any = FakeIsaacEnv(final_obs=False)
        fake.sim = SimpleNamespace(_disable_app_control_on_stop_handle=False)

        def make(task: str, cfg: Any) -> Any:
            fake.seed = cfg.seed
            return SimpleNamespace(unwrapped=fake)

        monkeypatch.setattr(isaaclab_launch.gym, "make", make)
        return fake

    def test_it_starts_first_and_closes_last_and_never_shows_a_window(
        self, started: dict[str, Any], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        fake: Any = self.making(monkeypatch)
        env = registry.make_vector_env("Isaac-Ant-Direct-v0", 3, seed=7)
        assert started["arguments"] == {"headless": True, "device": "cpu", "fast_shutdown": False}
        assert fake.seed == 7
        assert fake.sim._disable_app_control_on_stop_handle  # else closing waits for ever
        env.reset(0)
        assert env.step(torch.zeros(3, 1)).observation.shape == (3, 2)  # type: ignore[union-attr]
        assert (fake.closed, started["closed"]) == (0, 0)
        env.close()
        assert (fake.closed, started["closed"]) == (1, 1)

    def test_our_signals_and_our_command_line_stay_ours(
        self, started: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        self.making(monkeypatch)
        monkeypatch.setattr(sys, "argv", ["train_rl.py", "--task", "Isaac-Ant-Direct-v0"])
        before = [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)]
        options = TaskOptions(isaaclab=IsaacLabConfig(asset_root=str(tmp_path)))
        registry.make_vector_env("Isaac-Ant-Direct-v0", 3, options=options).close()
        assert [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)] == before
        assert started["argv"] == ["train_rl.py", f"--/persistent/isaac/asset_root/cloud={tmp_path}"]
        assert sys.argv == ["train_rl.py", "--task", "Isaac-Ant-Direct-v0"]

    @pytest.mark.parametrize(
        ("task", "said"),
        [
            ("Isaac-Ant-Drect-v0", "Isaac-Ant-Direct-v0"),
            ("Isaac-Shadow-Hand-Over-Direct-v0", "no task for one policy"),
        ],
    )
    def test_a_refused_task_leaves_no_simulator(
        self, task: str, said: str, started: dict[str, Any], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        self.making(monkeypatch)
        with pytest.raises(ValueError, match=said):
            registry.make_vector_env(task, 3)
        assert started["closed"] == 1

    def test_its_numbered_tasks_are_trained_with_the_settings_of_the_task(self) -> None:
        cfg = load(None, ["rl.task=Isaac-Ant-Direct-v0", "rl.algorithm=PPO"], run="rl")
        assert cfg.ppo.network.hidden == load(None, ["rl.task=Isaac-Ant-Direct"], run="rl").ppo.network.hidden


def test_a_task_that_needs_isaac_sim_names_the_version_that_goes_with_the_installed_isaac_lab(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    launcher = SimpleNamespace(scan=lambda cfg, args: SimpleNamespace(needs_kit=True))
    monkeypatch.setitem(sys.modules, "isaaclab.app.sim_launcher", launcher)
    for name in ("isaaclab", "isaaclab.app"):
        monkeypatch.setitem(sys.modules, name, SimpleNamespace())
    monkeypatch.setattr(isaaclab_launch.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(isaaclab_launch, "version", lambda name: "3.0.7")
    with pytest.raises(ValueError, match="RTX GPU") as refused:
        isaaclab_launch.refuse_without_isaac_sim("Isaac-Ant-Direct", object())
    command = "-m pip install 'isaaclab[isaacsim]==3.0.7' --extra-index-url https://pypi.nvidia.com"
    assert f"{sys.executable} {command}" in str(refused.value)


def test_a_bad_limit_of_actions_is_refused() -> None:
    with pytest.raises(ValueError, match=r"isaaclab\.action_limit"):
        load(None, ["isaaclab.action_limit=0"])
    assert load(None, ["isaaclab.action_limit=null"]).isaaclab == IsaacLabConfig(action_limit=None)


class TestAssetRoot:
    def test_a_given_folder_wins_and_must_exist(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv(isaaclab_assets.VARIABLE, "elsewhere")
        isaaclab_assets.choose_asset_root(str(tmp_path))
        assert os.environ[isaaclab_assets.VARIABLE] == str(tmp_path)
        with pytest.raises(ValueError, match=r"isaaclab\.asset_root"):
            isaaclab_assets.choose_asset_root(str(tmp_path / "nowhere"))

    def test_the_variable_is_left_as_it_is(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv(isaaclab_assets.VARIABLE, "elsewhere")
        assert "elsewhere" in isaaclab_assets.choose_asset_root(None)

    @pytest.mark.parametrize("answers", [True, False])
    def test_our_robots_are_used_only_where_the_server_does_not_answer(
        self, answers: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.delenv(isaaclab_assets.VARIABLE, raising=False)
        monkeypatch.setattr(isaaclab_assets, "server", lambda: "assets.example")
        monkeypatch.setattr(isaaclab_assets, "reachable", lambda host: answers)
        monkeypatch.setattr(isaaclab_assets, "offline_root", lambda: tmp_path)
        said = isaaclab_assets.choose_asset_root(None)
        chosen = os.environ.get(isaaclab_assets.VARIABLE)
        monkeypatch.delenv(isaaclab_assets.VARIABLE, raising=False)
        assert chosen == (None if answers else str(tmp_path))
        assert ("robots of this project" in said) is not answers

    def test_an_installation_that_names_no_server_is_said(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        monkeypatch.setenv(isaaclab_assets.VARIABLE, "")
        monkeypatch.setattr(isaaclab_assets, "server", lambda: None)
        monkeypatch.setattr(isaaclab_assets, "offline_root", lambda: tmp_path)
        with caplog.at_level(logging.WARNING):
            assert "does not say where" in isaaclab_assets.choose_asset_root(None)
        assert "isaaclab.asset_root" in caplog.text

    def test_the_module_builds_the_offline_folder_and_prints_where_it_is(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        monkeypatch.setattr(asset_cache, "CACHE_DIR", tmp_path)
        offline_place = isaaclab_assets.offline_place()
        offline_place.mkdir()
        runpy.run_path(isaaclab_assets.__file__, run_name="__main__")
        assert capsys.readouterr().out == f"{offline_place}\n"

    def test_nobody_answers_at_a_closed_port(self) -> None:
        assert not isaaclab_assets.reachable("127.0.0.1", 9)


def test_robots_have_the_names_that_the_tasks_look_up() -> None:
    def names(text: str, kind: str) -> set[Any]:
        return {e.get("name") for e in ElementTree.fromstring(text).iter(kind)}

    assert names(CARTPOLE, "joint") == {"slider_to_cart", "cart_to_pole"}
    legs = [
        f"{leg}_{part}" for leg in ("front_left", "front_right", "left_back", "right_back") for part in ("leg", "foot")
    ]
    assert names(ANT, "joint") == set(legs)
    assert names(ANT, "body") == {"torso", *legs}
    fingers = {"panda_finger_joint1", "panda_finger_joint2"}
    assert names(PANDA, "joint") == {f"panda_joint{i}" for i in range(1, 8)} | fingers
    assert {"panda_hand", "panda_link0", "panda_link7"} <= names(PANDA, "body")
    # A joint whose name a shape has, too, is renamed by the converter.
    for robot in (CARTPOLE, ANT, PANDA):
        assert not names(robot, "joint") & names(robot, "geom")
