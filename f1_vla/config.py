"""Architecture of F1-VLA as one dataclass tree; `rl.config` fills it from configs/model/*.yaml.

The published full-size model is `configs/model/f1_base.yaml`. Extras that the published model lacks (memory, action
and state conditioning, latent head) start at zero effect, so a released checkpoint behaves exactly as published.
"""

from dataclasses import dataclass, field
from enum import StrEnum


class FlowKind(StrEnum):
    """Where the randomness of a denoising step comes from; see f1_vla.flow_likelihood."""

    sde = "sde"
    noise = "noise"


class StochasticSteps(StrEnum):
    """Which denoising steps are random."""

    all = "all"  # every one; the likelihood is that of the whole chain
    one = "one"  # one, drawn for each chain, the others are Euler steps: one network pass an update


class DenoiseMode(StrEnum):
    """How the Euler loop runs while acting; see f1_vla.denoise."""

    eager = "eager"
    compile = "compile"  # one step by torch.compile
    cuda_graph = "cuda_graph"  # all steps replayed as one CUDA graph


class HeadLoss(StrEnum):
    """How the world model's output head and its cross entropy are computed; see f1_vla.world_model.fused_nll."""

    plain = "plain"  # all logits at once
    fused = "fused"  # PyTorch's linear cross entropy, which never holds them all (torch 2.13 or newer)
    auto = "auto"  # fused where PyTorch has it


@dataclass
class ExpertConfig:
    """One stream of the joint transformer (a Gemma trunk). Depth and heads are shared, see `TrunkConfig`."""

    hidden_size: int = 192
    intermediate_size: int = 512


@dataclass
class TrunkConfig:
    """Layer count, heads and head size, which all three experts share because they meet in one attention."""

    num_layers: int = 4
    num_heads: int = 3
    num_kv_heads: int = 1
    head_dim: int = 64
    und: ExpertConfig = field(default_factory=lambda: ExpertConfig(128, 256))
    gen: ExpertConfig = field(default_factory=ExpertConfig)
    act: ExpertConfig = field(default_factory=ExpertConfig)
    text_vocab_size: int = 512
    # Rows of the unused language heads of the gen and act experts in released files; 0: the model has none.
    expert_head_vocab_size: int = 0
    attention_backend: str = "auto"  # auto | reference | sdpa | matmul | flex | fa4 | triton
    gradient_checkpointing: bool = False


