"""Parts of phase 3 by themselves: swapped weights, the pool, the leash, the way back, signs of a collapse."""

import logging
from collections.abc import Iterator

import numpy as np
import pytest
import torch

from f1_vla.builders import build_policy
from f1_vla.lora import Role
from rl.config import (
    CollapseConfig,
    Config,
    DomainRandomizationConfig,
    EnvironmentConfig,
    LeashConfig,
    LoraMode,
    StudentRewardsConfig,
    Uncertainty,
    load,
    load_model,
)
from rl.data.adversarial_replay import AdversarialReplay
from rl.data.intrinsic import rewarded_names
from rl.sims import make_simulator
from rl.training.collapse import CollapseWatch, collapse_signs, token_share
from rl.training.collector import RandomActions
from rl.training.explorer_gate import Gate
from rl.training.explorer_metrics import among_episodes
from rl.training.explorer_player import Leash
from rl.training.explorer_pool import ExplorerPool
from rl.training.explorer_setup import build_explorer
from rl.training.model_setup import inject_adapter
from rl.training.parallel_utils import ParallelContext
from rl.training.scripted_actions import TowardsScreen
from rl.training.tensor_swap import on_device_of, put, swapped_in, taken, trained
from rl.training.train_adversarial_rl import unread
from rl.training.world_model_player import WorldModelPlayer, build_role

MASK = np.arange(32) < 8


# --- versions of the weights -----------------------------------------------------------------------------------------


def test_a_swapped_in_version_acts_inside_the_block_only_and_nothing_is_copied() -> None:
    net = torch.nn.Linear(2, 1)
    own, other = taken(trained(net)), {"weight": torch.ones(1, 2), "bias": torch.zeros(1)}
    place = net.weight.data_ptr()
    with pytest.raises(KeyError), swapped_in(trained(net), other):
        assert float(net(torch.tensor([[2.0, 3.0]])).detach()) == 5.0
        assert net.weight.data_ptr() == other["weight"].data_ptr()
        raise KeyError
    assert net.weight.data_ptr() == place and torch.equal(net.weight, own["weight"])
    own["weight"] += 1  # a copy: the net does not change with it
    assert not torch.equal(net.weight, own["weight"])


def test_only_what_trains_is_taken_and_a_version_of_another_model_is_refused() -> None:
    net = torch.nn.Linear(2, 1)
    net.bias.requires_grad_(False)
    assert set(taken(trained(net))) == {"weight"}
    for wrong in ({}, {"weight": torch.ones(1, 3)}, {"weight": torch.ones(1, 2), "bias": torch.ones(1)}):
        before = net.weight.clone()
        for refusing in (put, on_device_of):
            with pytest.raises(ValueError, match="does not fit"):
                refusing(trained(net), wrong)
        with pytest.raises(ValueError, match="does not fit"), swapped_in(trained(net), wrong):
            pass
        assert torch.equal(net.weight, before)


def test_the_pool_keeps_phase_two_and_the_newest_and_draws_all_of_them() -> None:
    net = torch.nn.Linear(1, 1, bias=False)
    net.weight.data.fill_(0)
    pool = ExplorerPool(trained(net), 2)
    for value in (1.0, 2.0, 3.0):
        net.weight.data.fill_(value)
        pool.add()
    net.weight.data.fill_(9)

    def members(of: ExplorerPool) -> list[float]:
        found = []
        for i in range(len(of)):
            with of.acting(i):
                found.append(float(net.weight.detach()))
        return found

    assert members(pool) == [0, 2, 3] and float(net.weight.detach()) == 9
    again = ExplorerPool(trained(net), 2)
    again.load_state_dict(pool.state_dict())
    assert members(again) == [0, 2, 3]
    drawn = [pool.choose(0, rank, number) for rank in range(2) for number in range(60)]
    assert set(drawn) == {0, 1, 2} and drawn == [again.choose(0, r, n) for r in range(2) for n in range(60)]
    assert drawn[:60] != drawn[60:]  # another order on the other rank


