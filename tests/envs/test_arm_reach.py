import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rl.envs import arm_reach
from rl.envs import franka_kinematics as franka
from rl.envs.arm_expert import expert_actions
from rl.envs.arm_reach import DISTANCE, HORIZON, JOINTS, TARGET, TOOL, VELOCITIES, ArmReach
from rl.types import VectorStep


def random_actions(env: ArmReach, seed: int) -> torch.Tensor:
    return torch.rand(env.num_envs, 7, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def run(env: ArmReach, steps: int, seed: int = 0) -> list[VectorStep]:
    return [env.step(random_actions(env, seed + t)) for t in range(steps)]


def test_an_episode_begins_at_home_with_a_target_the_task_allows() -> None:
    obs = ArmReach(5000, random_phase=False).reset(3)
    torch.testing.assert_close(obs[:, JOINTS], torch.tensor([franka.HOME]).expand(5000, -1))
    assert bool((obs[:, VELOCITIES] == 0).all())
    target = obs[:, TARGET]
    radius = target.norm(dim=1)
    assert bool((target[:, 2] > 0.05).all()) and bool((radius > 0.3).all()) and bool((radius < 0.75).all())
    torch.testing.assert_close(obs[:, DISTANCE][:, 0], (obs[:, TOOL] - target).norm(dim=1))
    assert 0.52 < float(obs[:, DISTANCE].mean()) < 0.54


def test_targets_lie_all_around_the_base() -> None:
    target = ArmReach(4000).reset(0)[:, TARGET]
    quadrants = torch.stack([(target[:, 0] > 0) == a for a in (True, False)])
    assert all(800 < int((q & ((target[:, 1] > 0) == b)).sum()) < 1300 for q in quadrants for b in (True, False))


def test_an_action_moves_the_joints_by_a_tenth_of_a_radian_at_most() -> None:
    env = ArmReach(2, random_phase=False)
    before = env.reset(0)[:, JOINTS]
    actions = torch.tensor([[1.0, -1.0, 0.5, 0.0, 5.0, -5.0, 0.1], [0.0] * 7])
    after = env.step(actions).next_observation
    moves = torch.tensor([[0.1, -0.1, 0.05, 0.0, 0.1, -0.1, 0.01], [0.0] * 7])
    torch.testing.assert_close(after[:, JOINTS] - before, moves, atol=1e-6, rtol=0)
    torch.testing.assert_close(after[:, VELOCITIES], moves * 10, atol=1e-5, rtol=0)


def test_joints_stop_at_their_limits_and_the_velocity_is_of_what_was_executed() -> None:
    env = ArmReach(1, random_phase=False)
    env.reset(0)
    for _ in range(40):
        step = env.step(torch.ones(1, 7))
    high = franka.joint_limits()[1]
    torch.testing.assert_close(step.next_observation[0, JOINTS], high)
    assert bool((step.next_observation[0, VELOCITIES] == 0).all())


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 1000), steps=st.integers(1, 250))
def test_observations_and_rewards_follow_from_the_joints(seed: int, steps: int) -> None:
    env = ArmReach(3)
    env.reset(seed)
    step = run(env, steps, seed)[-1]
    obs = step.next_observation
    tool = franka.tool_position(obs[:, JOINTS].double().t()).t()
    distance = (tool - obs[:, TARGET]).norm(dim=1).float()
    torch.testing.assert_close(obs[:, TOOL], tool.float(), atol=1e-5, rtol=0)
    torch.testing.assert_close(obs[:, DISTANCE][:, 0], distance, atol=1e-5, rtol=0)
    torch.testing.assert_close(step.reward, -distance, atol=1e-5, rtol=0)
    assert torch.equal(step.infos["gripper_closed"], step.infos["distance"] < 0.15)
    assert all(env.observation_space.contains(row.numpy()) for row in step.observation)


def test_the_time_limit_truncates_after_100_steps_and_the_final_observation_is_kept() -> None:
    env = ArmReach(4, random_phase=False)
    first = env.reset(7)
    steps = run(env, HORIZON)
    assert not any(bool(s.truncated.any()) for s in steps[:-1])
    last = steps[-1]
    assert bool(last.truncated.all()) and not bool(last.terminated.any()) and bool(last.valid.all())
    home = torch.tensor([franka.HOME]).expand(4, -1)
    torch.testing.assert_close(last.observation[:, JOINTS], home)
    assert not torch.equal(last.next_observation[:, JOINTS], home)
    torch.testing.assert_close(last.next_observation[:, TARGET], first[:, TARGET])
    assert not torch.equal(last.observation[:, TARGET], first[:, TARGET])


def test_where_no_episode_ends_both_observations_are_the_same() -> None:
    env = ArmReach(64)
    env.reset(0)
    for step in run(env, 120):
        goes_on = ~step.truncated
        assert torch.equal(step.observation[goes_on], step.next_observation[goes_on])


def test_random_phases_spread_the_ends_and_later_episodes_are_whole() -> None:
    env = ArmReach(300)
    env.reset(1)
    ended = torch.stack([s.truncated for s in run(env, 3 * HORIZON)])
    first = ended.int().argmax(0)
    assert len(first.unique()) > 80
    for i in range(300):
        gaps = ended[:, i].nonzero().flatten().diff()
        assert bool((gaps == HORIZON).all())


def test_every_episode_has_a_target_of_its_own() -> None:
    env = ArmReach(8)
    seen = [env.reset(0)[:, TARGET]]
    for step in run(env, 5 * HORIZON):
        seen += [step.observation[step.truncated][:, TARGET]]
    targets = torch.cat(seen)
    assert len(targets) == 48 and len(targets.unique(dim=0)) == 48


