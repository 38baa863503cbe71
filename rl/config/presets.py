"""Which files under configs/algo and configs/task a policy run is made of."""

from dataclasses import dataclass
from pathlib import Path

from rl.config.arm import VISION_TASK
from rl.config.isaaclab import is_isaac_task
from rl.config.policy_run import (
    BLOCKS,
    GENERAL_PRESETS,
    ISAACLAB_PRESETS,
    REACH_PRESETS,
    PolicyRunConfig,
    check_policy_run,
    nearest,
)
from rl.config.tree import CONFIG_DIR, Config


def policy_run(cfg: Config, run: str) -> PolicyRunConfig:
    """The block `arm` or `rl`."""
    return cfg.arm if run == "arm" else cfg.rl


def task_of(cfg: Config, run: str) -> str:
    """Id of the task that is trained."""
    return cfg.arm.task if run == "arm" else cfg.rl.task


def is_reach(task: str) -> bool:
    """One of the reaching arm's tasks, which the block `arm` is about whichever command trains them."""
    return task.split("-")[0] in ("ArmReach", "ArmReachPhysics", "VisionArmReach")


def preset_files(run: str, cfg: Config) -> list[Path]:
    """The algorithm's preset, then `TASK.yaml` and `TASK.ALGORITHM.yaml` where there are such; merged in this order.

    With a preset chosen by name, what is tuned for task and algorithm together stays out. Raises ValueError for an
    unknown algorithm and an unknown preset.
    """
    block, task = policy_run(cfg, run), task_of(cfg, run)
    check_policy_run(run, block)
    presets = REACH_PRESETS if is_reach(task) else ISAACLAB_PRESETS if is_isaac_task(task) else GENERAL_PRESETS
    name = block.preset or presets[block.algorithm]
    algorithm = CONFIG_DIR / "algo" / f"{name}.yaml"
    if not algorithm.is_file():
        raise nearest(name, sorted(p.stem for p in algorithm.parent.glob("*.yaml")), f"{run}.preset")
    stem = task.removesuffix("-v0") if is_isaac_task(task) else task  # Isaac Lab 2.3 numbers its tasks
    tasks = [f"{stem}.yaml"] if block.preset else [f"{stem}.yaml", f"{stem}.{block.algorithm.lower()}.yaml"]
    return [algorithm, *(p for p in (CONFIG_DIR / "task" / t for t in tasks) if p.is_file())]


def apply_run_options(cfg: Config, run: str) -> None:
    """Writes `num_envs` and `compile` of the block `run`, where given, into the block of its algorithm.

    Raises ValueError where the algorithm cannot be compiled, for a privileged critic without cameras and for a bonus
    with them.
    """
    block, task = policy_run(cfg, run), task_of(cfg, run)
    if is_reach(task) and cfg.arm.privileged_critic and task != VISION_TASK:
        raise ValueError(
            f"arm.privileged_critic is for arm.vision (task {VISION_TASK}); without cameras the actor sees the target, "
            "too"
        )
    if cfg.arm.reach_bonus and task == VISION_TASK:
        raise ValueError(f"arm.reach_bonus needs a flag in the observation, which {VISION_TASK} does not have")
    settings = getattr(cfg, BLOCKS[block.algorithm])
    if block.num_envs is not None:
        settings.num_envs = block.num_envs
    if block.compile and not hasattr(settings, "compile"):
        raise ValueError(f"{run}.compile is true, but {block.algorithm} has nothing to compile; leave it out")
    if block.compile is not None and hasattr(settings, "compile"):
        settings.compile = block.compile


@dataclass(frozen=True)
class Intervals:
    """Environment steps of `arm`, iterations of `rl`."""

    total: int
    save: int
    log: int
    evaluate: int


def intervals(cfg: Config, run: str) -> Intervals:
    """Length of the run, and when to save, write and evaluate."""
    if run == "arm":
        return Intervals(cfg.arm.steps, cfg.arm.save_every, cfg.arm.log_every, cfg.arm.eval_every)
    rl, total = cfg.rl, cfg.rl.max_iterations
    tenth = -(-total // 10)
    return Intervals(total, rl.save_every or tenth, rl.log_every or -(-total // 200), rl.eval_every or tenth)


def run_directory(cfg: Config, run: str) -> Path:
    """`output_dir` of the block, or outputs/<task>/<experiment>_<run>."""
    block = policy_run(cfg, run)
    if block.output_dir is not None:
        return Path(block.output_dir)
    experiment = block.experiment_name or block.algorithm.lower()
    return (
        Path("outputs")
        / task_of(cfg, run).replace("/", "_")
        / f"{experiment}_{block.run_name or f'seed{cfg.training.seed}'}"
    )
