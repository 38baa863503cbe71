"""`train.sh rl`: any task by its id."""

import os

from rl.config import MetricsLogger
from rl.training import cli
from rl.training.train_arm import train


def main(args: cli.Args) -> None:
    if not args.config.rl.headless:
        raise ValueError(
            "rl.headless=false: no simulator opens a window here; leave it out, and look at what was learned with "
            "bash train.sh play --checkpoint RUN --video"
        )
    if args.config.rl.distributed and int(os.environ.get("WORLD_SIZE", "1")) == 1:
        raise ValueError("--distributed needs several processes: bash train.sh rl NUM_PROCESSES --distributed ...")
    if args.config.rl.logger is MetricsLogger.wandb:
        args.config.logging.wandb = True
    train(args)


if __name__ == "__main__":
    cli.run_main("rl", main)
