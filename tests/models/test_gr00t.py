"""GR00T as actor-critic, on a model of its shapes with random weights.

`bash tests/run.sh gr00t` runs the same tests on LeRobot's N1.7, reduced in size, in its own environment.
"""

import math
import os
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from torch import Tensor, nn

from f1_vla.config import FlowKind, StochasticSteps
from f1_vla.flow_likelihood import Chain, FlowProcess, chain_likelihood
from rl.config import GR00TConfig, load
from rl.models import gr00t_backend, gr00t_real
from rl.models.gr00t import GR00TActorCritic, language_layers
from rl.models.gr00t_backend import Gr00tModel, part_of, patchify, remove_dropout
from rl.models.gr00t_checkpoint import Embodiment
from rl.models.gr00t_state import StateMap

STATE = gym.spaces.Box(-np.inf, np.inf, (5,), np.float32)
ACTION = gym.spaces.Box(-1.0, 1.0, (3,), np.float32)
SEEN = gym.spaces.Dict({"state": STATE, "pixels": gym.spaces.Box(0, 255, (6, 32, 32), np.uint8)})
ALL = ["projector", "dit", "vl_head", "backbone"]
BACKEND = os.environ.get("GR00T_BACKEND", "stub")


def model() -> Gr00tModel:
    return gr00t_backend.stub("tiny") if BACKEND == "stub" else gr00t_real.load(BACKEND, None, "tiny")


def policy(
    space: gym.Space[Any] = STATE, robot: Embodiment | None = None, state_map: StateMap | None = None, **settings: Any
) -> GR00TActorCritic:
    torch.manual_seed(0)
    return GR00TActorCritic(model(), space, ACTION, GR00TConfig(backend=BACKEND, **settings), robot, state_map)


def look(batch: int, pictures: bool = False) -> Any:
    g = torch.Generator().manual_seed(1)
    state = torch.randn(batch, 5, generator=g)
    if not pictures:
        return state
    return {"state": state, "pixels": torch.randint(256, (batch, 6, 32, 32), generator=g).to(torch.uint8)}


def drawn(p: GR00TActorCritic, observation: Any, seed: int = 2) -> Any:
    B = len(observation if isinstance(observation, Tensor) else observation["state"])
    return p.draw(observation, None, torch.ones(B, dtype=torch.bool), torch.Generator().manual_seed(seed))