# --- the leash -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kl", "expected"), [(2.0, 0.2), (1.4, 0.1), (0.7, 0.1), (0.6, 0.05)])
def test_the_leash_tightens_far_from_its_target_and_loosens_near_phase_two(
    world: ParallelContext, kl: float, expected: float
) -> None:
    leash = Leash(LeashConfig(target=1.0, weight=0.1))
    out = {"kl": torch.tensor([kl - 0.5, kl + 0.5], requires_grad=True)}
    for _ in range(3):
        loss = leash.loss(None, None, out)  # type: ignore[arg-type]
    assert float(loss) == pytest.approx(0.1 * kl)
    assert leash.settle(world, 2) == pytest.approx(kl) and leash.weight == pytest.approx(expected)
    assert leash.seen == []


def test_the_leash_weighs_forwards_by_their_rows_and_stays_in_its_bounds(world: ParallelContext) -> None:
    leash = Leash(LeashConfig(target=1.0, weight=0.1, min_weight=0.08, max_weight=0.15))
    for rows, kl in [(50, 100.0), (3, 4.0), (1, 0.0)]:
        leash.loss(None, None, {"kl": torch.full((rows,), kl)})  # type: ignore[arg-type]
    assert leash.settle(world, 2) == pytest.approx(3.0)  # the newest two forwards
    assert leash.weight == 0.15
    leash.loss(None, None, {"kl": torch.zeros(1)})  # type: ignore[arg-type]
    leash.settle(world, 2)
    assert leash.weight == 0.08


# --- two roles on one base -------------------------------------------------------------------------------------------


@pytest.fixture(params=["full", "lora"])
def player(request: pytest.FixtureRequest, world: ParallelContext) -> Iterator[tuple[WorldModelPlayer, list[str]]]:
    """The world model's role on a policy that has the explorer's; and the names of the explorer's parameters."""
    cfg: Config = load(overrides=["adversarial.held_out.max_regression=0.05"])
    arch = load_model("debug_test", ["world_model.ensemble_heads=2", "world_model.ensemble_features=8"])
    cfg.model.lora.mode = LoraMode.on if request.param == "lora" else LoraMode.off
    torch.manual_seed(0)
    policy = build_policy(arch)
    if request.param == "lora":
        inject_adapter(policy, cfg, Role.world_model)
    policy.requires_grad_(False)
    explorer = build_explorer(cfg, policy, MASK, world).explorer
    names = list(trained(explorer))
    model = build_role(cfg, policy, world)
    replay = AdversarialReplay(cfg.adversarial.replay, 1, 4, 1)
    yield WorldModelPlayer(cfg, model, None, replay, world, torch.Generator()), names  # type: ignore[arg-type]


def test_no_parameter_has_two_roles_and_adapters_are_scoped(player: tuple[WorldModelPlayer, list[str]]) -> None:
    world_model, explorer = player[0], {n.removeprefix("policy.") for n in player[1]}
    ours = set(world_model.parameters)
    assert ours and not ours & explorer
    lora = world_model.model.lora
    for name in ours:
        assert not name.startswith(("trunk.act.", "flow.", "tokenizer.", "vision.tower."))
        if name.startswith("trunk."):
            assert (".lora_" in name and ".world_model." in name) == lora
    assert any(n.startswith("trunk.gen.") for n in ours) and "world_model.ensemble.readout" in ours
    own = {n for n in explorer if n.startswith("trunk.")}
    assert own and all((".lora_" in n and ".explorer." in n) == lora for n in own)


