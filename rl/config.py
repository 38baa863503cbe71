"""Every configuration key with its only default, and the only reader of YAML.

`load(...)` merges defaults <- YAML file <- command line (`block.key=value`) into a typed tree; a key that does not
exist or a value of the wrong type raises ValueError naming the nearest key or the expected type.
"""

import dataclasses
import difflib
import hashlib
import json
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from f1_vla.config import F1Config

REPO_ROOT = Path(__file__).resolve().parent.parent
CONFIG_DIR = REPO_ROOT / "configs"


class LoraMode(StrEnum):
    auto = "auto"  # on when a pretrained base is loaded, off for a model trained from scratch
    on = "on"
    off = "off"


class Visuals(StrEnum):
    auto = "auto"  # low on a software renderer, full on a GPU
    low = "low"
    full = "full"


class Isolation(StrEnum):
    sync = "sync"
    process = "process"


class MixedPrecision(StrEnum):
    no = "no"
    bf16 = "bf16"
    fp16 = "fp16"


@dataclass
class LoraConfig:
    """PEFT adapters (`peft.LoraConfig`)."""

    mode: LoraMode = LoraMode.auto
    r: int = 8
    lora_alpha: int = 32
    lora_dropout: float = 0.0
    target_modules: list[str] = field(default_factory=lambda: ["q_proj", "v_proj"])


@dataclass
class FreezeConfig:
    """The four switches of `set_policy_requires_grad`."""

    freeze_vision_encoder: bool = True
    freeze_gen_expert: bool = False
    train_act_expert_only: bool = False
    train_gen_expert_only: bool = False


@dataclass
class ModelConfig:
    # Name of a preset under configs/model (tiny, debug_test, f1_base) or a path to such a file.
    config_file: str = "tiny"
    # Released or exported weights to start from (file or directory); null: random initial weights.
    checkpoint_path: str | None = None
    # Tokenizer weights; null: the checkpoint shipped for the preset.
    tokenizer_path: str | None = None
    lora: LoraConfig = field(default_factory=LoraConfig)


@dataclass
class TrainingConfig:
    num_episodes: int = 10000  # over all environments and ranks
    steps_per_episode: int = 50
    num_envs: int = 1  # environments per process
    batch_size: int = 4  # BPTT windows per update and process
    learning_rate: float = 1e-3
    min_learning_rate: float = 1e-5
    warmup_updates: int = 50
    # Episodes over which the learning rate decays; null: num_episodes. Set it when num_episodes grows on a resume.
    schedule_episodes: int | None = None
    weight_decay: float = 0.01
    max_grad_norm: float = 1.0
    gradient_accumulation_steps: int = 1
    mixed_precision: MixedPrecision = MixedPrecision.no
    action_dim: int = 32
    state_dim: int = 32
    n_pred_img_steps: int = 1
    save_every: int = 200  # episodes
    keep_checkpoints: int = 3
    log_every: int = 10
    video_save_every: int = 10
    sample_save_every: int = 10
    keep_samples: int = 50
    keep_videos: int = 20
    sequential_training: bool = True
    bptt_length: int = 8
    memory_backprop: bool = True
    memory_lr_scale: float = 3.0  # learning rate of memory gates relative to learning_rate
    seed: int = 0
    # Threads of torch on CPU per process; 0: cores divided by processes on this machine.
    num_threads: int = 0
    device: str = "auto"  # auto | cpu | cuda
    debug: bool = False


@dataclass
class DomainRandomizationConfig:
    random_appearance: bool = False  # colours of arm and table
    random_background: bool = True  # procedural wall and table textures
    random_light: bool = True
    cluttered_table: bool = True


