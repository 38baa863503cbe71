"""`train.sh play`: a trained policy acts, deterministically; video, data log, numbers, export."""

import contextlib
import json
import logging
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from rl import config as rl_config
from rl.envs.vector import VectorEnv
from rl.sims.isaaclab import IsaacLabEnv
from rl.suppress_logs import suppress_logs
from rl.training import cli, policies, policy_export, provenance
from rl.training.atomic_io import write_atomic
from rl.training.checkpoint import load_plain, open_checkpoint
from rl.training.gpu import setup_sapien_gpu
from rl.training.gr00t_training import NOT_NOTED, noted_base
from rl.training.logging_setup import setup_logging
from rl.training.media import save_video
from rl.training.parallel_utils import ParallelContext
from rl.training.play_pictures import Pictures, seconds_per_step
from rl.training.play_recording import DataLog, Episodes
from rl.training.policies import AlgorithmPhase

log = logging.getLogger("rl.training.play")
SMALL_REPLAY = 64  # slots of each environment: nothing is learned


@dataclass
class Source:
    """A trained policy on disk."""

    folder: Path  # of the run
    name: str
    origin: dict[str, Any]  # run, algorithm, task; of Isaac Lab's tasks also robots
    model: dict[str, torch.Tensor]
    statistics: dict[str, Any]
    base: str | None  # sha256 of the released GR00T weights that belong to `model`


def find(path: Path | None) -> Source:
    """A checkpoint-N, a run directory (its newest valid checkpoint) or a best_model.pt; else ValueError."""
    if path is None:
        raise ValueError("--checkpoint DIR is missing: a run directory, a checkpoint-N or a best_model.pt")
    path = path.expanduser().resolve()
    if path.is_file():
        saved = load_plain(path)
        if not isinstance(saved, dict) or "algorithm" not in saved:
            raise ValueError(f"{path} is not the best model of a run of train.sh arm or train.sh rl")
        base = saved.get("base", NOT_NOTED)
        return Source(path.parent, path.name, saved, saved["model"], saved["statistics"], base)
    checkpoint = open_checkpoint(path)
    training = checkpoint.read("training_state.pt")
    if "policy_run" not in training:
        raise ValueError(f"{checkpoint.path} was not written by train.sh arm or train.sh rl")
    origin = training["policy_run"]
    on_policy = rl_config.BLOCKS[origin["algorithm"]] == "ppo"  # the others keep their statistics in the model
    return Source(
        checkpoint.path.parent, checkpoint.path.name, origin, checkpoint.read("model.pt"),
        training["statistics"] if on_policy else {}, noted_base(training),
    )  # fmt: skip


def prepare(args: cli.Args, source: Source) -> tuple[rl_config.Config, str]:
    """Configuration of the run with the play block of the command line, and the name of its block."""
    own = rl_config.BLOCKS[source.origin["algorithm"]]
    config = rl_config.load_saved(source.folder / "config.yaml", {*rl_config.BLOCKS.values()} - {own})
    run, play = source.origin["run"], args.config.play
    config.play, config.training.device = play, args.config.training.device
    settings = policies.settings(config, run)
    settings.num_envs = play.num_envs
    if hasattr(settings, "compile"):
        settings.compile = False
    if hasattr(settings, "buffer_size"):
        settings.buffer_size = SMALL_REPLAY * play.num_envs
    policies.prefer_small_machine(config, run)
    if play.export:
        policies.check_exportable(config, run)
    return config, run


def play(args: cli.Args) -> dict[str, Any]:
    """Plays and writes; returns the numbers."""
    source = find(args.checkpoint)
    config, run = prepare(args, source)
    setup_sapien_gpu()
    suppress_logs()
    setup_logging(config.logging)
    options = config.play
    ctx = ParallelContext.create(config.training)
    env = policies.make_env(
        config, run, options.num_envs, ctx.device, options.seed, training=False, render=options.video
    )
    with contextlib.closing(env):
        if isinstance(env, IsaacLabEnv):
            env.compare_robots(source.origin.get("robots"))
        phase = policies.build_phase(config, run, env, ctx, total=1)
        policies.load_weights(phase, source.model, source.statistics, source.base, str(source.folder / source.name))
        numbers = _act(config, phase, env, source)
        if options.export:
            numbers["export"] = policy_export.export(policies.exportable(phase), env, source.folder / "export")
    ctx.close()
    origin = {k: source.origin[k] for k in ("algorithm", "task")}
    return {**origin, "seed": options.seed, "checkpoint": source.name, **numbers, "machine": provenance.machine()}


def _act(config: rl_config.Config, phase: AlgorithmPhase, env: VectorEnv, source: Source) -> dict[str, Any]:
    options, policy = config.play, policies.acting(phase)
    steps = max(options.video_length if options.video else options.steps, options.log_steps if options.log_data else 0)
    gpu = env.device.index or 0 if env.device.type == "cuda" else None
    pictures = Pictures(env, options.video_size, gpu) if options.video else None
    data = DataLog(options.log_env_ids, options.log_steps)
    episodes, frames, period = Episodes(env.num_envs, env.device), [], seconds_per_step(env)
    observation, start = env.reset(options.seed), time.monotonic()
    policy.begin(None)
    for t in range(steps):
        if pictures is not None and t < options.video_length:
            frames.append(pictures.frame(f"{source.origin['task']}  step {t}  episodes {len(episodes.returns)}"))
        actions = policy.act(observation)
        step = env.step(actions)
        if options.log_data:
            data.add(t, observation, actions, step)
        episodes.add(step)
        policy.begin((step.terminated | step.truncated) | ~step.valid)
        observation = step.observation
        if options.real_time:
            time.sleep(max(0.0, start + (t + 1) * period - time.monotonic()))
    seconds = time.monotonic() - start
    if pictures is not None:
        save_video(source.folder / "videos" / "play.mp4", frames, fps=round(1 / period))
        log.info("video: %s", source.folder / "videos" / "play.mp4")
        pictures.close()
    if options.log_data:
        data.write(source.folder / "play_data.csv")
        log.info("data: %s", source.folder / "play_data.csv")
    return {**episodes.numbers(), "steps_per_second": episodes.env_steps / seconds, "wall_seconds": seconds}


def main(args: cli.Args) -> None:
    numbers = play(args)
    for key, value in numbers.items():
        print(f"{key:<18} {value}")
    if args.json is not None:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(args.json, json.dumps(numbers, indent=1) + "\n")


if __name__ == "__main__":
    cli.run_main("play", main)
