"""What a run of GR00T is planned to take, against what autograd keeps and tensors that live together."""

import dataclasses
import weakref
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from rl.algorithms.ppo_rollout import Batch
from rl.config import Config, load
from rl.models import gr00t_backend, gr00t_stub
from rl.models.gr00t import GR00TActorCritic, trainable_of
from rl.training import gr00t_memory, gr00t_training
from rl.training.gr00t_activations import Layer, Pass, Precision, half_copies, kept, patches
from tests.helpers.autograd_memory import kept_bytes

CPU, GB = torch.device("cpu"), 1e9
ROWS = 4
# Widths in the proportions of N1.7, so that no term is hidden by another one.
SIZES = dataclasses.replace(
    gr00t_stub.FULL, vocabulary=64, text_width=128, text_layers=2, text_heads=2, text_kv_heads=1, head_dim=64,
    text_mlp=384, vision_width=64, vision_layers=1, vision_heads=4, vision_mlp=256, vl_layers=2, vl_heads=4, hidden=64,
    dit_width=96, dit_layers=8, dit_heads=4, embodiments=2, action_slots=16, state_slots=48, horizon=40,
)  # fmt: skip


@pytest.fixture(autouse=True)
def reduced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(gr00t_stub.SIZES, "tiny", SIZES)


def config(*overrides: str) -> Config:
    return load(None, ["gr00t.backend=stub", "training.device=cpu", f"ppo.minibatch_size={ROWS}", *overrides])


def robot(cameras: int, side: int = 128) -> tuple[gym.spaces.Dict, gym.spaces.Box]:
    pictures = {f"camera{i}": gym.spaces.Box(0, 255, (3, side, side), np.uint8) for i in range(cameras)}
    return gym.spaces.Dict({"state": gym.spaces.Box(-1, 1, (5,), np.float32), **pictures}), gym.spaces.Box(-1, 1, (3,))


def actor(cfg: Config, cameras: int = 1) -> tuple[GR00TActorCritic, Any]:
    """A policy all of whose stages train, and an observation of ROWS rows."""
    torch.manual_seed(0)
    space, actions = robot(cameras)
    policy = GR00TActorCritic(gr00t_backend.stub("tiny"), space, actions, cfg.gr00t)
    policy.enter(len(cfg.gr00t.stages))
    seen = {n: torch.zeros(ROWS, *(s.shape or ()), dtype=getattr(torch, str(s.dtype))) for n, s in space.items()}
    return policy, seen


def drawn(policy: GR00TActorCritic, seen: Any) -> torch.Tensor:
    return policy.draw(seen, None, torch.ones(ROWS, dtype=torch.bool), torch.Generator()).actions


def stages(*names: str) -> list[str]:
    return [f"gr00t.stages=[{','.join(names)}]", f"gr00t.unfreeze_at=[{','.join('0' for _ in names)}]"]


CASES = [
    [*stages("dit"), "gr00t.lora_rank=4"],
    stages("dit"),
    stages("projector"),
    stages("projector", "vl_head"),
    stages("vl_head"),
    [*stages("projector", "dit", "vl_head", "backbone"), "gr00t.backbone_layers=1"],
]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("cameras", [0, 1, 2])
@pytest.mark.parametrize("case", CASES, ids=lambda c: c[0].split("=")[1] + ("+lora" if "lora" in c[-1] else ""))
def test_what_a_backward_needs_is_planned_from_above_and_closely(case: list[str], cameras: int, dtype: str) -> None:
    """Against what autograd keeps of decisions, the weights themselves left out."""
    cfg = config(f"gr00t.dtype={dtype}", *case)
    policy, seen = actor(cfg, cameras)
    decisions = drawn(policy, seen)
    measured = kept_bytes(policy, lambda: policy(seen, decisions))
    trained = {id(p) for stage in cfg.gr00t.stages for p in trainable_of(policy.model, stage, cfg.gr00t)}
    row, once = Pass(policy, cfg, CPU).kept(cfg.gr00t.stages)
    planned = ROWS * row + once + half_copies(policy, cfg, trained)
    assert 1.0 <= planned / measured < 1.15


