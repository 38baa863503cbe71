"""The configuration: files and dataclasses agree, mistakes are named, later sources win."""

from pathlib import Path

import pytest
from omegaconf import OmegaConf

from f1_vla.config import F1Config
from rl import config as C
from rl.config import Config, LoraMode, MixedPrecision

PRESETS = sorted(p.stem for p in (C.CONFIG_DIR / "model").glob("*.yaml"))


def _file(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    return path


# --- the files that people edit --------------------------------------------------------------------------------------


def test_rl_config_yaml_holds_exactly_the_defaults() -> None:
    text = (C.CONFIG_DIR / "rl_config.yaml").read_text()
    assert text == C.to_yaml(Config())
    assert C.load() == Config()


def test_every_preset_holds_every_key_and_serialises_back_to_its_text() -> None:
    assert {"tiny", "debug_test", "f1_base"} <= set(PRESETS)
    for preset in PRESETS:
        assert (C.CONFIG_DIR / "model" / f"{preset}.yaml").read_text() == C.to_yaml(C.load_model(preset)), preset


def test_a_tree_survives_the_way_through_yaml(tmp_path: Path) -> None:
    config = Config()
    config.training.learning_rate, config.training.mixed_precision = 3e-5, MixedPrecision.bf16
    config.model.lora.mode, config.model.tokenizer_path = LoraMode.on, "a b.safetensors"
    config.environment.embodiment = ["one", "two"]
    assert C.load(_file(tmp_path, C.to_yaml(config))) == config


def test_the_paths_of_files_do_not_depend_on_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert C.load() == Config()
    assert isinstance(C.load_model("tiny"), F1Config)


# --- precedence ------------------------------------------------------------------------------------------------------


def test_the_file_wins_over_defaults_and_the_command_line_over_the_file(tmp_path: Path) -> None:
    path = _file(tmp_path, "training: {num_episodes: 7, batch_size: 3}\n")
    config = C.load(path, ["training.batch_size=9"])
    assert (config.training.num_episodes, config.training.batch_size) == (7, 9)
    assert config.training.bptt_length == Config().training.bptt_length


def test_the_last_of_two_overrides_wins() -> None:
    assert C.load(overrides=["training.seed=1", "training.seed=2"]).training.seed == 2


# --- mistakes --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("override", "suggestion"),
    [
        ("training.learning_rat=1", "training.learning_rate"),
        ("training.num_env=2", "training.num_envs"),
        ("teacher.view_drop=0", "teacher.view_dropout"),
        ("environment.domain_randomization.random_lights=true", "environment.domain_randomization.random_light"),
    ],
)
def test_an_unknown_key_names_the_nearest_one(override: str, suggestion: str) -> None:
    key = override.split("=")[0]
    with pytest.raises(ValueError, match=f"command line: unknown configuration key '{key}'; did you mean") as e:
        C.load(overrides=[override])
    assert f"'{suggestion}'" in str(e.value)


def test_an_unknown_key_of_a_file_names_the_file_and_without_a_near_one_the_blocks(tmp_path: Path) -> None:
    path = _file(tmp_path, "zzz: {qqq: 1}\n")
    with pytest.raises(ValueError, match=r"mine\.yaml: unknown configuration key 'zzz\.qqq'; known blocks: adv"):
        C.load(path)


@pytest.mark.parametrize(
    "override",
    [
        "training.num_episodes=many",
        "training.num_episodes=1.5",
        "training.learning_rate=fast",
        "training.debug=perhaps",
        "training.mixed_precision=fp8",
        "model.lora.mode=maybe",
        "training=3",
    ],
)
def test_a_value_of_another_type_is_refused_by_key(override: str) -> None:
    with pytest.raises(ValueError, match=f"command line: key '{override.split('=')[0]}'"):
        C.load(overrides=[override])


def test_numbers_that_yaml_takes_for_text_and_words_it_takes_for_booleans_mean_what_they_say(tmp_path: Path) -> None:
    path = _file(tmp_path, "training:\n  learning_rate: 1e-4\n  min_learning_rate: 1e-6\n  mixed_precision: no\n")
    training = C.load(path).training
    assert (training.learning_rate, training.min_learning_rate) == (1e-4, 1e-6)
    assert training.mixed_precision is MixedPrecision.no
    config = C.load(overrides=["training.learning_rate=1e-4", "training.mixed_precision=no", "model.lora.mode=on"])
    assert config.training.learning_rate == 1e-4 and config.training.mixed_precision is MixedPrecision.no
    assert config.model.lora.mode is LoraMode.on
    assert C.load(overrides=["model.lora.mode=off"]).model.lora.mode is LoraMode.off
    with pytest.raises(ValueError, match=r"training\.mixed_precision"):
        C.load(overrides=["training.mixed_precision=yes"])


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("training.num_envs=0", "training.num_envs is 0; it must be at least 1"),
        ("training.num_episodes=0", "at least 1"),
        ("training.steps_per_episode=1", "at least 2"),
        ("training.keep_checkpoints=1", "at least 2"),
        ("training.gradient_accumulation_steps=0", "at least 1"),
        ("environment.wm_size=32", r"environment\.wm_size is 32 px; it must lie between 64 and 256"),
        ("environment.vlm_size=512", r"environment\.vlm_size is 512 px"),
        ("training.seed=-1", "training.seed is -1; use 0 to 999999"),
        ("training.seed=1000000", "held out for evaluation"),
        ("teacher.view_dropout=1.5", "a probability lies between 0 and 1"),
        ("teacher.action_dropout=-0.1", "a probability lies between 0 and 1"),
    ],
)
def test_a_value_that_no_run_can_use_is_refused_with_its_key(override: str, message: str) -> None:
    with pytest.raises(ValueError, match=message) as e:
        C.load(overrides=[override])
    assert override.split("=")[0] in str(e.value)


