"""Blocks that every phase reads: model, training, environment, logging."""

from dataclasses import dataclass, field
from enum import StrEnum

from rl.config.supervision import SupervisionConfig


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
    noisy_screen: bool = False  # a board that shows fresh noise at every step: nothing about it can be learned


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
    # sync: simulators live in the process of their rank, and end it when they crash. process: each has its own.
    isolation: Isolation = Isolation.sync
    supervision: SupervisionConfig = field(default_factory=SupervisionConfig)


@dataclass
class LoggingConfig:
    console_level: str = "INFO"
    file_level: str = "DEBUG"
    enable_file_logging: bool = True
    tensorboard: bool = True
    wandb: bool = False  # Weights & Biases instead (package wandb; not installed by the set-up)
