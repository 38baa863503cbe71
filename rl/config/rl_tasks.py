"""`train.sh rl`: the same algorithms on any task by its id."""

from dataclasses import dataclass

from rl.config.policy_run import MetricsLogger, PolicyRunConfig


@dataclass
class RLConfig(PolicyRunConfig):
    """Iterations are those of the training loop: a rollout and its update for PPO and A2C, one round of steps and
    gradient steps for the others."""

    task: str = "CartPole-v1"
    max_iterations: int = 300
    headless: bool = True  # no simulator opens a window; train.sh rl refuses false
    distributed: bool = False  # a simulator on each process's own GPU
    logger: MetricsLogger = MetricsLogger.tensorboard
    eval_episodes: int = 20
    final_episodes: int = 100
    save_every: int | None = None  # iterations; null: a tenth of the run
    log_every: int | None = None  # null: a two-hundredth of the run
    eval_every: int | None = None  # null: a tenth of the run


def check_rl(run: RLConfig) -> None:
    """Raises ValueError naming key and remedy."""
    if run.max_iterations < 1:
        raise ValueError(f"rl.max_iterations is {run.max_iterations}; it must be at least 1")