@dataclass
class EnvironmentConfig:
    task_name: str = "random_exploration"
    simulator: str = "sapien_tabletop"
    control_mode: str = "delta_qpos"
    single_arm: bool = True
    scene_reset_interval: int = 50  # episodes a scene is reused before it is rebuilt
    embodiment: list[str] = field(default_factory=lambda: ["franka-panda"])
    domain_randomization: DomainRandomizationConfig = field(default_factory=DomainRandomizationConfig)
    instruction: str = "explore the table"
    action_scale: float = 0.1  # rad per step at action 1
    gripper_scale: float = 0.01  # m of finger travel per step at action 1
    physics_steps: int = 5  # per environment step
    physics_timestep: float = 0.01  # s
    num_objects: int = 12
    vlm_size: int = 64  # px, what the understanding expert sees
    wm_size: int = 64  # px, what the world model tokenizes
    visuals: Visuals = Visuals.auto
    isolation: Isolation = Isolation.sync


@dataclass
class LoggingConfig:
    console_level: str = "INFO"
    file_level: str = "DEBUG"
    enable_file_logging: bool = True
    tensorboard: bool = True


@dataclass
class TeacherConfig:
    output_dir: str = "./outputs/teacher_rl"
    freeze: FreezeConfig = field(default_factory=FreezeConfig)
    view_dropout: float = 0.5  # probability of a wrist-only view of a window
    action_dropout: float = 0.3  # probability that the slot of a_t is hidden
    buffer_episodes: int = 400
    updates_per_episode: int = 8
    burn_in: int = 4  # steps that refresh the stored memory state before a window
    latent_loss_weight: float = 4.0  # only with arch.world_model.latent_head
    latent_batch_size: int = 32  # single steps an update that train the latent head alone; 0: none


@dataclass
class StudentRewardsConfig:
    memory_divergence_weight: float = 0.5
    wm_uncertainty_weight: float = 0.5


@dataclass
class StudentConfig:
    output_dir: str = "./outputs/student_rl"
    rewards: StudentRewardsConfig = field(default_factory=StudentRewardsConfig)


@dataclass
class AdversarialConfig:
    output_dir: str = "./outputs/adversarial_rl"
    total_iterations: int = 100000


@dataclass
class TokenizerTrainingConfig:
    """`train.sh tokenizer`."""

    output_dir: str = "./outputs/tokenizer"
    frames: int = 16000  # training frames; every `frame_interval`-th of an episode
    frame_interval: int = 4
    held_out_frames: int = 500
    autoencoder_steps: int = 1500  # without quantisation, before the codebook is initialised by k-means
    steps: int = 4000  # including the former
    batch_size: int = 16
    learning_rate: float = 3e-3
    weight_average_decay: float = 0.995  # the saved weights are an exponential average over steps
    log_every: int = 100
    commitment_weight: float = 0.25
    l1_weight: float = 0.1
    codebook_decay: float = 0.98
    dead_code_steps: int = 100  # a code unused for so many steps is restarted


HELD_OUT_SEED = 1_000_000  # scenes from this seed on are never trained on


@dataclass
class EvaluationConfig:
    num_episodes: int = 40
    seed: int = HELD_OUT_SEED
    bootstrap_samples: int = 2000


