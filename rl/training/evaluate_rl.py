"""`train.sh evaluate`: measures a checkpoint on held-out scenes."""

import json
import logging
import shlex
import sys
from pathlib import Path
from typing import Any

from rl import config as rl_config
from rl.data.statistics import Interval
from rl.normalizers import Normalizer
from rl.suppress_logs import suppress_logs
from rl.training import cli, provenance
from rl.training.atomic_io import write_atomic
from rl.training.checkpoint import load_strict, open_checkpoint
from rl.training.collector import EpisodeCollector, RandomActions
from rl.training.gpu import setup_sapien_gpu
from rl.training.logging_setup import setup_logging
from rl.training.model_setup import build_for_loading
from rl.training.parallel_utils import ParallelContext
from rl.training.progress import Progress
from rl.training.world_model_data import WorldModelData
from rl.training.world_model_evaluation import WorldModelEvaluator, summarise
from rl.types import EpisodeRecord

log = logging.getLogger("rl.training.evaluate_rl")
HEADLINES = (
    "greedy_minus_copy/psnr", "soft_minus_copy/psnr", "latent_minus_copy/psnr", "shuffled_minus_true/nll",
    "generated_minus_copy/accuracy", "no_memory_minus_true/nll",
)  # fmt: skip


def collect_held_out(cfg: rl_config.Config, arch: rl_config.F1Config, device: str) -> list[EpisodeRecord]:
    """Random-action episodes of seeds that no training uses, each in a scene of its own."""
    cfg.environment.scene_reset_interval = 1
    count, seed = cfg.evaluation.num_episodes, cfg.evaluation.seed
    if seed < rl_config.HELD_OUT_SEED:
        raise ValueError(f"evaluation.seed is {seed}; held-out seeds begin at {rl_config.HELD_OUT_SEED}")
    cfg.training.num_envs = 1
    collector = EpisodeCollector(cfg, "teacher", 0, device, arch.n_obs_img_steps, arch.obs_img_stride, seed)
    act = RandomActions(seed, 0, collector.action_mask, 1)
    progress, records = Progress(count, log_every=max(1, count // 4)), []
    for _ in range(count):
        records += collector.collect_steps(collector.steps_per_episode, act)
        progress.update(len(records), len(records) * collector.steps_per_episode, {})
    progress.close()
    collector.close()
    return records


def evaluate_teacher(args: cli.Args, ctx: ParallelContext) -> dict[str, Any]:
    if args.checkpoint is None:
        raise ValueError("--checkpoint DIR is missing: a checkpoint-N or a run directory")
    saved = open_checkpoint(args.checkpoint)
    cfg, arch = run_config(args, saved.path.parent)
    policy = build_for_loading(cfg, arch, ctx.device)
    load_strict(policy, saved.read("model.pt"), saved.path)
    training = saved.read("training_state.pt")
    states = Normalizer(training["states"]["mask"])
    states.load_state_dict(training["states"])
    data = WorldModelData(policy, states, cfg.environment.instruction, cache_vision=True)
    records = collect_held_out(cfg, arch, "cpu" if ctx.device.type == "cpu" else f"cuda:{ctx.device.index or 0}")
    numbers = WorldModelEvaluator(policy, data, ctx, cfg.evaluation.seed).evaluate(records)
    intervals = summarise(numbers, cfg.evaluation.bootstrap_samples, cfg.evaluation.seed)
    return {
        "phase": "teacher", "checkpoint": saved.path.name, "seed": cfg.evaluation.seed, "episodes": len(numbers),
        "command": "python -m rl.training.evaluate_rl " + shlex.join(sys.argv[1:]),
        "machine": provenance.machine(),
        "measures": {k: vars(v) for k, v in intervals.items()},
        "per_episode": [{"episode": n.index, **n.values} for n in numbers],
    }  # fmt: skip


def run_config(args: cli.Args, run: Path) -> tuple[rl_config.Config, rl_config.F1Config]:
    """The configuration and architecture the run was trained with, under what the command line says."""
    cfg, arch = args.config, args.arch
    if (run / "config.yaml").is_file():
        cfg = rl_config.load(run / "config.yaml", args.overrides)
    if (run / "model_config.yaml").is_file():
        given = [o for o in args.overrides if o.startswith("model.config_file=")]
        given += [f"arch.{o}" for o in args.arch_overrides]
        if given:
            what = given[0].replace('"', "")
            raise ValueError(f"{what}: the architecture of a checkpoint is that of {run}/model_config.yaml; drop it")
        arch = rl_config.load_model(str(run / "model_config.yaml"))
    return cfg, arch


def table(measures: dict[str, dict[str, Any]]) -> str:
    """Measures as text, the deciding differences first."""
    names = [n for n in HEADLINES if n in measures] + sorted(n for n in measures if n not in HEADLINES)
    width = max(len(n) for n in names)
    return "\n".join(f"{n:<{width}}  {Interval(**measures[n])}" for n in names)


def main(args: cli.Args) -> None:
    if args.eval_phase not in (None, "teacher"):
        raise ValueError(f"--phase {args.eval_phase} is not available in this version; there is: teacher")
    setup_sapien_gpu()
    suppress_logs()
    ctx = ParallelContext.create(args.config.training)
    setup_logging(args.config.logging)
    result = evaluate_teacher(args, ctx)
    print(f"{result['checkpoint']}, {result['episodes']} held-out episodes, mean [95 % interval over episodes]")
    print(table(result["measures"]))
    print(f"machine: {result['machine']}")
    if args.json is not None:
        write_atomic(args.json, json.dumps(result, indent=1) + "\n")
    ctx.close()


if __name__ == "__main__":
    cli.run_main("evaluate", main)
