"""Our PPO with the `rsl_rl` preset against rsl_rl itself on an Isaac Lab task: returns and steps/s.

    .venv-isaaclab/bin/python -m benchmarks.isaac_rsl_rl --seeds 3 --json docs/results/isaac_cartpole.json

Both train in the same environments for the same iterations with the settings of the task's own rsl_rl configuration;
both final policies are then measured, deterministic, on the same fresh episodes. Every run is a process of its own (one
simulator each) and leaves a file under --runs; what is there is not run again, so the command can be stopped and given
again. Steps/s are of collecting and learning, without start and evaluation; those per second of CPU time say the same
on a machine that is busy with other things.
"""

import argparse
import contextlib
import copy
import io
import json
import math
import shlex
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from rl.config import Config, load
from rl.envs import registry
from rl.envs.registry import TaskOptions
from rl.sims.isaaclab import IsaacLabEnv
from rl.training.on_policy_phase import OnPolicyPhase
from rl.training.parallel_utils import ParallelContext
from rl.training.policy_evaluation import Policy, evaluate
from rl.training.provenance import git_commit, machine

REPO = Path(__file__).resolve().parents[1]
EVALUATION_SEED = 1_000_000
# Two-sided 95 % quantiles of Student's t by degrees of freedom.
STUDENT = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 6: 2.447, 7: 2.365, 8: 2.306, 9: 2.262}
TRAINERS = ("ours", "rsl_rl")
ROUND = 5  # iterations of a round of the speed measurement


def our_config(task: str, num_envs: int, seed: int, agent: dict[str, Any]) -> Config:
    """The preset `rsl_rl` with the numbers of the task's rsl_rl configuration."""
    a, net = agent["algorithm"], agent["actor"]
    return load(
        None,
        [
            f"rl.task={task}", "rl.preset=rsl_rl", f"rl.num_envs={num_envs}",
            f"training.seed={seed}", "training.device=cpu", "training.num_threads=1",
            f"ppo.n_steps={agent['num_steps_per_env']}", f"ppo.network.hidden={list(net['hidden_dims'])}",
            f"ppo.network.activation={net['activation']}", f"ppo.num_minibatches={a['num_mini_batches']}",
            f"ppo.n_epochs={a['num_learning_epochs']}", f"ppo.learning_rate={a['learning_rate']}",
            f"ppo.entropy_coef={a['entropy_coef']}", f"ppo.desired_kl={a['desired_kl']}",
            f"ppo.value_coef={a['value_loss_coef']}", f"ppo.gamma={a['gamma']}", f"ppo.gae_lambda={a['lam']}",
            f"ppo.max_grad_norm={a['max_grad_norm']}", f"ppo.clip_range={a['clip_param']}",
            f"ppo.observation_norm={'frozen' if net['obs_normalization'] else 'none'}",
        ],
        "rl",
    )  # fmt: skip


def train_ours(env: IsaacLabEnv, cfg: Config, agent: dict[str, Any], iterations: int) -> Policy:
    phase = OnPolicyPhase(cfg, env, ParallelContext.create(cfg.training), iterations, unit="iteration")
    for i in range(iterations):
        phase.collect(i)
        phase.update(i + 1)
    return Policy(phase.act)


def rsl_rl_runner(env: IsaacLabEnv, cfg: Config, agent: dict[str, Any]) -> Any:
    from isaaclab_rl.rsl_rl import RslRlVecEnvWrapper
    from rsl_rl.runners import OnPolicyRunner

    torch.manual_seed(cfg.training.seed)
    env.reset(cfg.training.seed)
    with torch.inference_mode():  # it resets, and our adapter has left inference tensors in the environment
        wrapped = RslRlVecEnvWrapper(env.env, clip_actions=agent["clip_actions"])
    return OnPolicyRunner(wrapped, agent, log_dir=None, device="cpu")


def train_rsl_rl(env: IsaacLabEnv, cfg: Config, agent: dict[str, Any], iterations: int) -> Policy:
    from tensordict import TensorDict

    runner = rsl_rl_runner(env, cfg, agent)
    runner.learn(num_learning_iterations=iterations, init_at_random_ep_len=True)
    act = runner.get_inference_policy(device="cpu")
    return Policy(lambda observation: act(TensorDict({"policy": observation}, batch_size=[env.num_envs])))


def rsl_rl_settings(task: str) -> dict[str, Any]:
    """The task's own configuration for rsl_rl."""
    import isaaclab_tasks  # noqa: F401
    from isaaclab.utils import to_dict
    from isaaclab_rl.rsl_rl import handle_deprecated_rsl_rl_cfg
    from isaaclab_tasks.utils import load_cfg_from_registry, resolve_presets

    cfg = resolve_presets(load_cfg_from_registry(task, "rsl_rl_cfg_entry_point"))
    settings: dict[str, Any] = to_dict(handle_deprecated_rsl_rl_cfg(cfg, version("rsl-rl-lib")))
    return settings


