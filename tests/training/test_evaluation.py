"""The measures of the world model: what each row means, pairing, and the entry point on a small run."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from f1_vla.builders import build_policy
from f1_vla.policy import F1Policy
from rl.config import HELD_OUT_SEED, load_model
from rl.data.statistics import bootstrap_mean
from rl.normalizers import Normalizer
from rl.training import cli, evaluate_rl
from rl.training.evaluation import loading
from rl.training.parallel_utils import ParallelContext
from rl.training.world_model_data import WorldModelData
from rl.training.world_model_evaluation import EpisodeNumbers, WorldModelEvaluator, summarise
from rl.training.world_model_metrics import as_uint8, copy_accuracy, psnr_per_picture, window_metrics
from rl.types import EpisodeRecord
from tests.training.run_here import run_here
from tests.training.teacher_runs import BPTT

STEPS = 4


def _record(index: int, still: bool = False) -> EpisodeRecord:
    """Random pictures and actions; `still`: the wrist camera never moves."""
    rng = np.random.default_rng(index)
    wrist = rng.integers(0, 256, (STEPS + 1, 64, 64, 3), dtype=np.uint8)
    if still:
        wrist[:] = wrist[:1]
    states, actions = np.zeros((STEPS + 1, 32), np.float32), np.zeros((STEPS, 32), np.float32)
    states[:, :8], actions[:, :8] = rng.normal(size=(STEPS + 1, 8)), rng.uniform(-1, 1, (STEPS, 8))
    return EpisodeRecord(wrist[:, ::-1].copy(), wrist, wrist, states, actions, 0, index)


@pytest.fixture
def policy() -> F1Policy:
    torch.manual_seed(0)
    policy = build_policy(load_model("debug_test"))
    with torch.no_grad():  # as if trained: memory and conditioning have an effect
        for name, p in policy.named_parameters():
            if name.startswith(("memory.", "world_model.condition.")):
                p.normal_(std=0.3)
    return policy


@pytest.fixture
def evaluator(policy: F1Policy, world: ParallelContext) -> WorldModelEvaluator:
    return WorldModelEvaluator(policy, _data(policy), world, seed=0)


def _data(policy: F1Policy) -> WorldModelData:
    states = Normalizer(torch.arange(32) < 8)
    states.update(torch.from_numpy(np.concatenate([_record(i).states for i in range(3)])))
    return WorldModelData(policy, states, "explore the table", cache_vision=True)


# --- rows ------------------------------------------------------------------------------------------------------------


def test_copying_is_perfect_where_nothing_moves_and_counts_equal_tokens_elsewhere(
    evaluator: WorldModelEvaluator, policy: F1Policy
) -> None:
    moving, still = evaluator.evaluate([_record(0), _record(1, still=True)])
    assert still.values["copy/accuracy"] == 1.0 and still.values["copy/psnr"] == 100.0
    assert still.values["copy_camera/psnr"] == pytest.approx(still.values["tokenizer/psnr_camera"])
    ids = policy.encode_frames(torch.from_numpy(_record(0).wrist)).ids.numpy()
    assert moving.values["copy/accuracy"] == pytest.approx(float((ids[1:] == ids[:-1]).mean()))
    for k, (first, last) in enumerate([(0, 1), (1, 5), (5, 21)], 1):
        expected = float((ids[1:, first:last] == ids[:-1, first:last]).mean())
        assert moving.values[f"copy/accuracy_scale_{k}"] == pytest.approx(expected)
    assert moving.values["copy/psnr"] < 100.0


def test_psnr_is_measured_against_the_reconstruction_of_the_true_next_frame(
    evaluator: WorldModelEvaluator, policy: F1Policy
) -> None:
    records = [_record(0), _record(1)]
    numbers = evaluator.evaluate(records)
    for record, n in zip(records, numbers, strict=True):
        ids = policy.encode_frames(torch.from_numpy(record.wrist)).ids
        decoded = policy.tokenizer.decode(policy.tokenizer.ids_to_fhat(ids)).numpy()
        camera = record.wrist.transpose(0, 3, 1, 2) / 127.5 - 1

        def psnr(a: np.ndarray, b: np.ndarray) -> float:
            mse = ((a.astype(np.float64) - b) ** 2).mean((1, 2, 3))
            return float(np.minimum(10 * np.log10(4 / np.maximum(mse, 4e-10)), 100).mean())

        assert n.values["copy/psnr"] == pytest.approx(psnr(decoded[:-1], decoded[1:]), abs=1e-3)
        assert n.values["copy/psnr_camera"] == pytest.approx(psnr(decoded[:-1], camera[1:]), abs=1e-3)
        assert n.values["tokenizer/psnr_camera"] == pytest.approx(psnr(decoded[1:], camera[1:]), abs=1e-3)
        assert n.values["copy_camera/psnr"] == pytest.approx(psnr(camera[:-1], decoded[1:]), abs=1e-3)


class _Recording:
    """Notes what the policy is asked, in order."""

    def __init__(self, policy: F1Policy) -> None:
        self.policy, self.calls = policy, []  # type: ignore[var-annotated]

    def __getattr__(self, name: str) -> Any:
        return getattr(self.policy, name)

    def __call__(self, batch: Any, **options: Any) -> dict[str, Any]:
        self.calls.append((batch, options["mode"], options["initial_memory_state"]))
        out = self.policy(batch, **options)
        self.calls[-1] += (out,)
        return out


def test_shuffled_actions_change_the_current_slot_only_and_memory_stays_true(
    evaluator: WorldModelEvaluator, policy: F1Policy
) -> None:
    recorder = _Recording(policy)
    evaluator.policy = recorder  # type: ignore[assignment]
    records = [_record(i) for i in range(3)]
    evaluator.evaluate(records)
    (true, _, h, out), (shuffled, _, states, _), (forgetful, _, _, _) = recorder.calls[:3]
    assert not h.any() and (true.size, true.steps) == (3, STEPS)
    # every step by itself, reading the state that the true pass read there
    assert (shuffled.size, shuffled.steps) == (3 * STEPS, 1) and not shuffled.reset.any()
    torch.testing.assert_close(states, out["memory_states"].flatten(0, 1).permute(1, 0, 2))
    actions = shuffled.actions.view(3, STEPS, *true.actions.shape[2:])
    assert torch.equal(actions[:, :, :-1], true.actions[:, :, :-1])
    for e in range(3):
        own = torch.from_numpy(records[e].actions)
        others = [torch.from_numpy(r.actions) for i, r in enumerate(records) if i != e]
        assert not torch.allclose(actions[e, :, -1], own)
        assert any(torch.allclose(actions[e, :, -1], o, atol=1e-6) for o in others)  # of one other episode, same steps
    for name in ("history_ids", "target_ids", "state", "vision"):
        assert torch.equal(getattr(shuffled, name).view_as(getattr(true, name)), getattr(true, name))
    assert forgetful.reset.all() and torch.equal(forgetful.actions, true.actions)


def test_true_actions_in_place_of_shuffled_ones_give_the_true_numbers(
    evaluator: WorldModelEvaluator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rl.training.world_model_evaluation._with_other_actions", lambda batch, generator: batch)
    for n in evaluator.evaluate([_record(0), _record(1)]):
        assert n.values["shuffled/nll"] == pytest.approx(n.values["true/nll"], rel=1e-5)
        assert n.values["shuffled/accuracy"] == n.values["true/accuracy"]


def test_without_memory_every_step_is_the_first_of_an_episode(evaluator: WorldModelEvaluator, policy: F1Policy) -> None:
    records = [_record(0), _record(1)]
    n = evaluator.evaluate(records)[0]
    recorder = _Recording(policy)
    evaluator.policy = recorder  # type: ignore[assignment]
    evaluator.evaluate(records)
    batch = recorder.calls[0][0].rows(slice(0, 1))
    zeros = policy.initial_memory_state(1)
    steps = []
    with torch.no_grad():
        for t in range(STEPS):
            out = policy(batch.window(t, t + 1), mode="world_model", initial_memory_state=zeros)
            steps.append(float(out["nll"].mean()))
    assert n.values["no_memory/nll"] == pytest.approx(float(np.mean(steps)), rel=1e-5)
    assert n.values["no_memory/nll"] != n.values["true/nll"]


def test_nll_per_scale_is_averaged_into_the_total_by_tokens(evaluator: WorldModelEvaluator) -> None:
    for n in evaluator.evaluate([_record(0), _record(1)]):
        for row in ("true", "shuffled", "no_memory"):
            parts = [n.values[f"{row}/nll_scale_{k}"] for k in (1, 2, 3)]
            assert n.values[f"{row}/nll"] == pytest.approx(float(np.dot(parts, [1, 4, 16])) / 21, rel=1e-5)


@pytest.mark.parametrize("count", [8, 9, 10])
def test_every_episode_is_measured_once_under_its_own_index_however_they_are_grouped(
    evaluator: WorldModelEvaluator, monkeypatch: pytest.MonkeyPatch, count: int
) -> None:
    records = [_record(i) for i in range(count)]
    groups: list[tuple[int, int]] = []

    def counted(part: list[EpisodeRecord], first: int) -> list[EpisodeNumbers]:
        groups.append((first, len(part)))
        assert len(part) >= 2  # else there is nothing to shuffle with
        return [EpisodeNumbers(first + i, {"episode": r.episode_index}) for i, r in enumerate(part)]

    monkeypatch.setattr(evaluator, "_evaluate_chunk", counted)
    numbers = evaluator.evaluate(records)
    assert [n.index for n in numbers] == [int(n.values["episode"]) for n in numbers] == list(range(count))
    assert groups == {8: [(0, 8)], 9: [(0, 8), (7, 2)], 10: [(0, 8), (8, 2)]}[count]


def test_one_episode_is_refused(evaluator: WorldModelEvaluator) -> None:
    with pytest.raises(ValueError, match=r"evaluation of 1 episode: ask for at least 2 \(--episodes\)"):
        evaluator.evaluate([_record(0)])


# --- intervals and small measures ------------------------------------------------------------------------------------


def test_differences_are_taken_within_an_episode_before_the_interval() -> None:
    # The rows vary by 100 between episodes, their difference by nothing: unpaired intervals would be wide.
    numbers = [EpisodeNumbers(i, {"soft/psnr": 100.0 * i + 2, "copy/psnr": 100.0 * i}) for i in range(5)]
    table = summarise(numbers, samples=200, seed=0)
    assert (table["soft_minus_copy/psnr"].low, table["soft_minus_copy/psnr"].high) == (2.0, 2.0)
    assert table["copy/psnr"] == bootstrap_mean([0.0, 100.0, 200.0, 300.0, 400.0], 200, 0)
    assert set(table) == {"soft/psnr", "copy/psnr", "soft_minus_copy/psnr"}


def test_small_measures_by_hand() -> None:
    pictures = torch.stack([torch.full((3, 2, 2), v) for v in (-1.0, 0.0, 1.0)])
    assert as_uint8(pictures)[:, 0, 0, 0].tolist() == [0, 128, 255] and as_uint8(pictures).shape == (3, 2, 2, 3)
    assert psnr_per_picture(pictures, torch.full_like(pictures, -1.0)).tolist() == pytest.approx([100.0, 6.0206, 0.0])
    windows = {
        "history_ids": torch.tensor([[[[9, 9], [1, 2]], [[9, 9], [3, 4]]]]),
        "target_ids": torch.tensor([[[1, 5], [3, 4]]]),
        "valid": torch.tensor([[True, True]]),
    }
    assert copy_accuracy(windows) == 0.75
    windows["valid"][0, 1] = False
    assert copy_accuracy(windows) == 0.5
    metrics = {k: torch.tensor(v) for k, v in {"loss": 1.0, "accuracy": 0.5, "memory_norm": 2.0}.items()}
    metrics |= {"memory_gate": torch.tensor(0.1), "loss_per_scale": torch.tensor([3.0, 4.0])}
    metrics["accuracy_per_scale"] = torch.tensor([0.25, 0.75])
    flat = window_metrics(metrics, "unseen_")
    assert flat == {
        "unseen_loss": 1.0, "unseen_accuracy": 0.5, "unseen_loss_scale_1": 3.0, "unseen_loss_scale_2": 4.0,
        "unseen_accuracy_scale_1": 0.25, "unseen_accuracy_scale_2": 0.75,
    }  # fmt: skip
    assert window_metrics(metrics)["memory_norm"] == 2.0


# --- the entry point -------------------------------------------------------------------------------------------------


def test_a_run_is_measured_on_held_out_scenes_and_the_numbers_are_written(
    straight_run: Path, tmp_path: Path, capfd: pytest.CaptureFixture
) -> None:
    target = tmp_path / "numbers.json"
    argv = ["--phase", "teacher", "--checkpoint", str(straight_run), "--episodes", "2", "--json", str(target)]
    argv += ["--device", "cpu", "evaluation.bootstrap_samples=50", "training.num_threads=1", "--video"]
    argv += ["evaluation.unfamiliar_episodes=2", "evaluation.videos=1"]
    assert run_here(evaluate_rl.main, argv, "evaluate") == 0
    shown = capfd.readouterr().out
    result = json.loads(target.read_text())
    assert (result["checkpoint"], result["episodes"], result["seed"]) == ("checkpoint-6", 2, HELD_OUT_SEED)
    measures = result["measures"]
    rows = {"true", "shuffled", "no_memory", "generated", "copy"}
    assert {f"{r}/accuracy{s}" for r in rows for s in ("", "_scale_1", "_scale_3")} <= measures.keys()
    assert {"greedy/psnr", "soft/psnr", "copy/psnr", "greedy_minus_copy/psnr"} <= measures.keys()
    rows = [json.loads(line) for line in target.with_suffix(".jsonl").read_text().splitlines()]
    assert [(r["policy"], r["episode"]) for r in rows] == [("random", 0), ("random", 1)]
    assert {"explore/wrist_voxels", "frame/nll", "robust/nll_worst_frames"} <= measures.keys()
    kinds = ("domain_randomization.random_appearance=true", "num_objects=24", "action_scale=0.3")
    assert {f"auroc/unfamiliar/{kind}/nll" for kind in kinds} <= measures.keys()
    assert "baseline" not in result  # random actions are the baseline
    for name, interval in measures.items():
        values = [e[name] for e in rows] if name in rows[0] else None
        episodes = 4 if name.startswith("auroc/unfamiliar/") else 2
        assert interval["low"] <= interval["mean"] <= interval["high"] and interval["count"] == episodes
        assert values is None or interval["mean"] == pytest.approx(np.mean(values))
    (video,) = result["videos"]
    assert (tmp_path / video).read_bytes()[4:8] == b"ftyp" and b"avc1" in (tmp_path / video).read_bytes()
    assert "greedy_minus_copy/psnr" in shown and "2 held-out episodes" in shown and "machine:" in shown


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([], "--checkpoint DIR is missing"),
        (["--checkpoint", "/nowhere"], "/nowhere holds no directory checkpoint-N"),
        (["--checkpoint", "RUN", "--seed", "7"], f"held-out seeds begin at {HELD_OUT_SEED}"),
        (["--checkpoint", "RUN", "--phase", "student"], "is a checkpoint of phase teacher"),
        (["--checkpoint", "RUN", "--policy", "explorer"], "has no explorer; name one with --student_checkpoint"),
        (["--checkpoint", "RUN", "--video"], "--video needs --json FILE"),
        (["--checkpoint", "RUN", "--json", "numbers.txt"], "must end in .json"),
        (["--checkpoint", "RUN", "evaluation.novelty_scales=9"], "the tokenizer has 3 scales"),
        (
            ["--checkpoint", "RUN", "evaluation.unfamiliar=[num_objects=3 acton_scale=1]"],
            "evaluation.unfamiliar: num_objects=3 acton_scale=1: unknown",
        ),
        (["--checkpoint", "RUN", "--policy", "expert"], "expected one of [explorer, random, zero]"),
        (["--checkpoint", "RUN", "--episodes", "1"], "evaluation.num_episodes is 1; it must be at least 2"),
    ],
)
def test_wrong_requests_are_refused(
    straight_run: Path, capfd: pytest.CaptureFixture, argv: list[str], message: str
) -> None:
    argv = [str(straight_run) if a == "RUN" else a for a in argv]
    assert run_here(evaluate_rl.main, [*argv, "--device", "cpu"], "evaluate") == 4
    assert message in capfd.readouterr().err


def test_overrides_change_the_run_s_own_configuration_and_never_its_architecture(straight_run: Path) -> None:
    args = cli.parse("evaluate", ["--checkpoint", str(straight_run), "environment.num_objects=3"])
    cfg, arch = loading.run_config(args, straight_run)
    assert cfg.environment.num_objects == 3 and cfg.training.bptt_length == BPTT  # the run's, not the default
    assert arch == load_model("debug_test")
    for given in ("arch.memory.memory_hidden=8", "model.config_file=tiny"):
        with pytest.raises(ValueError, match=f"{given}: the architecture of a checkpoint is that of .*; drop it"):
            loading.run_config(cli.parse("evaluate", [given]), straight_run)


def test_evaluation_plays_one_environment_and_says_so() -> None:
    with pytest.raises(ValueError, match="--num_envs is not a flag of evaluate"):
        cli.parse("evaluate", ["--num_envs", "2"])
