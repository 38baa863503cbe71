"""The documented public surface: names, signatures, and batches built one step at a time."""

import inspect
from collections.abc import Iterator

import numpy as np
import pytest
import torch

from f1_vla.builders import build_policy
from f1_vla.policy import F1Policy
from rl.config import Config, EnvironmentConfig, environment_from_dict, load_model
from rl.data.episode_buffer import EpisodeBuffer, WindowIndex
from rl.f1_rl_env import TeacherEnv
from rl.normalizers import Normalizer
from rl.training import rl_training_common as common
from rl.training.rl_training_common import BatchBuilder, MemoryStateManager
from rl.training.world_model_data import WorldModelData
from rl.types import EpisodeRecord, Observation

STEPS = 6


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("get_physical_gpu_id", ["accelerator"]),
        ("setup_sapien_gpu", ["gpu_id"]),
        ("load_rl_config", ["path"]),
        ("get_training_config", ["config"]),
        ("get_environment_config", ["config"]),
        (
            "set_policy_requires_grad",
            ["policy", "freeze_vision_encoder", "freeze_gen_expert", "train_act_expert_only", "train_gen_expert_only"],
        ),
        ("setup_optimizer", ["policy", "lr", "weight_decay"]),
        ("setup_scheduler", ["optimizer", "scheduler_type", "T_max", "eta_min"]),
        ("BatchBuilder.build_batch", ["self", "transitions", "include_memory_states"]),
        ("MemoryStateManager.reset", ["self"]),
        ("MemoryStateManager.update", ["self", "state"]),
        ("MemoryStateManager.get_current", ["self"]),
    ],
)
def test_a_public_name_takes_the_documented_parameters_first(name: str, parameters: list[str]) -> None:
    target = common
    for part in name.split("."):
        target = getattr(target, part)
    assert name.split(".")[0] in common.__all__
    signature = inspect.signature(target).parameters  # type: ignore[arg-type]
    assert list(signature)[: len(parameters)] == parameters
    assert all(p.default is not p.empty for p in list(signature.values())[len(parameters) :])


def test_optional_parameters_have_the_documented_defaults() -> None:
    assert inspect.signature(common.get_physical_gpu_id).parameters["accelerator"].default is None
    assert inspect.signature(common.setup_sapien_gpu).parameters["gpu_id"].default is None
    assert inspect.signature(BatchBuilder.build_batch).parameters["include_memory_states"].default is True


def test_the_configuration_can_be_read_by_attribute_and_taken_apart() -> None:
    config = common.load_rl_config(overrides=["training.seed=5", "environment.num_objects=4"])
    assert config.training.seed == 5 and config["environment"]["num_objects"] == 4
    training = common.get_training_config(config)
    assert training.seed == 5 and type(training) is type(Config().training)
    block = common.get_environment_config(config)
    assert type(block) is dict and environment_from_dict(block) == EnvironmentConfig(num_objects=4)


# --- memory ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def policy() -> F1Policy:
    torch.manual_seed(0)
    return build_policy(load_model("debug_test")).eval()


def test_an_empty_memory_manager_raises_instead_of_inventing_a_state(policy: F1Policy) -> None:
    with pytest.raises(ValueError, match=r"MemoryStateManager is empty: call reset\(\)"):
        MemoryStateManager(policy).get_current()


def test_the_memory_manager_resets_to_zeros_and_keeps_states_without_their_history(policy: F1Policy) -> None:
    manager = MemoryStateManager(policy, batch_size=3)
    zeros = manager.reset()
    assert zeros.shape == policy.initial_memory_state(3).shape and not zeros.any()
    state = torch.randn_like(zeros).requires_grad_()
    manager.update(state * 2)
    assert torch.equal(manager.get_current(), (state * 2).detach()) and not manager.get_current().requires_grad
    assert not manager.reset().any()


@pytest.mark.parametrize("shape", [None, (2, 16), (2, 4, 16)])
def test_the_memory_manager_refuses_none_and_other_shapes(policy: F1Policy, shape: tuple[int, ...] | None) -> None:
    manager = MemoryStateManager(policy, batch_size=3)
    kept = manager.reset()
    with pytest.raises(ValueError, match=r"MemoryStateManager\.update"):
        manager.update(None if shape is None else torch.zeros(shape))  # type: ignore[arg-type]
    assert manager.get_current() is kept