class TestLikelihood:
    @pytest.mark.parametrize("pictures", [False, True])
    def test_acting_and_training_agree_on_likelihood_and_value(self, pictures: bool) -> None:
        p, observation = policy(SEEN if pictures else STATE), look(6, pictures)
        d = drawn(p, observation)
        p.train()  # dropout of the model must stay away
        found = p(observation, d.actions)
        assert torch.allclose(found.logp, p.distribution.log_prob(d.out, d.actions), atol=1e-4)
        assert torch.allclose(found.values, d.value, atol=1e-5)
        assert (found.logp.dtype, found.values.dtype) == (torch.float32, torch.float32)

    def test_it_is_that_of_the_flow_with_one_random_step(self) -> None:
        """The same stored chain through f1_vla.flow_likelihood."""
        p, observation = policy(), look(4)
        d = drawn(p, observation)
        seen, proprio = p._look(observation)
        index = p.layout.step(d.actions)
        x = torch.zeros(4, 5, p.layout.chunk, p.layout.slots)
        rows = torch.arange(4)
        x[rows, index] = p.layout.before(d.actions)
        x[rows, index + 1, 0, :3] = p.layout.drawn(d.actions)
        process = FlowProcess(FlowKind.sde, 4, 0.5, StochasticSteps.one)
        expected, entropy = chain_likelihood(process, Chain(x, index[:, None]), p.mask_QA, p._velocity(seen, proprio))
        found = p(observation, d.actions)
        assert torch.allclose(found.logp, expected, atol=1e-5)
        assert torch.allclose(found.entropy, entropy, atol=1e-5)

    def test_by_hand_for_a_model_that_does_not_move(self) -> None:
        """v = 0: at t = 1/2 of 4 steps, n = 0.5, sigma^2 = 0.25, mean = x (1 - sigma^2 d / 2t), variance sigma^2 d."""
        p = policy()
        assert p.mix is not None
        nn.init.zeros_(p.mix.weight)
        chunk, slots = p.layout.chunk, p.layout.slots
        before = torch.full((1, chunk, slots), 2.0)
        row = p.layout.pack(before, torch.tensor([[2.0, 1.5, 2.5]]), torch.tensor([2]), torch.zeros(1, 3))
        mean, variance = 2.0 * (1 - 0.25 * 0.25 / (2 * 0.5)), 0.25 * 0.25
        expected = sum(
            -0.5 * (x - mean) ** 2 / variance - 0.5 * math.log(2 * math.pi * variance) for x in (2.0, 1.5, 2.5)
        )
        assert p(look(1), row).logp.item() == pytest.approx(expected, abs=1e-4)

    def test_only_the_executed_dims_of_the_first_action_are_random(self) -> None:
        p = policy()
        observation = look(64)
        d = drawn(p, observation)
        assert d.executed.shape == (64, 3)
        assert p.layout.step(d.actions).unique().tolist() == [0, 1, 2, 3]
        assert int(p.mask_QA.sum()) == 3
        assert p.mask_QA[0, :3].all()

    def test_its_kl_divergence_is_that_of_two_normals(self) -> None:
        p = policy()
        old, new = torch.tensor([[0.0, 1.0, 2.0, math.log(0.5)]]), torch.tensor([[0.5, 1.0, 1.0, math.log(0.8)]])
        a = torch.distributions.Normal(old[:, :3], old[:, 3:].exp())
        b = torch.distributions.Normal(new[:, :3], new[:, 3:].exp())
        expected = torch.distributions.kl_divergence(a, b).sum(-1)
        assert torch.allclose(p.distribution.kl(old, torch.empty(0), new), expected)

    def test_the_best_action_has_no_randomness(self) -> None:
        p, observation = policy(), look(3)
        first, _ = p.best(observation, None, torch.empty(0))
        assert torch.equal(first, p.best(observation, None, torch.empty(0))[0])

    def test_rows_do_not_see_each_other(self) -> None:
        p, observation = policy(SEEN), look(4, pictures=True)
        d = drawn(p, observation)
        alone = p({k: v[2:3] for k, v in observation.items()}, d.actions[2:3])
        assert torch.allclose(alone.logp, p(observation, d.actions).logp[2:3], atol=1e-4)


class TestForTheCriticAlone:
    SPACE = gym.spaces.Dict({"critic": gym.spaces.Box(-np.inf, np.inf, (60,), np.float32), "state": STATE})

    def test_the_value_head_sees_it_and_neither_state_nor_decision_does(self) -> None:
        p, g = policy(self.SPACE), torch.Generator().manual_seed(1)
        observation: Any = {"critic": torch.randn(4, 60, generator=g), "state": look(4)}
        other = observation | {"critic": torch.randn(4, 60, generator=g)}
        d = drawn(p, observation)
        found, changed = p(observation, d.actions), p(other, d.actions)
        assert (p.vectors, p.pictures, p.state_dims) == (["state"], [], 5)
        assert torch.equal(found.logp, changed.logp)
        assert not torch.allclose(found.values, changed.values)
        assert torch.allclose(found.values, d.value, atol=1e-5)
        assert torch.equal(found.values, p.value(observation))
        without = {"state": observation["state"]}  # all that a robot has
        assert torch.equal(p.best(observation, None, torch.empty(0))[0], p.best(without, None, torch.empty(0))[0])

    def test_a_picture_for_it_is_refused(self) -> None:
        space = gym.spaces.Dict({"critic_camera": gym.spaces.Box(0, 255, (3, 32, 32), np.uint8), "state": STATE})
        with pytest.raises(ValueError, match=r"'critic_camera'.*takes vectors for the critic alone only"):
            policy(space)


