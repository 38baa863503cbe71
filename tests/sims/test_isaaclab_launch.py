"""How an Isaac Lab task is started and refused, and where its robots come from; tests/isaaclab has the real one."""

import contextlib
import importlib.util
import logging
import os
import sys
from collections.abc import Iterator
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
from rl.sims import isaaclab_assets, isaaclab_launch
from rl.sims.isaaclab_robots import ANT, CARTPOLE, PANDA
from rl.training import train_rl
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


@pytest.mark.parametrize("found", ["2.3.0", "0.47.2"])  # the package of Isaac Lab 2.3 counts on its own
def test_an_isaac_lab_before_3_is_refused_with_the_command(found: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(isaaclab_launch, "version", lambda name: found)
    with pytest.raises(ValueError, match=rf"is {found}, and Isaac Lab 3\.0 or newer .*bash setup\.sh isaaclab"):
        registry.make_vector_env("Isaac-Ant-Direct", 4)


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
