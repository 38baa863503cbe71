"""What a checkpoint does not copy: entries of a published base that nobody trains are named there by file and hash.

A checkpoint of adapters stays small, and the base it needs is found, compared and read again when it is loaded.
"""

from functools import lru_cache
from pathlib import Path

import torch
from torch import nn

from f1_vla import weights
from f1_vla.policy import F1Policy, Published
from rl.training.checkpoint_files import FileEntry, ReleasedBase, sha256_of
from rl.training.checkpoint_state import check_fit, load_strict


def _plain(name: str) -> str:
    """Name of an entry as if no adapter wrapped it."""
    return name.replace(".base_layer.", ".")


@lru_cache(maxsize=64)
def _hash(path: Path, size: int, changed_ns: int) -> str:
    return sha256_of(path)


def _entry(path: Path) -> FileEntry:
    stat = path.stat()
    return FileEntry(str(path), stat.st_size, _hash(path, stat.st_size, stat.st_mtime_ns))


def _policy_of(owner: nn.Module) -> tuple[F1Policy, str]:
    """The policy in an explorer, or the policy itself; the prefix of its entries in the owner's `state_dict`."""
    if isinstance(owner, F1Policy):
        return owner, ""
    policy = owner.policy
    assert isinstance(policy, F1Policy)
    return policy, "policy."


def released_base(owner: nn.Module) -> ReleasedBase | None:
    """What a run of this policy or explorer need not copy, taken once its parts are frozen; None without a published
    base.

    Reads every file once for its hash (some ten seconds at full size).
    """
    policy, prefix = _policy_of(owner)
    if policy.published is None:
        return None
    trained = {n for n, p in owner.named_parameters() if p.requires_grad}
    held = {n for n in owner.state_dict() if _plain(n.removeprefix(prefix)) in policy.published.entries}
    entries = [n for n in owner.state_dict() if n.startswith(prefix) and n in held - trained]
    return ReleasedBase(tuple(_entry(f) for f in policy.published.files), tuple(entries))


def check_untrained(owner: nn.Module, base: ReleasedBase) -> None:
    """AssertionError when an entry that is not copied has become trainable: it would be lost."""
    trained = {n for n, p in owner.named_parameters() if p.requires_grad}
    assert not trained & set(base.entries), f"{sorted(trained & set(base.entries))[:3]} train, but are not saved"


def load_model(owner: nn.Module, state: dict[str, torch.Tensor], base: ReleasedBase | None, source: str | Path) -> None:
    """`state` and, with a base, what it left out, into a policy or an explorer; every key and shape must fit.

    ValueError: a file of the base is missing or is not the one this checkpoint was trained on.
    """
    policy, prefix = _policy_of(owner)
    if base is None:
        load_strict(owner, state, source)
        policy.published = None
        return
    for file in base.files:
        _check_file(file, source)
    load_strict(owner, _with_base(owner, state, base), source)
    files = weights.ReleasedFiles([Path(f.name) for f in base.files])
    entries = frozenset(_plain(n.removeprefix(prefix)) for n in base.entries)
    weights.copy_entries(policy, files, entries)
    policy.published = Published(files.files, entries)


def check_model(
    owner: nn.Module, state: dict[str, torch.Tensor], base: ReleasedBase | None, source: str | Path
) -> None:
    """Raises ValueError where `load_model` would refuse a key or a shape; no weights are needed on either side."""
    check_fit(owner, state if base is None else _with_base(owner, state, base), source)


def _with_base(owner: nn.Module, state: dict[str, torch.Tensor], base: ReleasedBase) -> dict[str, torch.Tensor]:
    """`state` and the owner's own entries in place of those left out."""
    own = owner.state_dict()
    return {**{n: own.get(n, torch.empty(0)) for n in base.entries}, **state}


def _check_file(file: FileEntry, source: str | Path) -> None:
    path = Path(file.name)
    remedy = f"put back the file with sha256 {file.sha256[:16]}... ({file.bytes:,} bytes) there; a link will do"
    if not path.is_file():
        raise ValueError(f"{source} continues on the published base {path}, which does not exist: {remedy}")
    if path.stat().st_size != file.bytes or _entry(path).sha256 != file.sha256:
        raise ValueError(f"{source} continues on the published base {path}, which has changed since: {remedy}")
