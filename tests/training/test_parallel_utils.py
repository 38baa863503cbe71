import contextlib
import math
import socket
from pathlib import Path

import pytest
import torch

from rl.config import MixedPrecision, TrainingConfig
from rl.training.parallel_utils import ParallelContext, available_cores, parameter_hash
from tests.helpers.ranks import run_ranks
from tests.training import parallel_cases


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict]:
    return run_ranks(parallel_cases.everything, 2, tmp_path_factory.mktemp("ranks"))


def test_every_rank_knows_its_place(ranks: list[dict]) -> None:
    assert [(r["rank"], r["world_size"], r["is_main"]) for r in ranks] == [(0, 2, True), (1, 2, False)]


def test_gradients_are_averaged_over_ranks_before_clipping(ranks: list[dict]) -> None:
    # gradients 1 and 3 -> mean 2, clipped to 1, step 0.1: 2.0 -> 1.9
    for r in ranks:
        assert math.isclose(r["grad_norm"], 2.0, rel_tol=1e-6)
        assert math.isclose(r["weight"], 1.9, rel_tol=1e-5)
    assert ranks[0]["hash"] == ranks[1]["hash"]


def test_differing_ranks_are_an_error_on_all_that_names_rank_and_tensor(ranks: list[dict]) -> None:
    for r in ranks:
        assert r["errors"][0] == "at start: rank 1 differs from rank 0, first at 'b'"


def test_metrics_are_averaged_by_name_and_other_names_are_an_error(ranks: list[dict]) -> None:
    for r in ranks:
        assert r["mean"] == {"a": 1.0, "b": 0.5}
        assert r["errors"][1] == f"ranks report different metrics; rank {r['rank']} has ['only_{r['rank']}']"


def test_ranks_agree_on_flags_and_objects(ranks: list[dict]) -> None:
    for r in ranks:
        assert (r["any_of_one"], r["any_of_none"], r["all_of_one"], r["all_of_all"]) == (True, False, False, True)
        assert r["gathered"] == [{"rank": 0}, {"rank": 1}] and r["broadcast"] == "from 0"


def test_ranks_draw_from_different_streams_and_share_the_cores(ranks: list[dict]) -> None:
    assert ranks[0]["seed"] != ranks[1]["seed"]
    assert [r["threads"] for r in ranks] == [max(1, available_cores() // 2)] * 2


def test_one_process_needs_no_launcher(world: ParallelContext) -> None:
    assert (world.rank, world.world_size, world.is_main, world.device.type) == (0, 1, True, "cpu")
    assert world.mean({"a": 2.0}) == {"a": 2.0} and world.gather_objects(5) == [5] and not world.any_rank(False)


def test_a_closed_context_can_be_followed_by_another() -> None:
    for precision in (MixedPrecision.no, MixedPrecision.bf16):
        context = ParallelContext.create(TrainingConfig(device="cpu", mixed_precision=precision))
        assert context.accelerator.mixed_precision == precision.value
        context.close()


def test_accumulated_gradients_are_applied_once_and_equal_one_large_batch() -> None:
    context = ParallelContext.create(TrainingConfig(device="cpu", gradient_accumulation_steps=2))
    model = torch.nn.Linear(1, 1, bias=False)
    torch.nn.init.constant_(model.weight, 0.0)
    wrapped, optimizer = context.prepare(model, torch.optim.SGD(model.parameters(), lr=1.0))
    for x, synced in [(1.0, False), (3.0, True)]:
        with context.accumulate(wrapped):
            context.backward(wrapped(torch.tensor([[x]])).sum())
            assert context.sync_gradients is synced
            optimizer.step()
            optimizer.zero_grad()
    assert model.weight.item() == -2.0  # mean of gradients 1 and 3
    context.close()


def test_the_hash_sees_one_bit_and_buffers_but_not_the_order_of_registration() -> None:
    def build(names: str, value: float) -> torch.nn.Module:
        module = torch.nn.Module()
        for name in names:
            module.register_buffer(name, torch.tensor([1.0, value]))
        return module

    assert parameter_hash(build("ab", 2.0)) == parameter_hash(build("ba", 2.0))
    assert parameter_hash(build("ab", 2.0)) != parameter_hash(build("ab", 2.0 + 2**-22))
    assert parameter_hash(build("ab", 2.0)) != parameter_hash(build("ac", 2.0))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"device": "gpu"}, r"training\.device is 'gpu'; use auto, cpu or cuda"),
        ({"device": "cpu", "mixed_precision": MixedPrecision.fp16}, "fp16 needs a GPU"),
    ],
)
def test_impossible_devices_are_refused(settings: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ParallelContext.create(TrainingConfig(**settings))


def test_ranks_that_leave_right_after_a_collective_do_not_wait_for_ever(tmp_path: Path) -> None:
    """Freed while gloo's worker thread cleans up, the group waits for that thread, which waits for the GIL."""
    with contextlib.ExitStack() as held:
        sockets = [held.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(8)]
        ports = [s.getsockname()[1] for s in sockets]
    assert run_ranks(parallel_cases.leave_groups, 2, tmp_path, ports=ports) == [8, 8]


def test_a_rank_that_stops_early_keeps_its_group_until_the_process_is_gone(tmp_path: Path) -> None:
    assert run_ranks(parallel_cases.abandon, 2, tmp_path) == [[False, True]] * 2