# --- batches ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def played() -> Iterator[tuple[list[Observation], EpisodeRecord]]:
    """Observations of one episode as an environment gives them, and the same episode as the collector records it."""
    env = TeacherEnv(EnvironmentConfig(num_objects=2), max_steps=STEPS)
    rng, actions = np.random.default_rng(0), []
    observations = [env.reset()[0]]
    for _ in range(STEPS):
        observation, _, _, _, info = env.step(rng.uniform(-1, 1, 32).astype(np.float32))
        observations.append(observation)
        actions.append(info["executed_action"])
    env.close()

    def stack(key: str) -> np.ndarray:
        return np.stack([o[key] for o in observations])

    wrist = np.stack([o["image0_history"][-1] for o in observations])
    record = EpisodeRecord(stack("image0"), wrist, stack("image1"), stack("state"), np.stack(actions), 0, 0)
    yield observations, record


def _states(record: EpisodeRecord) -> Normalizer:
    states = Normalizer(torch.arange(32) < 25)
    states.update(torch.from_numpy(record.states))
    return states


def test_an_instruction_that_would_be_cut_is_refused(policy: F1Policy) -> None:
    states = Normalizer(torch.arange(32) < 25)
    for make in (BatchBuilder, lambda *a: WorldModelData(*a, cache_vision=True)):
        with pytest.raises(ValueError, match="has 26 tokens, tokenizer_max_length is"):
            make(policy, states, "explore the table, please")


def test_a_batch_of_observations_equals_the_windows_of_the_buffer(
    policy: F1Policy, played: tuple[list[Observation], EpisodeRecord]
) -> None:
    observations, record = played
    states = _states(record)
    data = WorldModelData(policy, states, "explore the table", cache_vision=True)
    buffer = EpisodeBuffer(1, policy.cfg.n_obs_img_steps, policy.cfg.obs_img_stride)
    buffer.add(data.encode(record, 0))
    window = data.batch(buffer.gather(WindowIndex([0], [0], STEPS, 0)), torch.ones(1, dtype=torch.bool))
    built, h = BatchBuilder(policy, states, "explore the table").build_batch(observations[:STEPS])
    assert h is not None and torch.equal(h, policy.initial_memory_state(STEPS))
    assert (built.size, built.steps) == (STEPS, 1)

    def steps_of(name: str) -> torch.Tensor:
        return getattr(window, name)[0]

    for name in ("history_ids", "history_mask", "camera_mask"):
        assert torch.equal(getattr(built, name)[:, 0], steps_of(name)), name
    for name in ("history_latents", "vision"):  # the buffer keeps half precision
        torch.testing.assert_close(getattr(built, name)[:, 0], steps_of(name), atol=5e-3, rtol=2e-3)
    torch.testing.assert_close(built.state[:, 0], steps_of("state"))
    # Who observes does not know the current action; the buffer does.
    torch.testing.assert_close(built.actions[:, 0, :-1], steps_of("actions")[:, :-1], atol=1e-6, rtol=0)
    assert not built.actions[:, 0, -1].any()
    assert built.action_known[:, 0, :-1].all() and not built.action_known[:, 0, -1].any()
    assert torch.equal(built.lang_tokens[0], window.lang_tokens[0])
    assert torch.equal(built.lang_masks[0], window.lang_masks[0])


def test_a_built_batch_runs_through_the_policy_step_after_step(
    policy: F1Policy, played: tuple[list[Observation], EpisodeRecord]
) -> None:
    observations, record = played
    builder = BatchBuilder(policy, _states(record), "explore the table")
    builder.memory.reset()
    for observation in observations[:2]:
        batch, states = builder.build_batch([observation], include_memory_states=False)
        assert states is None
        out = policy.predict_images_only(batch, initial_memory_state=builder.memory.get_current())
        builder.memory.update(out["memory_state"])
        assert out["images"].shape == (1, 3, 64, 64)
    assert builder.memory.get_current().abs().max() > 0


def test_empty_lists_and_mixed_views_are_refused(
    policy: F1Policy, played: tuple[list[Observation], EpisodeRecord]
) -> None:
    observations, record = played
    builder = BatchBuilder(policy, _states(record), "explore the table")
    with pytest.raises(ValueError, match="at least one observation"):
        builder.build_batch([])
    student = {k: v for k, v in observations[0].items() if k != "image1"}
    with pytest.raises(ValueError, match="cannot share a batch"):
        builder.build_batch([observations[0], student])  # type: ignore[list-item]
    alone, _ = builder.build_batch([student])  # type: ignore[list-item]
    assert alone.camera_mask.shape == (1, 1, 1)
