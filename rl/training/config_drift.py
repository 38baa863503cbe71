"""Which configuration keys may change when a run is resumed."""

import fnmatch
from collections.abc import Sequence
from typing import Any

from rl import config as rl_config
from rl.config import POLICY_BLOCKS

# The architecture itself is compared key by key under "arch", so the name of its file may change.
# Changing these leaves model, optimizer and data of the coming steps what they would have been, or only their number.
BENIGN = (
    "training.num_episodes", "training.video_save_every", "training.sample_save_every", "training.keep_*",
    "training.num_threads", "training.device", "training.debug", "*.save_every*", "*.log_every", "*.output_dir",
    "model.config_file", "adversarial.total_iterations", "arm.steps", "rl.max_iterations", "*.eval_*",
    "*.final_episodes", "*.compare*", "*.export", "*.headless", "*.logger", "logging.*", "evaluation.*",
    "checkpoint.*", "numbers.*", "environment.isolation", "environment.supervision.*",
    "adversarial.collapse.*",
)  # fmt: skip
# Blocks, or keys of blocks, of other phases that a phase reads.
READS = {
    "adversarial": ("teacher", "student"),
    "rl": ("arm.image_size", "arm.frame_stack", "arm.privileged_critic", "arm.reach_bonus", "atari"),
}
F1_PHASES = ("teacher", "student", "adversarial", "tokenizer")
PHASE_BLOCKS = ("teacher", "student", "adversarial", "tokenizer", "arm", "rl", "atari", "play", "pipeline")


def flatten(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested dict to {"block.key": value}; lists are values."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, dict):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat


def changes(old: dict[str, Any], new: dict[str, Any]) -> dict[str, str]:
    """By key, "key old -> new" of whatever differs between two nested dicts."""
    before, after = flatten(old), flatten(new)
    return {
        k: f"{k} {before.get(k, '(absent)')} -> {after.get(k, '(absent)')}"
        for k in sorted(before.keys() | after.keys())
        if before.get(k, None) != after.get(k, None) or (k in before) != (k in after)
    }


def is_benign(key: str, phase: str) -> bool:
    """True for the list above and for blocks of other phases, which this phase does not read."""
    block = key.split(".")[0]
    other_phase = block in PHASE_BLOCKS and not {block, key} & {phase, *READS.get(phase, ())}
    other_phase |= phase in F1_PHASES and block in POLICY_BLOCKS
    return other_phase or any(fnmatch.fnmatchcase(key, pattern) for pattern in BENIGN)


def check_drift(
    old: dict[str, Any], new: dict[str, Any], phase: str, source: str, allowed: Sequence[str] = ()
) -> list[str]:
    """Notes "key old -> new" for benign and for `allowed` changes; any other change raises ValueError listing each key.

    `old` and `new` are nested dicts (`config.to_dict`); architecture keys stand under "arch". A key that `old`, written
    by an earlier version, does not have yet counts as its default. Also raises for an allowed key that does not exist,
    and for one of the architecture: saved weights would not fit.
    """
    known = flatten(new)
    defaults = flatten(rl_config.to_dict(rl_config.Config()))
    old = {k: v for k, v in defaults.items() if k in known} | flatten(old)
    for key in allowed:
        if key.startswith("arch."):
            raise ValueError(f"--allow_drift {key}: the architecture of a run cannot change, its weights would not fit")
        if key not in known:
            raise ValueError(f"--allow_drift {key}: there is no such key; --print_config lists them")
    changed = changes(old, new)
    severe = [text for k, text in changed.items() if k not in allowed and not is_benign(k, phase)]
    if severe:
        raise ValueError(
            f"{source}: the run was started with another configuration: {'; '.join(severe)}. "
            f"Restore the old values (--rl_config {source} holds them), name what may change (--allow_drift KEY,...), "
            "or start a new run with another --output_dir"
        )
    return list(changed.values())
