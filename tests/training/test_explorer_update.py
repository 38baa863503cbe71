"""PPO of the explorer learns, within the limits it is given."""

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from f1_vla.builders import build_policy
from f1_vla.config import FlowKind
from f1_vla.flow_likelihood import Chain
from rl.config import Config, StudentConfig, load_model
from rl.data.rollout import RolloutStorage
from rl.models.explorer import Explorer, Prefix
from rl.training.explorer_setup import ExplorerModel, explorer_optimizer, make_explorer
from rl.training.explorer_update import ExplorerUpdate, make_batch
from rl.training.parallel_utils import ParallelContext
from rl.training.plan import random_batch

E, N = 32, 4  # environments, decisions


def _model(student: StudentConfig, world: ParallelContext) -> ExplorerModel:
    torch.manual_seed(0)
    policy = build_policy(load_model("debug_test"))
    mask = (torch.arange(32) < 2).numpy()
    explorer = make_explorer(student, policy, mask)
    optimizer = explorer_optimizer(explorer, student)
    wrapped, prepared = world.prepare(explorer, optimizer)
    return ExplorerModel(explorer, wrapped, prepared, [p for p in explorer.parameters() if p.requires_grad], False)


def _prefix(explorer: Explorer) -> Prefix:
    config = Config()
    config.training.batch_size, config.training.bptt_length = E, 1
    torch.manual_seed(1)
    return explorer.look(random_batch(config, explorer.policy.cfg, torch.device("cpu")), torch.randn(2, E, 16))[0]


def _round(explorer: Explorer, prefix: Prefix, seed: int) -> RolloutStorage:
    rollout = RolloutStorage(N, E, torch.device("cpu"))
    explorer.eval()
    generators = [torch.Generator().manual_seed(1000 * seed + e) for e in range(E)]
    for _ in range(N):
        chain, log_prob, value = explorer.act(prefix, generators)
        rollout.add(vars(prefix), x=chain.x, steps=chain.steps, log_prob=log_prob, value=value)
    rollout.cut(torch.arange(E), value=explorer.value_of(prefix))
    return rollout


def _first_action(rollout: RolloutStorage) -> Tensor:
    """(E, N), first dim of the executed action."""
    return rollout["x"][:, :, -1, 0, 0].T


def _student(**ppo: float) -> StudentConfig:
    student = StudentConfig(learning_rate=3e-4, chunk_exec_steps=1)
    student.flow.num_steps, student.flow.chunk_size = 3, 1
    student.ppo.minibatches, student.ppo.epochs, student.ppo.gamma = 2, 3, 0.0
    for name, value in ppo.items():
        setattr(student.ppo, name, value)
    return student


@pytest.mark.parametrize("kind", [FlowKind.sde, FlowKind.noise])
def test_the_policy_moves_towards_what_is_rewarded(world: ParallelContext, kind: FlowKind) -> None:
    """Reward: minus the squared distance of the first action to 0.7. 12 iterations."""
    student = _student(kl_stop=0.05)
    student.flow.kind, student.flow.min_std, student.flow.max_std = kind, 0.3, 0.6
    model = _model(student, world)
    prefix = _prefix(model.explorer)
    update = ExplorerUpdate(student.ppo, model, world, 1, 1.0)
    distance, mean = [], []
    for i in range(12):
        rollout = _round(model.explorer, prefix, i)
        action = _first_action(rollout)
        distance.append(float((action - 0.7).square().mean()))
        mean.append(float(action.mean()))
        rewards = (-(action - 0.7).square()).clamp(min=-4)[None]
        line = update.run(make_batch(rollout, rewards, student.ppo, world), torch.Generator().manual_seed(i))
        assert line["first_ratio_error"] <= 1e-5 and line["rollout_log_prob_gap"] <= 1e-3
    assert sum(distance[-3:]) < 0.8 * sum(distance[:3]), distance
    assert sum(mean[-3:]) / 3 > sum(mean[:3]) / 3 + 0.2, mean


def _updated(world: ParallelContext, micro: int, extra: Callable | None = None) -> tuple[dict, dict[str, Tensor]]:
    student = _student()
    student.ppo.epochs = 1
    world.accelerator.gradient_accumulation_steps = micro
    model = _model(student, world)
    rollout = _round(model.explorer, _prefix(model.explorer), 0)
    update = ExplorerUpdate(student.ppo, model, world, micro, 1.0)
    batch = make_batch(rollout, torch.randn(1, E, N, generator=torch.Generator().manual_seed(0)), student.ppo, world)
    line = update.run(batch, torch.Generator().manual_seed(0), extra)
    return line, copy.deepcopy({n: p.detach() for n, p in model.explorer.named_parameters() if p.requires_grad})


def test_micro_batches_change_nothing_but_rounding(world: ParallelContext) -> None:
    (whole, a), (parts, b) = _updated(world, 1), _updated(world, 2)
    assert whole["optimizer_steps"] == parts["optimizer_steps"] == 2
    for name in ("policy_loss", "value_loss", "approx_kl", "grad_norm"):
        assert parts[name] == pytest.approx(whole[name], rel=1e-3, abs=1e-5), name
    for name, p in a.items():
        torch.testing.assert_close(b[name], p, rtol=0, atol=2e-4, msg=name)


def test_an_extra_loss_reaches_the_explorer(world: ParallelContext) -> None:
    seen: list[int] = []

    def hold(prefix: Prefix, chain: Chain, out: dict[str, Tensor]) -> Tensor:
        seen.append(len(prefix.state))
        assert len(chain.x) == len(out["log_prob"])
        return 100.0 * (out["log_prob"] - 1).square().mean()

    (plain, _), (held, _) = _updated(world, 1), _updated(world, 1, hold)
    assert seen == [E * N // 2] * 2
    assert held["grad_norm"] > 2 * plain["grad_norm"]


def test_the_value_head_goes_on_learning_after_kl_stop_and_moves_no_policy(world: ParallelContext) -> None:
    """Targets that are a function of what the head sees; the policy is stopped at its second minibatch."""
    heads, policies = [], []
    for value_epochs in (0, 60):
        student = _student(kl_stop=1e-9, value_epochs=value_epochs)
        model = _model(student, world)
        prefix = _prefix(model.explorer)
        rollout = _round(model.explorer, prefix, 0)
        target = prefix.features[:, :8].sum(1)
        batch = make_batch(rollout, target[None, :, None].expand(1, E, N), student.ppo, world)
        line = ExplorerUpdate(student.ppo, model, world, 1, 1.0).run(batch, torch.Generator().manual_seed(0))
        assert (line["kl_stopped"], line["optimizer_steps"]) == (1.0, 1.0)
        off = (model.explorer.value_of(prefix) - target).square().mean() / target.var()
        heads.append(float(off))
        policies.append({k: v.clone() for k, v in model.explorer.state_dict().items() if not k.startswith("value.")})
    assert heads[1] < 0.5 * heads[0]
    for name, before in policies[0].items():
        assert torch.equal(before, policies[1][name]), name