class Alive(TorchDispatchMode):
    """Bytes of the tensors that are made inside, and the most of them together; `known` ones are not counted."""

    def __init__(self, policy: GR00TActorCritic, *known: torch.Tensor) -> None:
        super().__init__()
        own = (*policy.parameters(), *policy.buffers(), *known)
        self.sizes = {t.untyped_storage()._cdata: 0 for t in own}
        self.now = self.most = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for t in tree_leaves(out):
            if isinstance(t, torch.Tensor) and t.untyped_storage()._cdata not in self.sizes:
                storage = t.untyped_storage()
                self.sizes[storage._cdata] = storage.nbytes()
                self.now += storage.nbytes()
                weakref.finalize(storage, self._gone, storage._cdata)
        self.most = max(self.most, self.now)
        return out

    def _gone(self, key: int) -> None:
        self.now -= self.sizes.pop(key, 0)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("cameras", [0, 1, 2])
def test_a_decision_stays_within_what_is_planned_for_acting(cameras: int, dtype: str) -> None:
    cfg = config(f"gr00t.dtype={dtype}", *stages("dit"), "gr00t.lora_rank=4")
    policy, seen = actor(cfg, cameras)
    with Alive(policy, *seen.values()) as alive:
        drawn(policy, seen)
    row, once = Pass(policy, cfg, CPU).acting()
    assert 0.75 < alive.most / (ROWS * row + once) <= 1.0


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("case", CASES, ids=lambda c: c[0].split("=")[1] + ("+lora" if "lora" in c[-1] else ""))
def test_an_update_stays_within_the_plan(case: list[str], dtype: str) -> None:
    """Forward, backward and gradients; the moments of the optimizer and the copy are counted from the parameters."""
    cfg = config(f"gr00t.dtype={dtype}", f"ppo.num_envs={ROWS}", "ppo.n_steps=1", *case)
    policy, seen = actor(cfg)
    decisions = drawn(policy, seen)
    found = gr00t_memory.report(policy, cfg, CPU)
    with Alive(policy, *seen.values(), decisions) as alive:
        policy(seen, decisions).logp.sum().backward()
    passes = found.casts + found.activations + found.passing
    assert 0.75 * passes < alive.most <= passes + found.gradients


def test_a_layer_keeps_what_its_tensors_hold() -> None:
    """By hand, two tokens of width 4 in one head, an MLP of 8, float32 through a kernel that keeps no weights."""
    layer, exact = Layer(2, 2, 4, 4, 4, 1, 8), Precision(4, 4, scores=False)
    norms, attended, mlp = 2 * 2 * 4 * 4 + 4 * 4 * 2, (3 + 1) * 2 * 4 * 4 + 4 * 2, 2 * 8 * 4
    assert kept(layer, exact, trains=False) == norms + attended + mlp
    inputs = 2 * (2 * 4 * 4) + 2 * 8 * 4  # of q, k and v together, of the MLP's two products
    assert kept(layer, exact, trains=True) == norms + attended + mlp + inputs + 2 * 4 * 4 + 3 * 4 * 4


def test_a_picture_has_as_many_patches_as_it_is_cut_into() -> None:
    for height, width in ((256, 256), (64, 64), (20, 50), (48, 96)):
        cut, _ = gr00t_backend.patchify(torch.zeros(1, 3, height, width, dtype=torch.uint8))
        assert patches((3, height, width), 16) == cut.shape[1]


def test_every_camera_adds_its_tokens() -> None:
    cfg = config(*stages("dit"), "gr00t.lora_rank=4")
    tokens = [Pass(actor(cfg, n)[0], cfg, CPU).tokens for n in (0, 1, 2)]
    # four words, two around each picture; a black picture of 32 px, or 128 px in cells of 32
    assert tokens == [4 + 2 + 1, 4 + 2 + 16, 4 + 2 * (2 + 16)]


def test_the_rollout_holds_pictures_once_and_minibatches_again() -> None:
    cfg = config("ppo.num_envs=4", "ppo.n_steps=6")
    policy, _ = actor(cfg)
    picture, numbers = 3 * 128 * 128, 4 * 5
    # Before the drawn step 40 x 16 numbers, what was drawn and executed (3 each), the step, mean and log std.
    decision = 4 * (40 * 16 + 3 + 3 + 1) + 4 * (3 + 1)
    expected = (24 + 4) * (picture + numbers + decision) + 2 * 4 * (picture + numbers)
    assert gr00t_memory.rollout_bytes(policy, cfg) == expected


