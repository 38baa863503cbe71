"""The files of a LoRA adapter as PEFT writes them."""

from pathlib import Path

from peft.utils import SAFETENSORS_WEIGHTS_NAME
from safetensors.torch import save_file
from torch import Tensor

from f1_vla.lora import Role, lora_state_dict
from f1_vla.policy import F1Policy


def write_adapter(policy: F1Policy, role: Role, directory: Path, state: dict[str, Tensor] | None = None) -> None:
    """adapter_config.json and adapter_model.safetensors of a role; `state` of lora_state_dict, default that of now."""
    found = lora_state_dict(policy, role) if state is None else state
    named = {f"base_model.model.{k}": v.contiguous().cpu() for k, v in found.items()}
    save_file(named, directory / SAFETENSORS_WEIGHTS_NAME, metadata={"format": "pt"})
    configs = policy.peft_config
    assert isinstance(configs, dict)
    configs[role.value].save_pretrained(str(directory))