class TestGradients:
    def test_frozen_parts_get_none_and_the_value_does_not_reach_the_model(self) -> None:
        p = policy(stages=ALL, unfreeze_at=[0.0, 0.5, 0.5, 0.5])
        p.enter(1)
        observation = look(4)
        d = drawn(p, observation)
        found = p(observation, d.actions)
        found.values.sum().backward(retain_graph=True)
        assert all(x.grad is None or not x.grad.any() for x in p.model.parameters())
        found.logp.sum().backward()
        moved = {part_of(n) for n, x in p.model.named_parameters() if x.grad is not None and x.grad.any()}
        assert moved == {"projector"}

    def test_stages_open_one_after_another(self) -> None:
        p = policy(stages=ALL, unfreeze_at=[0.0, 0.1, 0.2, 0.3], backbone_layers=1, lora_rank=2)
        counts = []
        for stage in range(1, 5):
            new = p.enter(stage)
            assert new
            assert all(x.requires_grad for x in new)
            counts.append(sum(x.requires_grad for x in p.model.parameters()))
        assert counts == sorted(counts)
        assert len(set(counts)) == 4
        assert p.enter(4) == []
        names = {n for n, x in p.model.named_parameters() if x.requires_grad}
        assert all(".lora_" in n for n in names if part_of(n) == "dit")
        assert len([n for n in names if part_of(n) == "backbone"]) == len(
            list(language_layers(p.model)[-1].parameters())
        )

    def test_adapters_begin_without_effect(self) -> None:
        plain, adapted = policy(), policy(stages=["dit"], lora_rank=4)
        observation = look(3)
        d = drawn(plain, observation)
        assert torch.allclose(plain(observation, d.actions).logp, adapted(observation, d.actions).logp, atol=1e-5)

    def test_a_learned_map_of_the_actions_begins_as_the_identity(self) -> None:
        p = policy()
        assert p.mix is not None
        v = torch.randn(2, 4, p.model.action_slots)
        assert torch.equal(p.mix(v), v[..., :3])

    def test_half_precision_holds_what_stands_still_and_trains_in_float32(self) -> None:
        p = policy(dtype="bfloat16", stages=["projector"])
        kinds = {part_of(n): x.dtype for n, x in p.model.named_parameters() if x.dim() >= 2}
        assert kinds == {
            "backbone": torch.bfloat16, "vl_head": torch.bfloat16, "dit": torch.bfloat16, "projector": torch.float32,
        }  # fmt: skip
        p.enter(1)
        observation = look(4)
        d = drawn(p, observation)
        found = p(observation, d.actions)
        assert found.logp.dtype is found.values.dtype is torch.float32
        assert torch.allclose(found.logp, p.distribution.log_prob(d.out, d.actions), atol=1e-3)
        found.logp.sum().backward()
        assert all(torch.isfinite(x.grad).all() for x in p.parameters() if x.grad is not None)

    def test_likelihood_and_value_are_those_of_float32_whatever_precision_trains(self) -> None:
        p, observation = policy(), look(4)
        d = drawn(p, observation)
        plain = p(observation, d.actions)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            found, again = p(observation, d.actions), drawn(p, observation)
        assert torch.equal(found.logp, plain.logp)
        assert torch.equal(found.values, plain.values)
        assert torch.equal(again.actions, d.actions)


def test_making_a_model_leaves_no_folder_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    assert model().horizon > 0
    assert list(tmp_path.iterdir()) == []


class TestDropout:
    def test_every_dropout_is_removed(self) -> None:
        made = model()
        assert any(isinstance(m, nn.Dropout) for m in made.modules())
        assert remove_dropout(made) > 0
        assert not any(isinstance(m, nn.Dropout) for m in made.modules())


