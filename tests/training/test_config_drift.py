import pytest

from rl.config import Config, to_dict
from rl.training.config_drift import changes, check_drift


def drift(key: str, value: object, phase: str = "teacher") -> list[str]:
    tree = to_dict(Config())
    node = tree
    *blocks, last = key.split(".")
    for block in blocks:
        node = node[block]
    node[last] = value
    return check_drift(to_dict(Config()), tree, phase, "config.yaml")


@pytest.mark.parametrize(
    "key",
    [
        "training.num_episodes", "training.save_every", "training.log_every", "training.video_save_every",
        "training.sample_save_every", "training.keep_checkpoints", "training.keep_samples", "training.keep_videos",
        "training.num_threads", "training.device", "logging.console_level",
        "model.config_file", "teacher.output_dir",
        "student.rewards.wm_uncertainty_weight", "evaluation.num_episodes", "adversarial.collapse.min_reward_std",
    ],
)  # fmt: skip
def test_a_benign_key_is_noted(key: str) -> None:
    notes = drift(key, 12345)
    assert len(notes) == 1 and notes[0].startswith(f"{key} ") and notes[0].endswith("-> 12345")


@pytest.mark.parametrize(
    "key",
    [
        "model.checkpoint_path", "model.lora.r", "training.learning_rate", "training.weight_decay",
        "training.bptt_length",
        "training.mixed_precision", "training.seed", "training.num_envs",
        "environment.action_scale", "teacher.burn_in",
    ],
)  # fmt: skip
def test_any_other_key_is_refused_with_old_and_new_value(key: str) -> None:
    with pytest.raises(ValueError, match=rf"config\.yaml: .*{key} .* -> 12345.*start a new run"):
        drift(key, 12345)


def test_a_key_that_came_with_a_later_version_counts_as_its_default() -> None:
    earlier, now = to_dict(Config()), to_dict(Config())
    del earlier["teacher"]["screen_share"]
    assert check_drift(earlier, now, "teacher", "config.yaml") == []
    now["teacher"]["screen_share"] = 0.3
    with pytest.raises(ValueError, match=r"teacher\.screen_share 0\.0 -> 0\.3"):
        check_drift(earlier, now, "teacher", "config.yaml")


def test_the_block_of_the_running_phase_counts() -> None:
    with pytest.raises(ValueError, match=r"student\.rewards\.wm_uncertainty_weight 0\.5 -> 2"):
        drift("student.rewards.wm_uncertainty_weight", 2, phase="student")


@pytest.mark.parametrize("key", ["student.rewards.clip", "teacher.burn_in", "adversarial.leash.target"])
def test_phase_three_reads_the_blocks_of_the_other_two(key: str) -> None:
    with pytest.raises(ValueError, match=key):
        drift(key, 12345, phase="adversarial")
    assert len(drift("tokenizer.frames", 12345, phase="adversarial")) == 1
    assert len(drift("adversarial.collapse.min_reward_std", 12345, phase="adversarial")) == 1  # warnings only


@pytest.mark.parametrize("key", ["arm.frame_stack", "arm.reach_bonus", "atari.noop_max"])
def test_rl_reads_what_its_reaching_tasks_and_games_are_made_of(key: str) -> None:
    with pytest.raises(ValueError, match=key):
        drift(key, 12345, "rl")
    assert len(drift("arm.steps", 12345, "rl")) == len(drift("atari.noop_max", 12345, "arm")) == 1


@pytest.mark.parametrize("key", ["ppo.gamma", "sac.gamma", "diffusion.gamma", "gr00t.backend"])
def test_phases_of_f1_do_not_read_the_blocks_of_other_policies(key: str) -> None:
    assert len(drift(key, 12345, "student")) == 1
    with pytest.raises(ValueError, match=key):
        drift(key, 12345, "arm")


def test_a_key_that_only_one_side_has_is_a_change() -> None:
    with pytest.raises(ValueError, match=r"b \(absent\) -> None"):
        check_drift({"a": 1}, {"a": 1, "b": None}, "teacher", "config.yaml")


def test_equal_configurations_have_no_notes() -> None:
    assert check_drift(to_dict(Config()), to_dict(Config()), "teacher", "config.yaml") == []


def test_only_the_keys_named_may_change_and_the_change_is_noted() -> None:
    old, new = to_dict(Config()), to_dict(Config())
    new["training"]["learning_rate"], new["training"]["seed"] = 5e-4, 3
    with pytest.raises(ValueError, match=r"training.seed 0 -> 3\. .*--allow_drift"):
        check_drift(old, new, "teacher", "config.yaml", ["training.learning_rate"])
    notes = check_drift(old, new, "teacher", "config.yaml", ["training.learning_rate", "training.seed"])
    assert notes == ["training.learning_rate 0.001 -> 0.0005", "training.seed 0 -> 3"]


@pytest.mark.parametrize(
    ("key", "told"),
    [("training.learning_rat", "there is no such key"), ("arch.trunk.num_layers", "its weights would not fit")],
)
def test_keys_that_cannot_be_allowed_are_refused(key: str, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        check_drift(to_dict(Config()), to_dict(Config()), "teacher", "config.yaml", [key])


def test_changes_name_keys_that_differ_that_are_new_and_that_are_gone() -> None:
    found = changes({"a": {"b": 1, "c": None}, "d": 2}, {"a": {"b": 1.5, "c": None}, "e": None})
    assert found == {"a.b": "a.b 1 -> 1.5", "d": "d 2 -> (absent)", "e": "e (absent) -> None"}
