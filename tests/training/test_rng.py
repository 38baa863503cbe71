import random

import numpy as np
import pytest
import torch

from rl.training import rng
from rl.training.checkpoint import load_plain, save_plain
from rl.training.seeds import seed_for

CPU = torch.device("cpu")


def draw() -> list[float]:
    """From each global generator; gauss and normal also use up hidden carry-over state."""
    return [random.random(), random.gauss(0, 1), np.random.rand(), np.random.randn(), torch.rand(()).item()]


def test_restored_generators_continue_the_same_sequence_through_a_file(tmp_path) -> None:
    rng.seed_all(3)
    draw()
    save_plain(rng.capture(CPU), tmp_path / "rng.pt")
    expected = [draw(), draw()]
    rng.seed_all(99)
    assert rng.restore(load_plain(tmp_path / "rng.pt"), CPU) == []
    assert [draw(), draw()] == expected


def test_a_missing_generator_is_an_error_that_names_it() -> None:
    state = rng.capture(CPU)
    del state["python"], state["numpy"]["pos"]
    with pytest.raises(ValueError, match=r"lacks python, numpy\.pos"):
        rng.restore(state, CPU)


def test_a_state_written_on_a_gpu_is_noted_on_the_cpu() -> None:
    notes = rng.restore({**rng.capture(CPU), "torch_cuda": torch.zeros(16, dtype=torch.uint8)}, CPU)
    assert len(notes) == 1 and "written on a GPU" in notes[0]


def test_a_private_generator_survives_a_file(tmp_path) -> None:
    generator = np.random.default_rng(5)
    generator.random(7)
    save_plain(rng.generator_state(generator), tmp_path / "g.pt")
    expected = generator.random(4)
    other = np.random.default_rng(0)
    rng.set_generator_state(other, load_plain(tmp_path / "g.pt"))
    assert np.array_equal(other.random(4), expected)
    with pytest.raises(ValueError, match="PCG64, this program uses MT19937"):
        rng.set_generator_state(np.random.Generator(np.random.MT19937(0)), rng.generator_state(generator))


def test_streams_differ_by_seed_rank_name_and_length_but_not_between_calls() -> None:
    keys = [
        (0, 0),
        (1, 0),
        (0, 1),
        (0, 0, 0),
        (0, 0, "episode"),
        (0, 0, "noise"),
        (0, 0, "episode", 0),
        (0, 0, "episode", 1),
    ]
    seeds = [seed_for(*k) for k in keys]
    assert len(set(seeds)) == len(keys)
    assert seeds == [seed_for(*k) for k in keys]
    assert all(0 <= s < 2**63 for s in seeds)


def test_a_negative_seed_is_refused() -> None:
    with pytest.raises(ValueError, match=r"training\.seed is -1"):
        seed_for(-1, 0)
