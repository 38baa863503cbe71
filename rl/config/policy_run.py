"""`train.sh arm` and `train.sh rl`: which algorithm learns which task, for how long, and what is measured."""

import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

ALGORITHMS = ("PPO", "A2C", "SAC", "FASTSAC", "DIT")
# Block of the configuration that holds the settings of an algorithm.
BLOCKS = {"PPO": "ppo", "A2C": "ppo", "SAC": "sac", "FASTSAC": "sac", "DIT": "diffusion"}
# Files under configs/algo that are merged when `preset` is null: for the reaching arm, for Isaac Lab's tasks (thousands
# of environments on a GPU) and for every other one.
REACH_PRESETS = {
    "PPO": "ppo_reach", "A2C": "a2c_reach", "SAC": "sac_reach", "FASTSAC": "fastsac_reach", "DIT": "dit",
}  # fmt: skip
GENERAL_PRESETS = {"PPO": "sb3", "A2C": "a2c", "SAC": "sac", "FASTSAC": "fastsac", "DIT": "dit"}
ISAACLAB_PRESETS = {**GENERAL_PRESETS, "FASTSAC": "fastsac_loco"}


class MetricsLogger(StrEnum):
    tensorboard = "tensorboard"
    wandb = "wandb"


@dataclass
class PolicyRunConfig:
    """What both commands share. Counts are over all environments and processes."""

    algorithm: str = "PPO"  # PPO | A2C | SAC | FASTSAC | DIT
    preset: str | None = None  # file under configs/algo; null: that of the algorithm and the task
    num_envs: int | None = None  # environments per process; null: that of the preset
    compile: bool | None = None  # torch.compile of the update; null: that of the preset
    output_dir: str | None = None  # run directory; null: outputs/<task>/<experiment_name>_<run_name>
    experiment_name: str | None = None  # null: the algorithm
    run_name: str | None = None  # null: the seed
    eval_episodes: int = 100  # of one evaluation while training, with the deterministic policy
    final_episodes: int = 1000  # of the evaluation at the end
    eval_seed: int = 1_000_000  # of evaluation episodes; training seeds are smaller
    # Finished episodes after which a checkpoint is due, besides save_every; null: never. Where episodes begin anew at a
    # checkpoint (most simulators cannot be saved), so many of every environment: else none would come to its end.
    save_every_episodes: int | None = None
    export: bool = False  # export/policy.pt (TorchScript) and policy.onnx at the end, checked for equal actions


def nearest(name: str, known: Sequence[str], what: str) -> ValueError:
    """The complaint about an unknown name, with the nearest known ones or all of them."""
    lower = {k.lower(): k for k in known}
    near = [lower[n] for n in difflib.get_close_matches(name.lower(), lower, n=3, cutoff=0.5)]
    hint = f"did you mean {' or '.join(near)}?" if near else f"there are {', '.join(known)}"
    return ValueError(f"{what} '{name}' is unknown; {hint}")


def check_policy_run(block: str, run: PolicyRunConfig) -> None:
    """Raises ValueError naming key and remedy."""
    if run.algorithm not in ALGORITHMS:
        raise nearest(run.algorithm, ALGORITHMS, f"{block}.algorithm")
    counts = (
        "num_envs", "eval_episodes", "final_episodes", "save_every", "save_every_episodes", "log_every", "eval_every",
    )  # fmt: skip
    for name in counts:
        value = getattr(run, name)
        if value is not None and value < 1:
            raise ValueError(f"{block}.{name} is {value}; it must be at least 1")
