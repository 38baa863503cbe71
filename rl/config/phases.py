"""Blocks of one phase each."""

from dataclasses import dataclass, field

from rl.config.run import FreezeConfig


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
    screen_share: float = 0.0  # of the episodes in which the arm first turns to the noisy screen
    bootstrap_probability: float = 0.5  # that an ensemble member trains on an episode (arch.world_model.ensemble_heads)


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
