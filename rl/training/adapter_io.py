"""The files of a LoRA adapter as PEFT writes them."""

from pathlib import Path

from peft.utils import SAFETENSORS_WEIGHTS_NAME
from safetensors.torch import save_file

from f1_vla.lora import Role, lora_state_dict
from f1_vla.policy import F1Policy


def write_adapter(policy: F1Policy, role: Role, directory: Path) -> None:
    """adapter_config.json and adapter_model.safetensors of one role."""
    state = {f"base_model.model.{k}": v.contiguous().cpu() for k, v in lora_state_dict(policy, role).items()}
    save_file(state, directory / SAFETENSORS_WEIGHTS_NAME, metadata={"format": "pt"})
    configs = policy.peft_config
    assert isinstance(configs, dict)
    configs[role.value].save_pretrained(str(directory))