def test_a_regression_takes_weights_and_optimizer_back_and_halves_the_learning_rate(
    player: tuple[WorldModelPlayer, list[str]], caplog: pytest.LogCaptureFixture
) -> None:
    model = player[0]

    def step() -> None:
        for p in model.parameters.values():
            p.grad = torch.ones_like(p)
        model.model.optimizer.step()
        model.model.optimizer.zero_grad()

    assert not model.judge(2.0)
    step()
    assert not model.judge(1.0)  # the best
    step()
    assert not model.judge(1.04)  # within 5 %: these weights are good, the best stays 1.0
    good, state = taken(model.parameters), str(model.model.optimizer.state_dict()["state"][0]["step"])
    for rollbacks in (1, 2):
        step()
        step()
        with caplog.at_level(logging.WARNING):
            assert model.judge(1.06)
        assert all(torch.equal(p, good[n]) for n, p in model.parameters.items())
        assert str(model.model.optimizer.state_dict()["state"][0]["step"]) == state
        model.schedule.set(0.0, 10**6)
        full = [g["lr"] for g in model.model.optimizer.param_groups]
        assert model._brake() == 0.5**rollbacks
        assert [g["lr"] for g in model.model.optimizer.param_groups] == [0.5**rollbacks * x for x in full]
    assert "more than 5 % over its best 1.0000" in caplog.text
    assert model.judge(float("nan"))  # a loss that is no number is a regression, too


# --- signs of a collapse ---------------------------------------------------------------------------------------------


def test_the_token_share_is_that_of_the_most_used_class() -> None:
    assert token_share([torch.tensor([[0, 1, 1]]), torch.tensor([[1, 2, 3]])], 4) == 0.5
    assert token_share([torch.zeros(5, 3, dtype=torch.int16)], 32) == 1.0


@pytest.mark.parametrize(
    ("numbers", "word"),
    [((0.01, 1, 1, 0.1), "stands still"), ((0.99, 1, 1, 0.1), "at their bounds"),
     ((0.5, 1e-5, 1, 0.1), "nothing is left"), ((0.5, 1, 0.04, 0.1), "4.0% as much as at the start"),
     ((0.5, 1, 1, 0.9), "90% of what the explorer sees")],
)  # fmt: skip
def test_each_sign_is_named_and_a_healthy_game_has_none(numbers: tuple[float, float, float, float], word: str) -> None:
    (sign,) = collapse_signs(CollapseConfig(), *numbers)
    assert word in sign
    assert collapse_signs(CollapseConfig(), 0.5, 1.0, 0.5, 0.3) == []


def test_episodes_that_are_all_paid_alike_are_a_sign_however_much_their_decisions_differ() -> None:
    """PPO is paid the divergence at the last decision: within an episode rewards always differ."""
    paid = torch.tensor([0.0, 0.0, 0.0, 2.0]).expand(8, 4)
    assert among_episodes(paid) == 0.0
    (sign,) = collapse_signs(CollapseConfig(), 0.5, among_episodes(paid), 0.5, 0.3)
    assert "nothing is left to tell actions apart" in sign
    # Two episodes 1 apart at one decision of four: std 1 / sqrt 2 there, 0 elsewhere.
    assert among_episodes(torch.tensor([[0.0, 0.0, 0.0, 2.0], [0.0, 1.0, 0.0, 2.0]])) == pytest.approx(0.5**0.5 / 4)
    assert among_episodes(torch.tensor([[1.0, 3.0]])) == pytest.approx(2**0.5)  # one episode: its decisions


def test_settings_of_other_phases_that_this_one_does_not_read_are_told_with_what_it_reads() -> None:
    assert unread(load()) == []
    asked = load(None, ["student.ppo.epochs=7", "training.max_grad_norm=2", "student.ppo.gamma=0.9"])
    assert unread(asked) == [
        "training.max_grad_norm=2.0 is not read here, but adversarial.wm_max_grad_norm and "
        "adversarial.explorer_max_grad_norm",
        "student.ppo.epochs=7 is not read here, but adversarial.explorer_updates_per_iter",
    ]


