"""Acting, scoring, probing and colouring as evaluation uses them, on numbers made by hand."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from rl.config import ActingPolicy, Config, EvaluationConfig
from rl.data.ranking import auroc
from rl.training.evaluation import explored, robustness, video
from rl.training.evaluation.acting import ZeroActions, chosen_policy, load_explorer
from rl.training.evaluation.frames import FrameScores
from rl.training.evaluation.loading import phase_of
from rl.types import EpisodeRecord, SceneTrace

QUICK = EvaluationConfig(bootstrap_samples=50)


def _scores(nll: np.ndarray, uncertainty: np.ndarray | None = None, memory: np.ndarray | None = None) -> FrameScores:
    E, T = nll.shape
    u = nll if uncertainty is None else uncertainty
    m = np.zeros((E, T, 2)) if memory is None else memory
    return FrameScores(nll, {"disagreement": u}, np.zeros((E, T + 1)), m, np.zeros((E, T, 3)), np.zeros((E, T + 1, 5)))


def _record(objects: np.ndarray, wrist: np.ndarray | None = None, in_view: np.ndarray | None = None) -> EpisodeRecord:
    F, K = objects.shape[:2]
    pose = np.tile([0.5, 0, 0.3, 1, 0, 0, 0], (F, 1)).astype(np.float32)
    if wrist is not None:
        pose[:, :3] = wrist
    touched = np.cumsum(np.linalg.norm(np.diff(objects, axis=0, prepend=objects[:1]), axis=-1) > 0, 0) > 0
    view = np.zeros((F, K), bool) if in_view is None else in_view
    empty = np.zeros((F, 1, 1, 3), np.uint8)
    actions, states = np.zeros((F - 1, 32), np.float32), np.zeros((F, 32), np.float32)
    return EpisodeRecord(empty, empty, empty, states, actions, 0, 0, SceneTrace(pose, objects, touched, view))


def test_exploration_numbers_of_an_episode_by_hand() -> None:
    objects = np.zeros((3, 2, 3), np.float32)
    objects[1:, 0, 0] = 0.1
    wrist = np.array([[0.5, 0, 0.3], [0.5, 0, 0.3], [0.6, 0, 0.3]])
    ids = np.array([[[1, 2, 3, 4, 5], [1, 2, 3, 4, 6], [9, 9, 9, 9, 9]]])
    (row,) = explored.explored([_record(objects, wrist)], ids, np.array([[1, 2, 3, 0, 0]]), QUICK)
    assert row == {
        "explore/wrist_voxels": 2.0, "explore/objects_touched": 1.0, "explore/objects_moved": 1.0,
        "explore/distance_moved_m": pytest.approx(0.1), "explore/novel_token_maps": pytest.approx(1 / 3),
    }  # fmt: skip
    assert explored.total_voxels([_record(objects, wrist), _record(objects)], QUICK) == 2
    empty = np.zeros((3, 0, 3), np.float32)
    (row,) = explored.explored([_record(empty)], ids, ids[0], QUICK)
    assert (row["explore/objects_moved"], row["explore/objects_touched"], row["explore/distance_moved_m"]) == (0, 0, 0)


def test_coarse_maps_hold_whole_scales() -> None:
    ids = np.arange(2 * 3 * 21).reshape(2, 3, 21)
    assert explored.coarse_maps(ids, [1, 2, 4], 1).tolist() == ids[:, :, :1].tolist()
    assert explored.coarse_maps(ids, [1, 2, 4], 2).tolist() == ids[:, :, :5].tolist()
    with pytest.raises(ValueError, match="novelty_scales is 4; the tokenizer has 3 scales"):
        explored.check_scales([1, 2, 4], EvaluationConfig(novelty_scales=4))


def test_a_memory_that_knows_hidden_sides_is_told_from_an_observation_that_does_not() -> None:
    rng = np.random.default_rng(0)
    sides = rng.uniform(-1, 1, (30, 2))  # of two objects in 30 scenes
    objects = np.zeros((30, 11, 2, 3), np.float32)
    objects[:, :, :, 1] = sides[:, None]
    memory = np.tile(sides[:, None], (1, 10, 1)) + 0.1 * rng.normal(size=(30, 10, 2))
    records = [_record(o) for o in objects]
    found = explored.probe_memory(records, _scores(np.zeros((30, 10)), memory=memory), QUICK)
    assert found["probe/memory"].mean > 0.85
    assert found["probe/observation"].mean == pytest.approx(0.5, abs=0.15)  # zeros tell nothing
    assert found["probe/memory_minus_observation"].low > 0.2
    seen = [_record(o, in_view=np.ones((11, 2), bool)) for o in objects]  # nothing is hidden
    assert explored.probe_memory(seen, _scores(np.zeros((30, 10)), memory=memory), QUICK) == {}
    assert explored.probe_memory(records[:9], _scores(np.zeros((9, 10)), memory=memory[:9]), QUICK) == {}


def test_an_object_that_fell_off_the_table_is_not_asked_about() -> None:
    rng = np.random.default_rng(0)
    sides = rng.uniform(-1, 1, (30, 2))
    objects = np.zeros((30, 11, 2, 3), np.float32)
    objects[:, :, :, 1] = sides[:, None]
    memory = np.tile(sides[:, None], (1, 10, 1))
    fallen = objects.copy()
    fallen[:, 5:, :, 2] = -1.0
    fallen[:, 5:, :, 1] *= -1.0  # asked about, it would be answered wrongly
    found = explored.probe_memory([_record(o) for o in fallen], _scores(np.zeros((30, 10)), memory=memory), QUICK)
    assert found["probe/memory"].mean > 0.85
    fallen[:, :, :, 2] = -1.0
    assert explored.probe_memory([_record(o) for o in fallen], _scores(np.zeros((30, 10)), memory=memory), QUICK) == {}


def test_worst_frames_are_pooled_over_episodes() -> None:
    nll = np.arange(20.0).reshape(2, 10)  # the worst tenth: 18 and 19
    assert robustness.worst_frames(_scores(nll), QUICK)[robustness.WORST].mean == 18.5
    both = robustness.compare_models(_scores(nll), _scores(2 * nll), QUICK)
    worst = both[robustness.WORST]
    assert worst.difference.mean == -18.5 and worst.ratio is not None
    assert (worst.ratio.low, worst.ratio.mean, worst.ratio.high) == (0.5, 0.5, 0.5)
    assert both["frame/nll"].difference.mean == pytest.approx(-9.5)


def test_warnings_are_measured_by_rank() -> None:
    rng = np.random.default_rng(1)
    nll, noise = rng.random((6, 20)), rng.random((6, 20))
    perfect = robustness.warns_of_loss(_scores(nll, nll), QUICK)["auroc/high_loss/disagreement"]
    blind = robustness.warns_of_loss(_scores(nll, noise), QUICK)["auroc/high_loss/disagreement"]
    assert perfect.mean == 1.0 and blind.low < 0.5 < blind.high
    assert blind.mean == pytest.approx(auroc(noise.ravel(), nll.ravel() >= np.sort(nll.ravel())[-12]))
    other = _scores(nll[:3] + 10, noise[:3] + 10)
    apart = robustness.warns_of_unfamiliar("crowd", _scores(nll, noise), other, QUICK)
    assert apart["auroc/unfamiliar/crowd/disagreement"].mean == apart["auroc/unfamiliar/crowd/nll"].mean == 1.0
    assert apart["auroc/unfamiliar/crowd/nll"].count == 9
    same = robustness.warns_of_unfamiliar("crowd", _scores(nll, noise), _scores(nll, noise), QUICK)
    assert same["auroc/unfamiliar/crowd/disagreement"].mean == 0.5


def test_constant_losses_still_have_a_worst_tenth() -> None:
    flat = robustness.warns_of_loss(_scores(np.ones((2, 10)), np.ones((2, 10))), QUICK)
    assert flat["auroc/high_loss/disagreement"].mean == 0.5


def test_means_are_by_episode() -> None:
    rows = _scores(np.array([[1.0, 3.0], [5.0, 7.0]])).means()
    assert [r["frame/nll"] for r in rows] == [2.0, 6.0] and set(rows[0]) == {
        "frame/nll", "frame/divergence", "frame/disagreement",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("training", "phase"),
    [
        ({"states": 0}, "teacher"),
        ({"states": 0, "explorer": 0}, "student"),
        ({"states": 0, "explorer": 0, "adversarial": 0}, "adversarial"),
    ],
)
def test_a_checkpoint_tells_its_phase(training: dict[str, int], phase: str) -> None:
    saved: Any = SimpleNamespace(read=lambda name, device: training, path="run/checkpoint-1")
    assert phase_of(saved, "--checkpoint") == phase
    del training["states"]
    with pytest.raises(ValueError, match="--checkpoint run/checkpoint-1 is of none of the three phases"):
        phase_of(saved, "--checkpoint")


def test_the_explorer_acts_where_there_is_one_unless_told_otherwise() -> None:
    teacher: Any = SimpleNamespace(explorer=None, phase="teacher", saved=SimpleNamespace(path="t"))
    student: Any = SimpleNamespace(explorer="yes")
    cfg = Config()
    assert chosen_policy(cfg, teacher) is ActingPolicy.random and chosen_policy(cfg, student) is ActingPolicy.explorer
    cfg.evaluation.policy = ActingPolicy.zero
    assert chosen_policy(cfg, student) is ActingPolicy.zero
    with pytest.raises(ValueError, match="--policy explorer: t is of phase teacher and has no explorer"):
        load_explorer(teacher, 0, None)  # type: ignore[arg-type]


def test_an_arm_that_stands_still_has_zero_actions() -> None:
    assert (ZeroActions(2, 32)({}, 0, 0) == np.zeros((2, 32), np.float32)).all()


def test_a_token_map_shows_every_scale_at_its_place() -> None:
    tokens = torch.tensor([[8.0, 0.0, 2.0, 4.0, 6.0]])  # scale 1: 8; scale 2: 0 2 / 4 6
    picture = video.token_map(tokens, [1, 2], 4)[0]
    assert picture.tolist() == [[4, 4, 5, 5], [4, 4, 5, 5], [6, 6, 7, 7], [6, 6, 7, 7]]


def test_colours_are_on_one_scale_for_the_whole_video() -> None:
    maps = np.zeros((2, 2, 2), np.float32)
    maps[1] = 3.0
    dark, bright = video.colours(maps)
    assert dark.sum() < 100 and bright.mean() > 150 and bright.dtype == np.uint8
    assert (video.colours(maps[:1]) == dark).all()  # nothing to show stays dark