def test_an_override_without_a_value_is_refused() -> None:
    with pytest.raises(ValueError, match=r"override 'training\.seed': write block\.key=value"):
        C.load(overrides=["training.seed"])


def test_missing_damaged_and_shapeless_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"nowhere\.yaml does not exist"):
        C.load(tmp_path / "nowhere.yaml")
    with pytest.raises(ValueError, match=r"mine\.yaml: not readable as YAML"):
        C.load(_file(tmp_path, "training: {num_envs: 1\n"))
    with pytest.raises(ValueError, match="top level must be a mapping"):
        C.load(_file(tmp_path, "- 1\n- 2\n"))


def test_a_saved_run_of_another_version_is_read_but_for_the_blocks_that_the_reader_does_not_use(tmp_path: Path) -> None:
    path = _file(tmp_path, "training: {seed: 7}\ndiffusion: {key_of_another_version: 1}\nsac: {gamma: 0.5}\n")
    with pytest.raises(ValueError, match=r"diffusion\.key_of_another_version"):
        C.load(path)
    cfg = C.load_saved(path, C.POLICY_BLOCKS, ["training.bptt_length=4"])
    assert (cfg.training.seed, cfg.training.bptt_length) == (7, 4)
    assert cfg.diffusion == Config().diffusion and cfg.sac == Config().sac
    with pytest.raises(ValueError, match=r"diffusion\.key_of_another_version"):
        C.load_saved(path, ["sac"])


def test_the_blocks_of_policies_are_blocks_of_the_tree() -> None:
    assert set(C.POLICY_BLOCKS) <= set(C.to_dict(Config()))
    assert set(C.BLOCKS.values()) <= set(C.POLICY_BLOCKS)


def test_an_unknown_preset_names_the_presets() -> None:
    with pytest.raises(ValueError, match=f"'huge': no such preset; there are {', '.join(PRESETS)}"):
        C.load_model("huge")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("tokenizer.image_size=96", "must equal last scale"),
        ("tokenizer.scales=[2,4,8]", "start at 1"),
        ("trunk.num_kv_heads=7", "must be a multiple"),
        ("n_obs_img_steps=3", "temporal_conv_kernel_size"),
        ("trunk.num_head=4", "did you mean 'trunk.num_heads'"),
    ],
)
def test_an_architecture_that_contradicts_itself_is_refused(override: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        C.load_model("tiny", [override])


# --- other forms of the tree -----------------------------------------------------------------------------------------


def test_the_tree_as_a_node_converts_back_and_is_checked_again() -> None:
    node = C.as_node(Config())
    node.training.num_envs = 3
    assert C.as_config(node).training.num_envs == 3
    node.training.num_envs = 0
    with pytest.raises(ValueError, match=r"training\.num_envs is 0"):
        C.as_config(node)


def test_an_environment_block_comes_back_from_a_plain_dict_and_unknown_keys_are_refused() -> None:
    block = C.to_dict(C.EnvironmentConfig(num_objects=3))
    assert C.environment_from_dict(block) == C.EnvironmentConfig(num_objects=3)
    with pytest.raises(ValueError, match=r"environment\.num_objets.*did you mean 'environment\.num_objects'"):
        C.environment_from_dict({"num_objets": 3})


def test_the_fingerprint_tells_values_apart_and_nothing_else() -> None:
    a, b = Config(), C.load()
    assert C.fingerprint(a) == C.fingerprint(b)
    b.training.seed = 1
    assert C.fingerprint(a) != C.fingerprint(b)


def test_plain_data_holds_enum_values_as_text() -> None:
    plain = C.to_dict(Config())
    assert plain["training"]["mixed_precision"] == "no" and plain["model"]["lora"]["mode"] == "auto"
    assert OmegaConf.create(plain).teacher.burn_in == Config().teacher.burn_in