def simulator(args: argparse.Namespace) -> tuple[IsaacLabEnv, Config, dict[str, Any]]:
    """Environments that have stepped already, and both trainers' settings."""
    torch.set_num_threads(1)
    # The environment first: it chooses where robots come from before Isaac Lab is imported.
    options = TaskOptions(isaaclab=load(None, [f"rl.task={args.task}", "rl.preset=rsl_rl"], "rl").isaaclab)
    made = registry.make_vector_env(args.task, args.num_envs, "cpu", seed=args.seed, options=options)
    assert isinstance(made, IsaacLabEnv)
    agent = rsl_rl_settings(args.task)
    cfg = our_config(args.task, args.num_envs, args.seed, agent)
    made.reset(args.seed)
    for _ in range(3):  # kernels are loaded at their first use
        made.step(torch.zeros(made.num_envs, *made.action_space.shape))  # type: ignore[misc]
    return made, cfg, agent


def measure_speed(args: argparse.Namespace) -> dict[str, Any]:
    """Both trainers in turn on one simulator: steps/s of each round, by CPU time, and their ratio; and the milliseconds
    of an iteration that the simulator's own `step` does not take.

    In turn, because what else the machine does changes either by more than they differ. Each round begins with the
    untrained policies: a step of the simulator costs what its states and resets make it cost, and a better policy has
    other ones.
    """
    made, cfg, agent = simulator(args)
    phase = OnPolicyPhase(cfg, made, ParallelContext.create(cfg.training), 10_000, unit="iteration")
    runner = rsl_rl_runner(made, cfg, agent)

    networks = (phase.policy, runner.alg.actor, runner.alg.critic)
    untrained = [copy.deepcopy(n.state_dict()) for n in networks]

    def ours() -> None:
        for i in range(ROUND):
            phase.collect(i)
            phase.update(i + 1)

    def theirs() -> None:
        runner.learn(num_learning_iterations=ROUND)

    steps = ROUND * agent["num_steps_per_env"] * args.num_envs
    simulating = timed_steps(made.env)
    found: dict[str, list[float]] = {"ours": [], "rsl_rl": []}
    outside: dict[str, list[float]] = {"ours": [], "rsl_rl": []}
    for turn in range(args.rounds + 1):
        for name, train in (("ours", ours), ("rsl_rl", theirs))[:: 1 if turn % 2 else -1]:
            for network, state in zip(networks, untrained, strict=True):
                network.load_state_dict(state)
            simulating.clear()
            start = time.process_time()
            with contextlib.redirect_stdout(io.StringIO()):
                train()
            taken = time.process_time() - start
            if turn > 0:  # the first round loads what is loaded once
                found[name].append(steps / taken)
                outside[name].append(1000 * (taken - sum(simulating)) / ROUND)
    made.close()
    ratios = [a / b for a, b in zip(found["ours"], found["rsl_rl"], strict=True)]
    return {
        "steps_per_cpu_second": found,
        "ratio": statistics.median(ratios),
        "ratios": ratios,
        "ms_outside_simulator": outside,
        "code_commit": git_commit(),
        "machine": machine(),
    }


def timed_steps(env: Any) -> list[float]:
    """The CPU seconds of every `step` of the simulator from now on, whoever calls it."""
    taken: list[float] = []
    step = env.step

    def timed(actions: torch.Tensor) -> Any:
        start = time.process_time()
        result = step(actions)
        taken.append(time.process_time() - start)
        return result

    env.step = timed
    return taken


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """One run in this process."""
    made, cfg, agent = simulator(args)
    train: Callable[..., Policy] = {"ours": train_ours, "rsl_rl": train_rsl_rl}[args.trainer]
    wall, cpu = time.perf_counter(), time.process_time()
    policy = train(made, cfg, agent, args.iterations)
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    steps = args.iterations * agent["num_steps_per_env"] * args.num_envs
    found = evaluate(policy, made.evaluating(), max(args.episodes, args.num_envs), EVALUATION_SEED)
    made.close()
    return {
        "trainer": args.trainer, "algorithm": "PPO", "task": args.task, "seed": args.seed, "env_steps": steps,
        **found.numbers(),
        "steps_per_second": steps / wall, "steps_per_cpu_second": steps / cpu, "wall_seconds": wall,
        "code_commit": git_commit(), "machine": machine(),
    }  # fmt: skip


