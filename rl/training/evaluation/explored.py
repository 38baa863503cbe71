"""What a policy has seen and moved, and what the memory then knows of it.

Letters: E episodes, F frames, L tokens, R token maps.
"""

import numpy as np
import numpy.typing as npt

from rl.config import EvaluationConfig
from rl.data.exploration import board_share, moved_objects, novel_maps, on_table, pose_voxels
from rl.data.probing import balanced_accuracy, probe
from rl.data.statistics import Interval, bootstrap
from rl.training.evaluation.frames import FrameScores
from rl.types import EpisodeRecord

Ids = npt.NDArray[np.integer]


def check_scales(scales: list[int], e: EvaluationConfig) -> None:
    """Raises ValueError when the tokenizer has fewer scales than are to be compared."""
    if e.novelty_scales > len(scales):
        raise ValueError(f"evaluation.novelty_scales is {e.novelty_scales}; the tokenizer has {len(scales)} scales")


def coarse_maps(ids_EFL: Ids, scales: list[int], count: int) -> Ids:
    """Token maps of every frame, cut to the first `count` scales."""
    return ids_EFL[:, :, : sum(p * p for p in scales[:count])]


def explored(
    records: list[EpisodeRecord], maps_EFL: Ids, reference_RL: Ids, e: EvaluationConfig
) -> list[dict[str, float]]:
    """Measures by episode. reference_RL: token maps that random actions have seen in the same scenes."""
    rows = []
    for record, own in zip(records, maps_EFL, strict=True):
        assert record.scene is not None
        moved, distance = (
            moved_objects(record.scene.objects, e.moved_distance) if record.scene.objects.size else (0, 0.0)
        )
        touched = int(record.scene.touched[-1].sum())
        rows.append(
            {
                "explore/wrist_voxels": float(
                    len(pose_voxels(record.scene.wrist_pose, e.voxel_size, e.direction_cell))
                ),
                "explore/objects_touched": float(touched),
                "explore/objects_moved": float(moved),
                "explore/distance_moved_m": distance,
                "explore/novel_token_maps": float(novel_maps(own, reference_RL, e.novelty_overlap).mean()),
            }
        )
    return rows


def screen_shares(records: list[EpisodeRecord]) -> list[npt.NDArray[np.floating]]:
    """Share of the wrist camera's view that the noisy screen fills (F,), by episode; nothing is assumed to hide it."""
    from rl.sims.noisy_screen import CENTER, HALF_SIZE
    from rl.sims.sapien_tabletop import WRIST_FOV

    traces = [r.scene for r in records if r.scene is not None]
    return [board_share(t.wrist_pose, WRIST_FOV, np.array(CENTER), np.array(HALF_SIZE)) for t in traces]


def facing_screen(records: list[EpisodeRecord]) -> list[dict[str, float]]:
    """Mean of `screen_shares` by episode."""
    return [{"explore/screen_in_view": float(shares.mean())} for shares in screen_shares(records)]


def total_voxels(records: list[EpisodeRecord], e: EvaluationConfig) -> int:
    """Cells that all episodes together have visited."""
    seen = [pose_voxels(r.scene.wrist_pose, e.voxel_size, e.direction_cell) for r in records if r.scene is not None]
    return len(set().union(*seen))


def probe_memory(records: list[EpisodeRecord], scores: FrameScores, e: EvaluationConfig) -> dict[str, Interval]:
    """Balanced accuracy of telling on which side of the table an object stands that the wrist camera does not see:
    from the memory state, from the current observation alone, and their difference over the same episodes.

    Empty when fewer than two episodes a fold have such an object. Episodes without one do not count, nor does an object
    from when it fell off the table.
    """
    traces = [r.scene for r in records if r.scene is not None]
    steps = np.arange(0, scores.nll.shape[1], e.probe_every)
    asked = np.stack([(~t.in_view & on_table(t.objects))[steps] for t in traces])
    some = np.flatnonzero(asked.any((1, 2)))
    if len(some) < 2 * e.probe_folds:
        return {}
    facts = np.concatenate([traces[i].objects[steps, :, 1] > 0 for i in some])
    episodes = np.repeat(some, len(steps))
    answers = {}
    for name, states in [("memory", scores.memory), ("observation", scores.observation)]:
        x = states[some][:, steps].reshape(len(episodes), -1)
        answers[name] = probe(x, facts, np.concatenate(asked[some]), episodes, e.probe_folds, e.probe_penalty)

    def accuracy(name: str, index: npt.NDArray[np.intp]) -> float:
        return balanced_accuracy(*(table[index] for table in answers[name]))

    def gain(index: npt.NDArray[np.intp]) -> float:
        return accuracy("memory", index) - accuracy("observation", index)

    answered = np.flatnonzero(answers["memory"][1].sum((1, 2)))  # asked of a probe that could learn the fact
    if len(answered) < 2 * e.probe_folds:
        return {}
    count, again = [len(answered)], (e.bootstrap_samples, e.seed)
    return {
        "probe/memory": bootstrap(lambda i: accuracy("memory", answered[i]), count, *again),
        "probe/observation": bootstrap(lambda i: accuracy("observation", answered[i]), count, *again),
        "probe/memory_minus_observation": bootstrap(lambda i: gain(answered[i]), count, *again),
    }