def test_the_episodes_are_a_function_of_the_seed() -> None:
    def targets(seed: int) -> torch.Tensor:
        env = ArmReach(5)
        return torch.cat([env.reset(seed)[:, TARGET], *[s.observation[:, TARGET] for s in run(env, 150)]])

    assert torch.equal(targets(4), targets(4))
    assert not torch.equal(targets(4), targets(5))


def test_a_reset_without_a_seed_goes_on_with_other_episodes_and_with_the_seed_starts_over() -> None:
    env = ArmReach(5, seed=2)
    first, second, again = env.reset(2), env.reset(), env.reset(2)
    assert torch.equal(first, again) and not torch.equal(first, second)


def test_success_needs_five_consecutive_steps_within_five_centimetres() -> None:
    env = ArmReach(200, random_phase=False)
    obs = env.reset(0)
    near, success = [], []
    for t in range(HORIZON):
        # The expert, thrown off every now and then, so that short visits occur.
        actions = expert_actions(obs) if t % 16 < 13 else random_actions(env, t)
        step = env.step(actions)
        near.append(step.infos["distance"] < 0.05)
        success.append(step.infos["success"])
        obs = step.observation
    for i in range(200):
        streak, expected = 0, False
        for t in range(HORIZON):
            streak = streak + 1 if near[t][i] else 0
            expected = expected or streak >= 5
            assert bool(success[t][i]) == expected
    assert bool(success[-1].any())


def test_success_of_one_episode_does_not_carry_into_the_next() -> None:
    env = ArmReach(50, random_phase=False)
    obs = env.reset(0)
    for _ in range(HORIZON):
        step = env.step(expert_actions(obs))
        obs = step.observation
    assert float(step.infos["success"].float().mean()) > 0.9
    assert not bool(env.step(torch.zeros(50, 7)).infos["success"].any())


def test_the_expert_solves_the_task() -> None:
    env = ArmReach(1000, random_phase=False)
    obs = env.reset(11)
    for _ in range(HORIZON):
        step = env.step(expert_actions(obs))
        obs = step.observation
    assert float(step.infos["success"].float().mean()) >= 0.99


def test_random_and_zero_actions_do_not_solve_the_task() -> None:
    env = ArmReach(1000, random_phase=False)
    for act in (random_actions, lambda env, t: torch.zeros(env.num_envs, 7)):
        env.reset(11)
        for t in range(HORIZON):
            step = env.step(act(env, t))
        assert float(step.infos["success"].float().mean()) <= 0.01


def test_the_bonus_is_paid_once_an_episode_and_the_flag_says_so() -> None:
    env, plain = ArmReach(100, random_phase=False, reach_bonus=True), ArmReach(100, random_phase=False)
    obs = env.reset(0)
    plain.reset(0)
    assert obs.shape == (100, 22) and env.observation_space.shape == (22,)
    paid, flag = torch.zeros(100), obs[:, 21]
    for _ in range(HORIZON):
        actions = expert_actions(obs)
        step, without = env.step(actions), plain.step(actions)
        bonus = step.reward - without.reward
        torch.testing.assert_close(bonus, 10 * (step.next_observation[:, 21] - flag), atol=1e-5, rtol=0)
        assert bool((step.next_observation[:, 21][step.infos["distance"] < 0.05] == 1).all())
        paid, flag, obs = paid + bonus, step.next_observation[:, 21], step.observation
    assert set(paid.round().tolist()) <= {0.0, 10.0} and float(paid.mean()) > 9.8
    assert bool((obs[:, 21] == 0).all())


@pytest.mark.parametrize("after", [0, 37, 100, 163])
@pytest.mark.parametrize("reach_bonus", [False, True])
def test_a_restored_environment_continues_exactly(after: int, reach_bonus: bool) -> None:
    env, other = ArmReach(6, reach_bonus=reach_bonus), ArmReach(6, seed=9, reach_bonus=reach_bonus)
    env.reset(3)
    other.reset()
    run(env, after)
    obs = other.load_state_dict(env.state_dict())
    for a, b in zip(run(env, 230), run(other, 230), strict=True):
        assert torch.equal(a.observation, b.observation) and torch.equal(a.next_observation, b.next_observation)
        assert torch.equal(a.reward, b.reward) and torch.equal(a.truncated, b.truncated)
        assert torch.equal(a.infos["success"], b.infos["success"])
    assert obs.shape == (6, 22 if reach_bonus else 21)


def test_returned_tensors_stay_as_they_were() -> None:
    env = ArmReach(3)
    first = env.reset(0)
    copy = first.clone()
    step = run(env, 1)[0]
    kept = step.next_observation.clone()
    run(env, 5)
    assert torch.equal(first, copy) and torch.equal(step.next_observation, kept)


def test_a_wrong_use_is_refused_with_what_is_wrong() -> None:
    with pytest.raises(ValueError, match="num_envs is 0"):
        ArmReach(0)
    with pytest.raises(ValueError, match="seed is -1"):
        ArmReach(1, seed=-1)
    env = ArmReach(2)
    with pytest.raises(ValueError, match=r"call reset\(\) first"):
        env.step(torch.zeros(2, 7))
    env.reset()
    with pytest.raises(ValueError, match=r"expected \(2, 7\)"):
        env.step(torch.zeros(2, 8))
    with pytest.raises(ValueError, match="another task"):
        env.load_state_dict({"seed": 0})
    with pytest.raises(ValueError, match="number of environments"):
        other = ArmReach(3)
        other.reset()
        env.load_state_dict(other.state_dict())


def test_targets_need_as_many_draws_as_it_takes() -> None:
    targets = arm_reach.sample_targets(20_000, torch.Generator().manual_seed(0))
    assert bool(torch.isfinite(targets).all()) and bool((targets.norm(dim=1) < 0.75).all())
