"""PPO against its peers: `python -m benchmarks.ppo_speed [--json FILE] [--num_envs 1024 ...] [--device cpu]`.

Environment steps per second, learning included, of this project's PPO (eager, compiled and, on a GPU, as CUDA graphs),
rsl_rl and Stable-Baselines3 on the same ArmReach environments with the same network, rollout, epochs and minibatches.
Contenders take turns, one iteration each a round, so that whatever else the machine does hits all of them. The first
rounds (compilation, allocation) do not count. For a GPU: `--device cuda --num_envs 4096 16384`. The file of --json is
written after each number of environments.
"""

import argparse
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import stable_baselines3 as sb3
import torch
from rsl_rl import algorithms as rsl_rl
from rsl_rl.models import MLPModel
from rsl_rl.storage import RolloutStorage as RslStorage
from stable_baselines3.common.vec_env import VecEnv
from tensordict import TensorDict

from benchmarks.runs import NO_EPISODES, write
from rl.algorithms.ppo import PPO, SingleProcess, make_optimizer
from rl.algorithms.ppo_rollout import RolloutActor
from rl.config import CONFIG_DIR, load
from rl.data.episode_statistics import EpisodeStatistics
from rl.envs.arm_reach import ArmReach
from rl.models.actor_critic import ActorCritic
from rl.training.provenance import git_commit, machine

STEPS, EPOCHS, MINIBATCHES = 24, 5, 4
Iteration = Callable[[], None]


def ours(num_envs: int, hidden: list[int], device: str, seed: int, *overrides: str) -> Iteration:
    """The preset rsl_rl."""
    sizes = [f"n_steps={STEPS}", f"n_epochs={EPOCHS}", f"num_minibatches={MINIBATCHES}", f"network.hidden={hidden}"]
    cfg = load(CONFIG_DIR / "algo" / "rsl_rl.yaml", [f"ppo.{o}" for o in (*sizes, *overrides)]).ppo
    torch.manual_seed(seed)
    env, one = ArmReach(num_envs, device, seed=seed), SingleProcess()
    policy = ActorCritic(env.observation_space, env.action_space, cfg.network).to(device)
    generator = torch.Generator(device).manual_seed(seed)
    actor = RolloutActor(cfg, policy, env.observation_space, env.action_space, num_envs, env.device, generator)
    ppo = PPO(cfg, policy, policy, make_optimizer(cfg, policy.parameters()), one, generator)
    statistics = EpisodeStatistics(num_envs)
    actor.start(env.reset())

    def iteration() -> None:
        for _ in range(STEPS):
            step = env.step(actor.act(one.autocast()))
            actor.record(step)
            statistics.add(step)
        statistics.flush()
        ppo.update(actor.finish(one.total, one.autocast()), 0.0)
        actor.end_update(one.total)

    return iteration


def rsl(num_envs: int, hidden: list[int], device: str, seed: int) -> Iteration:
    """What rsl_rl's runner does in an iteration, without its logging."""
    torch.manual_seed(seed)
    env = ArmReach(num_envs, device, seed=seed)
    x = TensorDict({"policy": env.reset()}, batch_size=[num_envs], device=device)
    groups = {"actor": ["policy"], "critic": ["policy"]}
    normal = {"class_name": "rsl_rl.modules.distribution:GaussianDistribution", "init_std": 1.0, "std_type": "scalar"}
    actor = MLPModel(x, groups, "actor", 7, hidden, "elu", obs_normalization=True, distribution_cfg=normal)
    critic = MLPModel(x, groups, "critic", 1, hidden, "elu", obs_normalization=True)
    algorithm = rsl_rl.PPO(
        actor, critic, RslStorage("rl", num_envs, STEPS, x, (7,), device), num_learning_epochs=EPOCHS,
        num_mini_batches=MINIBATCHES, entropy_coef=0.005, device=device,
    )  # fmt: skip
    state = [x]

    def iteration() -> None:
        with torch.inference_mode():
            for _ in range(STEPS):
                step = env.step(algorithm.act(state[0]))
                state[0] = TensorDict({"policy": step.observation}, batch_size=[num_envs], device=device)
                ended = (step.terminated | step.truncated).long()
                algorithm.process_env_step(state[0], step.reward, ended, {"time_outs": step.truncated})
            algorithm.compute_returns(state[0])
        algorithm.update()

    return iteration