@dataclass
class VisionConfig:
    """SigLIP vision tower without pooling head."""

    image_size: int = 64
    patch_size: int = 16
    hidden_size: int = 128
    intermediate_size: int = 256
    num_layers: int = 2
    num_heads: int = 2
    attention_backend: str = "auto"  # as in `TrunkConfig`

    @property
    def num_patches(self) -> int:
        return (self.image_size // self.patch_size) ** 2


@dataclass
class TokenizerConfig:
    """Multi-scale residual VQ-VAE of VAR. Downsampling is 2 ** (len(channel_multipliers) - 1)."""

    image_size: int = 64
    scales: list[int] = field(default_factory=lambda: [1, 2, 4, 8])
    vocab_size: int = 512
    z_channels: int = 16
    channels: int = 16
    channel_multipliers: list[int] = field(default_factory=lambda: [1, 2, 4, 4])
    encoder_blocks: int = 1
    decoder_blocks: int = 1
    norm_groups: int = 4
    num_phi: int = 4
    phi_ratio: float = 0.5

    @property
    def downsampling(self) -> int:
        return 2 ** (len(self.channel_multipliers) - 1)

    @property
    def num_tokens(self) -> int:
        """L, tokens of one picture over all scales."""
        return sum(p * p for p in self.scales)


@dataclass
class MemoryConfig:
    """GRU memory; state h is (num_layers, B, hidden)."""

    memory_enabled: bool = True
    memory_hidden: int = 128
    memory_num_layers: int = 2
    # True: h enters on the world model's history vectors (tokenizer channels); False: after their embedding.
    memory_project_to_vae_dim: bool = True


@dataclass
class WorldModelConfig:
    """Next-scale prediction and its conditioning."""

    num_resolutions: int = 4  # R, scales predicted (K = all of them for world-model training)
    foresight_scales: int = 4  # scales rolled out before acting
    temporal_conv_kernel_size: int = 4
    temporal_conv_stride: int = 4
    # Corruption of teacher-forced inputs: sample probability times token probability (published: 0.1 and 0.15).
    mask_sample_prob: float = 0.1
    mask_token_prob: float = 0.15
    action_conditioning: bool = True
    state_conditioning: bool = True
    head_loss: HeadLoss = HeadLoss.plain
    # Aligned conditioning and latent regression head; not in the published model, zero effect at its default init.
    latent_head: bool = False
    latent_head_width: int = 128
    latent_head_blocks: int = 3
    latent_head_logit_scale: float = 0.0
    # Members of the ensemble that measures what the world model does not know (f1_vla.ensemble); 0: none.
    ensemble_heads: int = 0
    ensemble_features: int = 64  # random features of each member


@dataclass
class F1Config:
    """The whole policy."""

    trunk: TrunkConfig = field(default_factory=TrunkConfig)
    vision: VisionConfig = field(default_factory=VisionConfig)
    tokenizer: TokenizerConfig = field(default_factory=TokenizerConfig)
    memory: MemoryConfig = field(default_factory=MemoryConfig)
    world_model: WorldModelConfig = field(default_factory=WorldModelConfig)
    max_action_dim: int = 32
    max_state_dim: int = 32
    chunk_size: int = 4
    num_denoise_steps: int = 10
    denoise_mode: DenoiseMode = DenoiseMode.eager
    text_tokenizer: str = "bytes"  # bytes | directory of PaliGemma's tokenizer
    tokenizer_max_length: int = 24
    n_obs_img_steps: int = 4
    n_pred_img_steps: int = 1
    obs_img_stride: int = 1
    vision_resize_with_padding: bool = True

    def validate(self) -> None:
        """Raises ValueError, naming the keys, when sizes contradict each other."""
        t, k = self.trunk, self.tokenizer
        if t.num_heads % t.num_kv_heads:
            raise ValueError(f"trunk.num_heads {t.num_heads} must be a multiple of trunk.num_kv_heads {t.num_kv_heads}")
        if t.gen.hidden_size != t.act.hidden_size:
            raise ValueError(
                f"trunk.gen.hidden_size {t.gen.hidden_size} and trunk.act.hidden_size {t.act.hidden_size} must be equal"
            )
        if k.scales[0] != 1 or sorted(set(k.scales)) != list(k.scales):
            raise ValueError(f"tokenizer.scales {k.scales} must rise strictly and start at 1")
        if k.scales[-1] * k.downsampling != k.image_size:
            raise ValueError(
                f"tokenizer.image_size {k.image_size} must equal last scale {k.scales[-1]} "
                f"x downsampling {k.downsampling}"
            )
        if not 1 <= self.world_model.num_resolutions <= len(k.scales):
            raise ValueError(
                f"world_model.num_resolutions {self.world_model.num_resolutions} must be between 1 and {len(k.scales)}"
            )
        if self.vision.image_size % self.vision.patch_size:
            raise ValueError(
                f"vision.image_size {self.vision.image_size} must be a multiple of patch_size {self.vision.patch_size}"
            )
        if self.world_model.ensemble_heads == 1 or self.world_model.ensemble_heads < 0:
            raise ValueError(
                f"world_model.ensemble_heads is {self.world_model.ensemble_heads}: disagreement needs at least 2 "
                "members; 0 switches the ensemble off"
            )
        if self.world_model.ensemble_features < 1:
            raise ValueError(f"world_model.ensemble_features {self.world_model.ensemble_features} must be at least 1")
        if self.world_model.latent_head and self.world_model.head_loss is HeadLoss.fused:
            raise ValueError("world_model.head_loss=fused needs linear logits; switch latent_head off, or use auto")
        if self.num_denoise_steps < 1:
            raise ValueError(f"num_denoise_steps {self.num_denoise_steps} must be at least 1")
        if self.n_pred_img_steps != 1:
            raise ValueError(f"n_pred_img_steps {self.n_pred_img_steps}: the model predicts exactly 1 frame")
        if self.n_obs_img_steps != self.world_model.temporal_conv_kernel_size:
            raise ValueError(
                f"n_obs_img_steps {self.n_obs_img_steps} must equal world_model.temporal_conv_kernel_size "
                f"{self.world_model.temporal_conv_kernel_size}"
            )
        if self.world_model.temporal_conv_stride != self.world_model.temporal_conv_kernel_size:
            raise ValueError(
                f"world_model.temporal_conv_stride {self.world_model.temporal_conv_stride} must equal "
                f"world_model.temporal_conv_kernel_size {self.world_model.temporal_conv_kernel_size}"
            )