def test_raw_rewards_are_judged_against_the_first_iteration_also_after_a_resume(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Their normalised std stays 1, as after a fresh copy of the world model."""
    names = ["memory_divergence", "disagreement"]
    watch, found = CollapseWatch(CollapseConfig(min_raw_std_share=0.1), names), []
    for number, std in enumerate([(0.2, 0.01), (0.3, 0.004), (0.1, 0.0005), (0.0, 0.01)]):
        line = {f"reward_raw_std_{n}": x for n, x in zip(names, std, strict=True)} | {"reward_raw_std_entropy": 9.0**-9}
        again = CollapseWatch(watch.cfg, names)
        again.load_state_dict(watch.state_dict())
        watch = again
        with caplog.at_level(logging.WARNING):
            found.append(
                watch.judge(line | {"action_std": 0.5, "reward_std": 1.0, "token_top_share": 0.1}, number, True)
            )
    assert [f["reward_raw_std_share"] for f in found] == pytest.approx([1.0, 0.4, 0.05, 0.0])
    assert [f["collapse_signs"] for f in found] == [0, 0, 1, 1]
    assert [r.getMessage().split(":")[0] for r in caplog.records] == ["iteration 2", "iteration 3"]


def test_the_rewarded_components_are_those_with_a_weight() -> None:
    rewards = StudentRewardsConfig(uncertainty=Uncertainty.entropy)
    assert rewarded_names(rewards) == ["memory_divergence", "entropy"]
    rewards.memory_divergence_weight = 0
    assert rewarded_names(rewards) == ["entropy"]


# --- the gate --------------------------------------------------------------------------------------------------------


def test_the_gate_closes_when_nothing_got_better_and_opens_after_its_longest_wait() -> None:
    gate, seen = Gate(2), []
    for loss in (5.0, 4.0, 4.0, 4.5, 4.6, 4.6, 3.0):
        gate.judge(loss)
        seen.append(gate.closed)
        again = Gate(2)
        again.load_state_dict(gate.state_dict())
        assert (again.closed, again.before) == (gate.closed, gate.before)
    assert seen == [False, False, True, True, False, True, False]
    never = Gate(0)
    for loss in (1.0, 2.0, 3.0):
        never.judge(loss)
        assert not never.closed


# --- the noisy suite -------------------------------------------------------------------------------------------------


def test_the_noisy_suite_turns_to_the_screen_and_then_acts_at_random() -> None:
    act = TowardsScreen(RandomActions(0, 0, MASK, 1), 0.1)
    plain = RandomActions(0, 0, MASK, 1)
    for step in range(12):
        actions, random = act({}, 0, step)[0], plain({}, 0, step)[0]
        if step < 6:  # 0.6 rad of the first joint
            assert np.flatnonzero(actions).tolist() == [0] and actions[0] == 1
        else:
            np.testing.assert_array_equal(actions, random)


def test_a_share_of_the_episodes_turns_to_the_screen_and_the_others_are_random() -> None:
    act, plain = TowardsScreen(RandomActions(0, 0, MASK, 1), 0.1, share=0.4), RandomActions(0, 0, MASK, 1)
    turned = [bool((act({}, episode, 0) != plain({}, episode, 0)).any()) for episode in range(10)]
    assert turned == [False, False, True, False, True] * 2
    never = TowardsScreen(RandomActions(0, 0, MASK, 1), 0.1, share=0.0)
    assert all((never({}, episode, 0) == plain({}, episode, 0)).all() for episode in range(10))


def test_the_wrist_camera_sees_the_screen_after_that_turn() -> None:
    config = EnvironmentConfig(domain_randomization=DomainRandomizationConfig(noisy_screen=True), num_objects=2)
    sim = make_simulator(config, seed=0)
    act = TowardsScreen(RandomActions(0, 0, MASK, 1), config.action_scale)
    for episode in range(4):
        sim.reset(episode)
        for step in range(act.steps):
            sim.step(act({}, episode, step)[0, :8])
        names = sim.entity_names()
        shown = np.mean([names.get(int(i), "") == "noisy_screen" for i in sim.segmentation("wrist").ravel()])
        assert shown > 0.4
    sim.close()
