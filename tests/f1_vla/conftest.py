"""Small models and batches shared by the tests of the model."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from f1_vla import weights
from f1_vla.batch import F1Batch
from f1_vla.builders import build_policy
from f1_vla.config import (
    ExpertConfig,
    F1Config,
    MemoryConfig,
    TokenizerConfig,
    TrunkConfig,
    VisionConfig,
    WorldModelConfig,
)
from f1_vla.parity import config_of, released_state
from f1_vla.policy import F1Policy

DATA = Path(__file__).resolve().parents[1] / "data" / "f1_parity"


@pytest.fixture(autouse=True)
def fixed_seed():
    torch.manual_seed(0)


# --- numbers of the public implementation ----------------------------------------------------------------------------


@pytest.fixture(scope="session")
def parity_spec() -> dict:
    return json.loads((DATA / "f1_parity_a.json").read_text())


@pytest.fixture(scope="session")
def parity_data() -> dict[str, torch.Tensor]:
    return load_file(DATA / "f1_parity_a.safetensors")


@pytest.fixture(scope="session")
def parity_state(parity_spec) -> dict[str, torch.Tensor]:
    """The released state dict of the fixture, under the names `save_model` would write."""
    state = released_state(parity_spec)
    return {n: t for n, t in state.items() if not n.startswith("vae.") and not n.endswith("embed_tokens.weight")}


@pytest.fixture(scope="session")
def parity_config(parity_spec) -> F1Config:
    config = config_of(parity_spec["config"])
    config.trunk.expert_head_vocab_size = 512
    return config


@pytest.fixture(scope="session")
def parity_policy(parity_config, parity_state) -> F1Policy:
    """All our additions (memory, conditioning, latent head) are on: at zero effect they must change nothing."""
    torch.manual_seed(0)
    policy = build_policy(parity_config)
    weights.load_released(policy, parity_state)
    return policy


# --- debug size ------------------------------------------------------------------------------------------------------


@pytest.fixture
def debug_config() -> F1Config:
    return F1Config(
        trunk=TrunkConfig(
            num_layers=2,
            num_heads=2,
            num_kv_heads=1,
            head_dim=16,
            und=ExpertConfig(32, 48),
            gen=ExpertConfig(32, 48),
            act=ExpertConfig(32, 48),
        ),
        vision=VisionConfig(32, 16, 32, 48, 1, 2),
        tokenizer=TokenizerConfig(64, [1, 2, 4], 32, 8, 8, [1, 1, 1, 2, 2], 1, 1, 8),
        memory=MemoryConfig(memory_hidden=16, memory_num_layers=2),
        world_model=WorldModelConfig(num_resolutions=3, foresight_scales=3),
        chunk_size=2,
        num_denoise_steps=3,
        tokenizer_max_length=6,
    )


@pytest.fixture
def debug_policy(debug_config) -> F1Policy:
    return build_policy(debug_config).eval()


def make_batch(cfg: F1Config, B: int = 2, T: int = 3, cameras: int = 2, seed: int = 1) -> F1Batch:
    """A random batch with a hidden action, a padded history slot and padded text."""
    g = torch.Generator().manual_seed(seed)
    tok, O = cfg.tokenizer, cfg.n_obs_img_steps  # noqa: E741
    known = torch.rand(B, T, O, generator=g) < 0.8
    return F1Batch(
        lang_tokens=torch.randint(3, 200, (B, cfg.tokenizer_max_length), generator=g),
        lang_masks=torch.arange(cfg.tokenizer_max_length).expand(B, -1) < cfg.tokenizer_max_length - 2,
        camera_mask=torch.ones(B, T, cameras, dtype=torch.bool),
        history_ids=torch.randint(0, tok.vocab_size, (B, T, O, tok.num_tokens), generator=g),
        history_mask=torch.rand(B, T, O, generator=g) < 0.8,
        actions=torch.randn(B, T, O, cfg.max_action_dim, generator=g),
        action_known=known,
        state=torch.randn(B, T, cfg.max_state_dim, generator=g),
        vision=torch.randn(B, T, cameras, cfg.vision.num_patches, cfg.vision.hidden_size, generator=g),
        history_latents=torch.randn(B, T, O, tok.z_channels, tok.scales[-1], tok.scales[-1], generator=g),
        target_ids=torch.randint(0, tok.vocab_size, (B, T, tok.num_tokens), generator=g),
        reset=torch.zeros(B, T, dtype=torch.bool),
        valid=torch.ones(B, T, dtype=torch.bool),
    )


@pytest.fixture(name="make_batch")
def make_batch_fixture():
    return make_batch
