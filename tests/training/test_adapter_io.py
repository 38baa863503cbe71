"""The adapter files of a checkpoint are PEFT's own."""

import copy
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from torch import nn

from f1_vla.builders import build_policy
from f1_vla.lora import Role
from f1_vla.policy import F1Policy
from rl import config as rl_config
from rl.training.adapter_io import write_adapter
from rl.training.model_setup import inject_adapter
from rl.training.plan import random_batch


@pytest.mark.parametrize("role", list(Role))
def test_adapter_is_loaded_by_peft_alone_and_computes_the_same(role: Role, tmp_path: Path) -> None:
    cfg = rl_config.load(overrides=["training.batch_size=2", "training.bptt_length=1"])
    arch = rl_config.load_model("debug_test")
    base = build_policy(arch).eval()
    adapted = copy.deepcopy(base)
    inject_adapter(adapted, cfg, role)
    with torch.no_grad():
        for name, p in adapted.named_parameters():
            if ".lora_" in name:
                p.normal_(std=0.2)
    write_adapter(adapted, role, tmp_path)
    assert {p.name for p in tmp_path.iterdir()} == {"adapter_config.json", "adapter_model.safetensors"}

    batch, noise = random_batch(cfg, arch, torch.device("cpu")), torch.randn(2, arch.chunk_size, 32)

    def actions(policy: nn.Module) -> torch.Tensor:
        h = base.initial_memory_state(2)
        with torch.no_grad():
            return policy(batch, mode="actions", initial_memory_state=h, noise=noise)["actions"]

    plain = actions(base)
    loaded = PeftModel.from_pretrained(base, str(tmp_path))
    assert isinstance(loaded.base_model.model, F1Policy)
    torch.testing.assert_close(actions(loaded), actions(adapted))
    assert not torch.allclose(actions(adapted), plain, atol=1e-4)