class ArmVecEnv(VecEnv):
    """ArmReach as Stable-Baselines3 wants it: numpy and one info a row."""

    def __init__(self, env: ArmReach) -> None:
        box = env.observation_space
        super().__init__(env.num_envs, gym.spaces.Box(box.low, box.high, dtype=np.float32), env.action_space)
        self.inner = env

    def reset(self) -> np.ndarray:
        return self.inner.reset().cpu().numpy()

    def step_async(self, actions: np.ndarray) -> None:
        self.actions = torch.from_numpy(actions).to(self.inner.device)

    def step_wait(self) -> Any:
        step = self.inner.step(self.actions)
        ended = (step.terminated | step.truncated).cpu().numpy()
        infos: list[dict[str, Any]] = [{} for _ in range(self.num_envs)]
        last = step.next_observation.cpu().numpy()
        for e in ended.nonzero()[0]:
            infos[e] = {"terminal_observation": last[e], "TimeLimit.truncated": bool(step.truncated[e])}
        return step.observation.cpu().numpy(), step.reward.cpu().numpy(), ended, infos

    def close(self) -> None: ...

    def env_is_wrapped(self, wrapper_class: Any, indices: Any = None) -> list[bool]:
        return [False] * self.num_envs

    def env_method(self, *args: Any, **kwargs: Any) -> Any:
        raise NotImplementedError

    def get_attr(self, attr_name: str, indices: Any = None) -> list[Any]:
        return [getattr(self.inner, attr_name, None)] * self.num_envs

    def set_attr(self, *args: Any, **kwargs: Any) -> None:
        raise NotImplementedError


def stable_baselines3(num_envs: int, hidden: list[int], device: str, seed: int) -> Iteration:
    rows = num_envs * STEPS
    algorithm = sb3.PPO(
        "MlpPolicy", ArmVecEnv(ArmReach(num_envs, device, seed=seed)), n_steps=STEPS, n_epochs=EPOCHS,
        batch_size=rows // MINIBATCHES, policy_kwargs={"activation_fn": torch.nn.ELU, "net_arch": hidden}, seed=seed,
        device=device, verbose=0,
    )  # fmt: skip
    return lambda: algorithm.learn(rows, reset_num_timesteps=False, log_interval=None) and None


def makers(num_envs: int, hidden: list[int], device: str, seed: int) -> dict[str, Callable[[], Iteration]]:
    """Contenders by name; CUDA graphs where there is a GPU."""
    settings = (num_envs, hidden, device, seed)
    found: dict[str, Callable[[], Iteration]] = {
        "ours": lambda: ours(*settings),
        "ours_compiled": lambda: ours(*settings, "compile=true"),
        "ours_cuda_graphs": lambda: ours(*settings, "compile=true", "compile_mode=cuda_graphs"),
        "rsl_rl": lambda: rsl(*settings),
        "stable_baselines3": lambda: stable_baselines3(*settings),
    }
    return found if device != "cpu" else {k: v for k, v in found.items() if k != "ours_cuda_graphs"}


def measure(contenders: dict[str, Iteration], rounds: int, warmup: int, rows: int, device: str) -> list[dict[str, Any]]:
    """One row a contender: median and best steps/s, and what was measured."""
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for i in range(warmup + rounds):
        for name, iteration in contenders.items():
            start = time.perf_counter()
            iteration()
            if device != "cpu":
                torch.cuda.synchronize()
            if i >= warmup:
                seconds[name].append(time.perf_counter() - start)
    return [
        {
            "name": name, "algorithm": "PPO", "task": "ArmReach-v1", "env_steps": rows * rounds,
            "wall_seconds": sum(taken), "steps_per_second": rows / statistics.median(taken), "best": rows / min(taken),
        }
        for name, taken in seconds.items()
    ]  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="write the results there")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--num_envs", type=int, nargs="+", default=[1024])
    parser.add_argument("--hidden", type=int, nargs="+", default=[128, 128])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--warmup", type=int, default=2)
    parser.add_argument("--only", nargs="+", help="contenders to run", choices=list(makers(1, [1], "cuda", 0)))
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    result: dict[str, Any] = {
        "machine": machine(), "load": os.getloadavg()[0], "threads": args.threads, "device": args.device,
        "seed": args.seed, "hidden": args.hidden, "rounds": args.rounds, "code_commit": git_commit(), "rows": [],
    }  # fmt: skip
    print(f"{result['machine']}, {args.threads} threads, {args.device}, ELU {args.hidden}")
    print(f"{'environments':>12} {'':>20} {'steps/s, median':>16} {'best':>12} {'times first':>11}")
    for num_envs in args.num_envs:
        made = makers(num_envs, args.hidden, args.device, args.seed)
        chosen = {name: make() for name, make in made.items() if args.only is None or name in args.only}
        rows = measure(chosen, args.rounds, args.warmup, num_envs * STEPS, args.device)
        for row in rows:
            times = row["steps_per_second"] / rows[0]["steps_per_second"]
            cells = f"{row['steps_per_second']:>16,.0f} {row['best']:>12,.0f} {times:>11.2f}"
            print(f"{num_envs:>12} {row['name']:>20} {cells}")
            result["rows"].append({"num_envs": num_envs, "seed": args.seed, **row, **NO_EPISODES})
        if args.json is not None:
            write(args.json, result)


if __name__ == "__main__":
    main()