def interval(values: list[float]) -> tuple[float, float, float]:
    """Mean and 95 % interval (Student) over seeds."""
    n, mean = len(values), sum(values) / len(values)
    if n < 2:
        return mean, -math.inf, math.inf
    spread = math.sqrt(sum((v - mean) ** 2 for v in values) / (n - 1))
    half = STUDENT[n - 1] * spread / math.sqrt(n)
    return mean, mean - half, mean + half


def summary(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Intervals of both trainers, and whether each one's mean lies in the other's."""
    out: dict[str, Any] = {}
    for trainer in TRAINERS:
        own = [r for r in runs if r["trainer"] == trainer]
        mean, low, high = interval([r["mean_return"] for r in own])
        out[trainer] = {
            "mean_return": mean, "interval": [low, high], "each_seed": [r["mean_return"] for r in own],
            "steps_per_second": sum(r["steps_per_second"] for r in own) / len(own),
            "steps_per_cpu_second": sum(r["steps_per_cpu_second"] for r in own) / len(own),
        }  # fmt: skip
    ours, theirs = out["ours"], out["rsl_rl"]
    out["within_each_other"] = all(
        a["interval"][0] <= b["mean_return"] <= a["interval"][1] for a, b in ((ours, theirs), (theirs, ours))
    )
    return out


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", default="Isaac-Cartpole-Direct")
    parser.add_argument("--num_envs", type=int, default=256)
    parser.add_argument("--iterations", type=int, default=150, help="rsl_rl's own number for Cartpole is 150")
    parser.add_argument("--episodes", type=int, default=256, help="of the evaluation; at least one an environment")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0, help="first one")
    parser.add_argument("--runs", default="outputs/isaac_rsl_rl")
    parser.add_argument("--json", default=None, help="where the result goes")
    parser.add_argument("--rounds", type=int, default=8, help="of the speed measurement")
    parser.add_argument("--trainer", choices=(*TRAINERS, "speed"), help="one run in this process, to --json")
    return parser.parse_args()


def all_runs(args: argparse.Namespace) -> list[dict[str, Any]]:
    """The speed measurement, then both trainers in turn, so that a busy hour of the machine meets both."""
    runs = []
    wanted = [("speed", args.seed)]
    wanted += [(trainer, seed) for seed in range(args.seed, args.seed + args.seeds) for trainer in TRAINERS]
    for trainer, seed in wanted:
        place = REPO / args.runs / f"{args.task}_{args.num_envs}x{args.iterations}_{trainer}_{seed}.json"
        if not place.is_file():
            place.parent.mkdir(parents=True, exist_ok=True)
            settings = {
                "trainer": trainer, "seed": seed, "task": args.task, "num_envs": args.num_envs,
                "iterations": args.iterations, "episodes": args.episodes, "rounds": args.rounds, "json": place,
            }  # fmt: skip
            command = [sys.executable, "-m", "benchmarks.isaac_rsl_rl"]
            command += [word for key, value in settings.items() for word in (f"--{key}", str(value))]
            print(f"--- {trainer}, seed {seed}", flush=True)
            done = subprocess.run(command, cwd=REPO, check=False)
            if done.returncode != 0:
                raise SystemExit(done.returncode)
        runs.append(json.loads(place.read_text(encoding="utf-8")))
    return runs


def main() -> None:
    args = arguments()
    if args.trainer is not None:
        found = measure_speed(args) if args.trainer == "speed" else measure(args)
        Path(args.json).with_suffix(".tmp").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
        Path(args.json).with_suffix(".tmp").replace(args.json)
        return
    speed, *runs = all_runs(args)
    result = summary(runs)
    print(f"{args.task}, {args.num_envs} environments, {args.iterations} iterations, {args.seeds} seeds")
    for trainer in TRAINERS:
        r = result[trainer]
        print(
            f"{trainer:<7} return {r['mean_return']:.3f} [{r['interval'][0]:.3f}, {r['interval'][1]:.3f}]  "
            f"{r['steps_per_second']:.0f} steps/s, {r['steps_per_cpu_second']:.0f} per second of CPU time"
        )
    print(f"within each other's interval: {result['within_each_other']}")
    print(f"steps/s of ours / rsl_rl, in turn on one simulator, median: {speed['ratio']:.3f}")
    ours, theirs = (statistics.median(speed["ms_outside_simulator"][t]) for t in TRAINERS)
    print(f"of an iteration outside the simulator, median: ours {ours:.1f} ms, rsl_rl {theirs:.1f} ms")
    if args.json is not None:
        whole = {
            "task": args.task, "num_envs": args.num_envs, "iterations": args.iterations, **result, "speed": speed,
            "runs": runs,
            "command": f"python -m benchmarks.isaac_rsl_rl {shlex.join(sys.argv[1:])}", "machine": machine(),
        }  # fmt: skip
        Path(args.json).write_text(json.dumps(whole, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