@pytest.mark.parametrize(("dtype", "size"), [(torch.bfloat16, 1.0), (torch.float16, 300.0)])
def test_the_mean_of_many_tokens_in_half_precision_is_that_of_float64(dtype: torch.dtype, size: float) -> None:
    """601 tokens: bfloat16 counts in steps of 4 there, and their sum of float16 would be infinite."""
    tokens = (size * (1 + torch.rand(2, 603, 8, generator=torch.Generator().manual_seed(0)))).to(dtype)
    valid = (torch.arange(603) < 601).expand(2, -1)
    found = gr00t_backend.Context(tokens, valid, valid).pooled()
    assert found.dtype is torch.float32
    assert torch.allclose(found.double(), tokens[:, :601].double().mean(1), rtol=1e-6)


class TestPictures:
    def test_patches_lie_where_the_model_looks_for_them(self) -> None:
        """Each patch of 16 x 16 holds its own number; four neighbours come together, frames twice."""
        picture = torch.arange(16).view(4, 4).repeat_interleave(16, 0).repeat_interleave(16, 1)
        patches, grid = patchify(picture.expand(1, 3, 64, 64).to(torch.uint8))
        assert grid == [1, 4, 4]
        assert patches.shape == (1, 16, 3 * 2 * 16 * 16)
        numbers = ((patches[0, :, 0] + 1) * 127.5).round().long().tolist()
        assert numbers == [0, 1, 4, 5, 2, 3, 6, 7, 8, 9, 12, 13, 10, 11, 14, 15]

    def test_other_sizes_become_the_next_multiple(self) -> None:
        assert patchify(torch.zeros(2, 3, 50, 100, dtype=torch.uint8))[1] == [1, 4, 6]

    def test_the_newest_picture_of_a_stack_counts(self) -> None:
        p, observation = policy(SEEN), look(2, pictures=True)
        d = drawn(p, observation)
        older = observation | {"pixels": observation["pixels"].clone()}
        older["pixels"][:, :3] = 0
        assert torch.equal(p(observation, d.actions).logp, p(older, d.actions).logp)
        older["pixels"][:, 3:] = 0
        assert not torch.equal(p(observation, d.actions).logp, p(older, d.actions).logp)


# --- checkpoints ------------------------------------------------------------------------------------------------------


class TestRefusals:
    def test_a_task_without_a_state_or_with_discrete_actions(self) -> None:
        made = model()
        only = gym.spaces.Box(0, 255, (3, 32, 32), np.uint8)
        with pytest.raises(ValueError, match="pictures only"):
            GR00TActorCritic(made, only, ACTION, GR00TConfig(backend="stub"))
        with pytest.raises(ValueError, match="continuous actions"):
            GR00TActorCritic(made, STATE, gym.spaces.Discrete(3), GR00TConfig(backend="stub"))
        wide = gym.spaces.Box(-1, 1, (100,), np.float32)
        with pytest.raises(ValueError, match="100 numbers"):
            GR00TActorCritic(made, wide, ACTION, GR00TConfig(backend="stub"))

    @pytest.mark.parametrize(
        ("setting", "complaint"),
        [
            ("backend=n1.8", "did you mean n1.7"),
            ("dtype=bf16", "gr00t.dtype"),
            ("stages=[dit,dit]", "twice"),
            ("unfreeze_at=[]", "one share of the run for each"),
            ("unfreeze_at=[1.5]", "shares of the run"),
            ("noise_level=0", "must be positive"),
            ("lora_rank=8", r"gr00t\.lora_rank=8 adds adapters to dit, which gr00t\.stages \['projector'\] does not"),
        ],
    )
    def test_settings_that_cannot_work(self, setting: str, complaint: str) -> None:
        with pytest.raises(ValueError, match=complaint):
            load(None, [f"gr00t.{setting}"])
