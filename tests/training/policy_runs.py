"""Whole arm and rl runs of the smallest size, in this process."""

import json
from pathlib import Path
from typing import Any

from rl.training import play, train_arm, train_rl
from tests.training.run_here import run_here

SMALL = {
    "PPO": ["ppo.num_envs=4", "ppo.n_steps=32", "ppo.n_epochs=2", "ppo.minibatch_size=64", "ppo.network.hidden=[16]"],
    "FASTSAC": [
        "sac.num_envs=4", "sac.updates_per_step=1", "sac.batch_size=32", "sac.learning_starts=64",
        "sac.network.actor_hidden=[16]", "sac.network.critic_hidden=[16]",
    ],
}  # fmt: skip
SMALL["A2C"] = ["ppo.num_envs=4", "ppo.network.hidden=[16]"]
SMALL["SAC"] = SMALL["FASTSAC"]
SMALL["DIT"] = [
    "diffusion.num_envs=4", "diffusion.batch_size=16", "diffusion.actor_batch_size=8", "diffusion.learning_starts=32",
    "diffusion.train_samples=2", "diffusion.act_samples=2", "diffusion.eval_samples=2", "diffusion.entropy_actions=1",
    "diffusion.denoising_steps=3", "diffusion.network.width=16", "diffusion.network.num_blocks=1",
    "diffusion.network.num_heads=2", "diffusion.network.critic_hidden=[16]",
]  # fmt: skip
MEASURED = ["eval_episodes=4", "final_episodes=8"]


def flags(run: str, algorithm: str, place: Path, *extra: str) -> list[str]:
    """Command line of a small run in `place`; later settings win over earlier ones of the same key."""
    settings = [*SMALL[algorithm], *(f"{run}.{m}" for m in MEASURED), "logging.tensorboard=false"]
    replaced = {e.split("=")[0] for e in extra}
    kept = [s for s in settings if s.split("=")[0] not in replaced]
    return ["--algorithm", algorithm, "--output_dir", str(place), "--device", "cpu", *kept, *extra]


def arm(algorithm: str, place: Path, *extra: str) -> int:
    return run_here(train_arm.main, flags("arm", algorithm, place, *extra), "arm")


def rl(algorithm: str, place: Path, *extra: str) -> int:
    return run_here(train_rl.main, flags("rl", algorithm, place, *extra), "rl")


def played(*argv: str) -> int:
    return run_here(play.main, list(argv), "play")


def lines(place: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (place / "episode_metrics.jsonl").read_text().splitlines()]


def result(place: Path) -> dict[str, Any]:
    return json.loads((place / "result.json").read_text())
