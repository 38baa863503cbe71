"""Simulators by name; the module of a simulator is imported only when it is chosen."""

import importlib
from typing import TYPE_CHECKING, Any

from rl.sims import vulkan_driver

if TYPE_CHECKING:
    from rl.config import EnvironmentConfig

# Before any simulator module can import SAPIEN, which loads the Vulkan driver.
vulkan_driver.use_installed_driver()

# name -> "module:class"
SIMULATORS = {"sapien_tabletop": "rl.sims.sapien_tabletop:SapienTabletop"}


def simulator_class(name: str) -> Any:
    """The class behind `environment.simulator`. Raises ValueError naming the known ones."""
    if name not in SIMULATORS:
        raise ValueError(f"environment.simulator '{name}' is unknown; there are: {', '.join(sorted(SIMULATORS))}")
    vulkan_driver.use_installed_driver()  # before SAPIEN is imported
    module, _, cls = SIMULATORS[name].partition(":")
    return getattr(importlib.import_module(module), cls)


def make_simulator(
    config: "EnvironmentConfig", *, seed: int = 0, rank: int = 0, env_index: int = 0, gpu: int | None = None
) -> Any:
    """Builds `config.simulator`; `gpu` is the CUDA ordinal to draw on, None for the software renderer."""
    return simulator_class(config.simulator)(config, seed=seed, rank=rank, env_index=env_index, gpu=gpu)