@dataclass
class Config:
    """configs/rl_config.yaml: all phases."""

    model: ModelConfig = field(default_factory=ModelConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    environment: EnvironmentConfig = field(default_factory=EnvironmentConfig)
    logging: LoggingConfig = field(default_factory=LoggingConfig)
    teacher: TeacherConfig = field(default_factory=TeacherConfig)
    student: StudentConfig = field(default_factory=StudentConfig)
    adversarial: AdversarialConfig = field(default_factory=AdversarialConfig)
    tokenizer: TokenizerTrainingConfig = field(default_factory=TokenizerTrainingConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)


# --- loading ---------------------------------------------------------------------------------------------------------


def _key_paths(cls: type, prefix: str = "") -> list[str]:
    paths = []
    for f in dataclasses.fields(cls):
        paths.append(prefix + f.name)
        if isinstance(f.type, type) and dataclasses.is_dataclass(f.type):
            paths += _key_paths(f.type, f"{prefix}{f.name}.")
    return paths


def _flatten(node: Any, prefix: str = "") -> list[str]:
    if not isinstance(node, dict):
        return [prefix[:-1]]
    return [p for k, v in node.items() for p in ([*_flatten(v, f"{prefix}{k}.")] if v != {} else [f"{prefix}{k}"])]


def _words_for_booleans(node: DictConfig, cls: type, prefix: str = "") -> None:
    """YAML reads an unquoted on, off, yes or no as a boolean; where a choice has that word, the word was meant."""
    for f in dataclasses.fields(cls):
        if not isinstance(f.type, type):
            continue
        if dataclasses.is_dataclass(f.type):
            _words_for_booleans(node, f.type, f"{prefix}{f.name}.")
        elif issubclass(f.type, StrEnum) and isinstance(value := OmegaConf.select(node, prefix + f.name), bool):
            words = ("on", "yes") if value else ("off", "no")
            word = next((w for w in words if w in f.type.__members__), None)
            if word is not None:
                OmegaConf.update(node, prefix + f.name, word)


def _merge(base: DictConfig, extra: DictConfig, source: str) -> DictConfig:
    """Merges `extra` into the structured `base`; every complaint names `source`, the key and the remedy."""
    cls = OmegaConf.get_type(base)
    assert cls is not None
    known = _key_paths(cls)
    for path in _flatten(OmegaConf.to_container(extra)):
        if path not in known:
            near = difflib.get_close_matches(path, known, n=1, cutoff=0.4)
            hint = (
                f"; did you mean '{near[0]}'?"
                if near
                else f"; known blocks: {', '.join(sorted({k.split('.')[0] for k in known}))}"
            )
            raise ValueError(f"{source}: unknown configuration key '{path}'{hint}")
        if any(k.startswith(f"{path}.") for k in known) and not OmegaConf.is_dict(OmegaConf.select(extra, path)):
            raise ValueError(f"{source}: key '{path}' is a block of keys; write {path}.KEY=value")
    _words_for_booleans(extra, cls)
    try:
        merged = OmegaConf.merge(base, extra)
    except OmegaConfBaseException as e:
        first_line = str(e).strip().splitlines()[0]
        raise ValueError(f"{source}: key '{e.full_key}': {first_line}") from e
    assert isinstance(merged, DictConfig)
    return merged


def _read_yaml(path: Path) -> DictConfig:
    if not path.is_file():
        raise ValueError(f"configuration file {path} does not exist")
    try:
        node = OmegaConf.load(path)
    except Exception as e:  # yaml errors carry line and column
        raise ValueError(f"{path}: not readable as YAML: {e}") from e
    if not isinstance(node, DictConfig):
        raise ValueError(f"{path}: the top level must be a mapping of blocks")
    return node


def read_dict(path: Path) -> dict[str, Any]:
    """A saved configuration as plain data, without checking its keys (an older version may have had others)."""
    container = OmegaConf.to_container(_read_yaml(path))
    assert isinstance(container, dict)
    return {str(k): v for k, v in container.items()}


def _dotlist(overrides: list[str]) -> DictConfig:
    for o in overrides:
        if "=" not in o:
            raise ValueError(f"override '{o}': write block.key=value")
    return OmegaConf.from_dotlist(overrides)


def load(path: str | Path | None = None, overrides: list[str] | None = None) -> Config:
    """Defaults <- YAML file at `path` (default configs/rl_config.yaml) <- `block.key=value` overrides."""
    node = OmegaConf.structured(Config)
    path = Path(path) if path is not None else CONFIG_DIR / "rl_config.yaml"
    node = _merge(node, _read_yaml(path), str(path))
    node = _merge(node, _dotlist(overrides or []), "command line")
    cfg = OmegaConf.to_object(node)
    assert isinstance(cfg, Config)
    validate(cfg)
    return cfg


def load_model(name_or_path: str, overrides: list[str] | None = None) -> F1Config:
    """The architecture named by `model.config_file`: a preset under configs/model or a path."""
    path = Path(name_or_path)
    if not path.suffix:
        path = CONFIG_DIR / "model" / f"{name_or_path}.yaml"
        if not path.is_file():
            presets = sorted(p.stem for p in (CONFIG_DIR / "model").glob("*.yaml"))
            raise ValueError(f"model.config_file '{name_or_path}': no such preset; there are {', '.join(presets)}")
    node = _merge(OmegaConf.structured(F1Config), _read_yaml(path), str(path))
    node = _merge(node, _dotlist(overrides or []), "command line")
    cfg = OmegaConf.to_object(node)
    assert isinstance(cfg, F1Config)
    cfg.validate()
    return cfg


def validate(cfg: Config) -> None:
    """Refuses values that no run can use. Raises ValueError naming the key and the remedy."""
    t, e = cfg.training, cfg.environment
    for name, value, least in [
        ("training.num_envs", t.num_envs, 1),
        ("training.num_episodes", t.num_episodes, 1),
        ("training.steps_per_episode", t.steps_per_episode, 2),
        ("training.batch_size", t.batch_size, 1),
        ("training.bptt_length", t.bptt_length, 1),
        ("training.gradient_accumulation_steps", t.gradient_accumulation_steps, 1),
        ("training.keep_checkpoints", t.keep_checkpoints, 2),
        ("training.save_every", t.save_every, 1),
        ("training.log_every", t.log_every, 1),
        ("environment.scene_reset_interval", e.scene_reset_interval, 1),
        ("environment.physics_steps", e.physics_steps, 1),
        ("teacher.buffer_episodes", cfg.teacher.buffer_episodes, 1),
        ("teacher.updates_per_episode", cfg.teacher.updates_per_episode, 1),
    ]:
        if value < least:
            raise ValueError(f"{name} is {value}; it must be at least {least}")
    if not 0 <= t.seed < HELD_OUT_SEED:
        raise ValueError(
            f"training.seed is {t.seed}; use 0 to {HELD_OUT_SEED - 1}, later seeds are held out for evaluation"
        )
    for name, value in [("environment.vlm_size", e.vlm_size), ("environment.wm_size", e.wm_size)]:
        if not 64 <= value <= 256:
            raise ValueError(f"{name} is {value} px; it must lie between 64 and 256")
    for name, p in [
        ("teacher.view_dropout", cfg.teacher.view_dropout),
        ("teacher.action_dropout", cfg.teacher.action_dropout),
    ]:
        if not 0.0 <= p <= 1.0:
            raise ValueError(f"{name} is {p}; a probability lies between 0 and 1")


def to_yaml(cfg: Any) -> str:
    """YAML text of a config dataclass; loads back to an equal tree."""
    return OmegaConf.to_yaml(OmegaConf.structured(cfg))


def to_dict(cfg: Any) -> dict[str, Any]:
    """Plain nested dict (enums as their values)."""
    container = OmegaConf.to_container(OmegaConf.structured(cfg), enum_to_str=True)
    assert isinstance(container, dict)
    return {str(k): v for k, v in container.items()}


def as_node(cfg: Config) -> DictConfig:
    """The tree with attribute and item access."""
    return OmegaConf.structured(cfg)


def as_config(cfg: DictConfig | Config) -> Config:
    """The typed tree of `as_node`'s result; a typed tree is returned as it is."""
    if isinstance(cfg, Config):
        return cfg
    typed = OmegaConf.to_object(_merge(OmegaConf.structured(Config), cfg, "configuration"))
    assert isinstance(typed, Config)
    validate(typed)
    return typed


def environment_from_dict(block: dict[str, Any]) -> EnvironmentConfig:
    """The `environment` block from a plain dict; unknown keys and wrong types raise ValueError."""
    return as_config(OmegaConf.create({"environment": block})).environment


def fingerprint(cfg: Any) -> str:
    """sha256 over the canonical JSON of a config tree."""
    return hashlib.sha256(json.dumps(to_dict(cfg), sort_keys=True).encode()).hexdigest()