@pytest.mark.parametrize(
    ("settings", "rows"),
    [
        (["ppo.minibatch_size=100"], 100),
        (["ppo.minibatch_size=100", "training.gradient_accumulation_steps=3"], 34),
        (["ppo.minibatch_size=0", "ppo.num_minibatches=4"], 128),
        (["ppo.minibatch_size=100", "ppo.minibatches=by_environment"], 96),  # three environments of 32 steps
        (["ppo.minibatch_size=10000"], 512),
    ],
)
def test_as_many_decisions_learn_at_once_as_a_micro_batch_has(settings: list[str], rows: int) -> None:
    assert gr00t_memory.rows_of_an_update(load(None, ["ppo.num_envs=16", "ppo.n_steps=32", *settings])) == rows


def test_several_processes_exchange_gradients_and_rmsprop_has_one_moment() -> None:
    cfg = config(*stages("projector"))
    policy, _ = actor(cfg)
    one, two = (gr00t_memory.report(policy, cfg, CPU, n) for n in (1, 2))
    assert (one.buckets, two.buckets) == (0, one.gradients)
    assert two.total == one.total + one.gradients
    rmsprop = gr00t_memory.report(policy, config(*stages("projector"), "ppo.optimizer=rmsprop"), CPU)
    assert (one.moments, rmsprop.moments) == (2 * one.gradients, one.gradients)


def test_likelihoods_are_computed_again_in_pieces_no_larger_than_an_update_takes() -> None:
    sizes = []

    class Network(torch.nn.Module):
        def forward(self, observation: torch.Tensor, actions: torch.Tensor) -> Any:
            sizes.append(len(actions))
            return type("Found", (), {"logp": actions[:, 0], "out": actions})

    rows = torch.arange(20.0).view(5, 4, 1)
    one = rows[..., 0]
    batch = Batch(rows, rows, one, one, one, one, None, rows, torch.empty(0), None, None)
    again = gr00t_training.recomputed(Network(), batch, 8)
    assert sizes == [8, 8, 4]
    assert torch.equal(again.logp, one)


def test_the_whole_model_with_adapters_in_half_precision_fits_40_gb() -> None:
    cfg = config(
        "gr00t.size=n1.7", "gr00t.dtype=bfloat16", *stages("dit"), "gr00t.lora_rank=16", "ppo.num_envs=64",
        "ppo.n_steps=16", "ppo.minibatch_size=128",
    )  # fmt: skip
    for device in ("cpu", "cuda"):
        found = gr00t_memory.planned(cfg, torch.device(device), gr00t_memory.planned_robot())
        assert 2.9e9 < sum(row[1] for row in found.parts) < 3.3e9
        assert found.total < 40e9


def test_what_does_not_fit_is_said_with_where_and_how_much(monkeypatch: pytest.MonkeyPatch) -> None:
    cfg = config(*stages("dit"))
    found = gr00t_memory.report(actor(cfg)[0], cfg, CPU)
    free = {"cpu": 0, "cuda": 0}
    monkeypatch.setattr(gr00t_memory, "free_bytes", lambda device: free[device.type])
    free["cpu"] = max(found.total, found.making)
    assert found.shortage(CPU) == ""
    assert "to train in 2 processes" in found.shortage(CPU, 2)
    free["cpu"] = found.total - 1
    assert f"needs {found.total / GB:.2f} GB to train" in found.shortage(CPU)
    # Every process has a GPU of its own; all make their weights on the host.
    free |= {"cuda": found.total, "cpu": 2 * found.making}
    assert found.shortage(torch.device("cuda"), 2) == ""
    free["cpu"] = 2 * found.making - 1
    assert "while its weights are made in 2 processes" in found.shortage(torch.device("cuda"), 2)
    free["cuda"] = found.total - 1
    assert "are free on cuda" in found.shortage(torch.device("cuda"), 2)
