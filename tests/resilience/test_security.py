"""Rows 19 to 21: nothing that is read is ever executed, nothing leaves its directory, nothing secret is saved.

A canary in every kind of file that the program reads: unpickling it would create a file.
"""

import ast
import json
import os
import pickle
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from f1_vla.loading import load_policy, meta_policy, read_tokenizer
from f1_vla.text import PretrainedTokenizer
from f1_vla.weights import read_released
from rl import config as rl_config
from rl.config import TrainingConfig
from rl.training import play, provenance, watch
from rl.training.checkpoint import CheckpointManager, load_plain
from rl.training.checkpoint_files import MANIFEST, FileEntry, ReleasedBase, describe, manifest_text
from rl.training.errors import CheckpointError
from rl.training.metrics_log import truncate_jsonl
from rl.training.parallel_utils import ParallelContext
from rl.training.released_base import load_model
from tests.training.checkpoint_cases import state_of

REPO = Path(__file__).resolve().parents[2]
ARCH = rl_config.load_model("debug_test")


class Canary:
    """Unpickling it creates a file."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple:
        return Path.touch, (self.target,)


@pytest.fixture
def canary(tmp_path: Path) -> Iterator[Path]:
    path = tmp_path / "executed"
    yield path
    assert not path.exists(), "code in a file was executed"


def hostile(kind: str, canary: Path, file: Path) -> Path:
    """A file with a canary: a bare pickle, torch's archive, or YAML."""
    file.parent.mkdir(parents=True, exist_ok=True)
    if kind == "pickle":
        file.write_bytes(pickle.dumps({"model": Canary(canary)}, protocol=2))
    elif kind == "torch":
        torch.save({"model": Canary(canary), "algorithm": Canary(canary)}, file)
    else:
        file.write_text(f"training: !!python/object/apply:os.mkdir ['{canary}']\n")
    return file


# What reads a file of which name; each must refuse with a ValueError.
READERS: dict[str, tuple[str, Callable[[Path], Any]]] = {
    "exported or dumped tensors": ("best_model.pt", load_plain),
    "best model of arm and rl": ("best_model.pt", play.find),
    "tokenizer of VAR": ("vae.pth", lambda f: read_tokenizer(f, ARCH.tokenizer)),
    "own tokenizer": ("tokenizer.safetensors", lambda f: read_tokenizer(f, ARCH.tokenizer)),
    "base weights .bin": ("pytorch_model.bin", read_released),
    "base weights .pt": ("model.pt", lambda f: load_policy(ARCH, str(f))),
    "base weights .safetensors": ("model.safetensors", lambda f: read_released(f.parent)),
    "base weights index": ("model.safetensors.index.json", lambda f: read_released(f.parent)),
    "text tokenizer": ("tokenizer.json", lambda f: PretrainedTokenizer(str(f.parent), 8, 1000)),
    "run configuration": ("config.yaml", rl_config.load),
    "saved configuration": ("config.yaml", rl_config.read_dict),
    "architecture": ("model.yaml", lambda f: rl_config.load_model(str(f))),
    "metrics": ("episode_metrics.jsonl", lambda f: truncate_jsonl(_lines(f), "episode", 5)),
    "status": ("status.json", lambda f: watch.read_status(f.parent)),
}


def _lines(file: Path) -> Path:
    """A broken line that is not the last one, which a crash may tear."""
    file.write_bytes(file.read_bytes() + b"\n{}\n")
    return file


@pytest.mark.parametrize("kind", ["pickle", "torch", "yaml"])
@pytest.mark.parametrize("reader", READERS)
def test_no_file_is_executed(reader: str, kind: str, canary: Path, tmp_path: Path) -> None:
    name, read = READERS[reader]
    with pytest.raises(ValueError):
        read(hostile(kind, canary, tmp_path / "place" / name))


@pytest.fixture
def world() -> Iterator[ParallelContext]:
    context = ParallelContext.create(TrainingConfig(device="cpu"))
    yield context
    context.close()


@pytest.mark.parametrize("kind", ["pickle", "torch"])
@pytest.mark.parametrize(
    "name", ["model.pt", "training_state.pt", "metrics.pt", "buffer_rank0.pt", MANIFEST, "base.json"]
)
def test_no_file_of_a_checkpoint_is_executed_though_its_hash_is_right(
    name: str, kind: str, canary: Path, world: ParallelContext, tmp_path: Path
) -> None:
    (tmp_path / "run").mkdir()
    path = CheckpointManager(tmp_path / "run", 2, world).save(1, state_of(1))
    hostile(kind, canary, path / name)
    if name != MANIFEST:  # as an attacker would
        files = [p for p in sorted(path.rglob("*")) if p.is_file() and p.name != MANIFEST]
        text = manifest_text(1, 1, [describe(path, p) for p in files], {})
        (path / MANIFEST).write_text(text)
    with pytest.raises((CheckpointError, ValueError)):
        loaded = CheckpointManager(tmp_path / "run", 2, world).load()
        assert loaded is not None
        loaded.rank_file("buffer")
        assert loaded.saved.base is not None


def test_a_tokenizer_directory_cannot_bring_code(canary: Path, tmp_path: Path) -> None:
    place = tmp_path / "tokenizer"
    place.mkdir()
    (place / "evil.py").write_text(f"open({str(canary)!r}, 'w')\nclass Evil: pass\n")
    auto = {"AutoTokenizer": ["evil.Evil", "evil.Evil"], "AutoConfig": "evil.Evil"}
    (place / "tokenizer_config.json").write_text(json.dumps({"auto_map": auto, "tokenizer_class": "Evil"}))
    (place / "config.json").write_text(json.dumps({"auto_map": auto, "model_type": "evil"}))
    with pytest.raises(ValueError, match="holds no readable tokenizer"):
        PretrainedTokenizer(str(place), 8, 1000)


# --- names ------------------------------------------------------------------------------------------------------------


def test_a_base_named_by_a_checkpoint_is_only_read_and_only_with_its_hash(tmp_path: Path) -> None:
    policy = torch.nn.Module()
    policy.policy = meta_policy(ARCH)
    base = ReleasedBase((FileEntry("/etc/hostname", 1, "0" * 64),), ())
    with pytest.raises(ValueError, match=r"/etc/hostname, which (has changed since|does not exist): put back"):
        load_model(policy, {}, base, tmp_path / "checkpoint-1")


def test_the_index_of_base_weights_cannot_name_files_outside(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "../other.safetensors"}}))
    with pytest.raises(ValueError, match=r"names .*other\.safetensors, outside of it"):
        read_released(tmp_path)


def test_only_checkpoints_and_own_leftovers_are_ever_deleted(world: ParallelContext, tmp_path: Path) -> None:
    precious = [tmp_path / n for n in ("notes", "checkpoint-x", "checkpoint-1.bak", ".tmp-mine", "my.trash-1")]
    for directory in precious:
        directory.mkdir()
        (directory / "file").touch()
    outside = tmp_path.parent / f"{tmp_path.name}_outside"
    outside.mkdir()
    (outside / "file").touch()
    for name in (".trash-00000000", ".tmp-checkpoint-1-00000000", ".superseded-x", "checkpoint-0"):
        (tmp_path / name).symlink_to(outside)
    manager = CheckpointManager(tmp_path, 2, world)
    for step in (1, 2, 3, 4):
        manager.save(step, state_of(step))
    assert all((d / "file").exists() for d in [*precious, outside])
    assert not (tmp_path / "checkpoint-2").exists()


# --- configuration ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("training: {seed: 017}", "YAML does not read 017 as that number"),
        ("training:\n  num_episodes: 12:30:00", "YAML does not read 12:30:00"),
        ("training:\n  seed: 1\n  seed: 2", "duplicate key"),
        ("training:\n  device: ${oc.env:HOME}", "refers to another value"),
        ("training:\n  seed: ${training.num_episodes}", "refers to another value"),
        ("model:\n  _target_: os.system", "unknown configuration key"),
        ("training: !!python/name:os.system", "not readable as YAML"),
        ("training:\n  sequential_training: 7", "training.sequential_training"),
    ],
)
def test_what_yaml_would_make_something_else_of_is_refused(text: str, message: str, tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(text)
    with pytest.raises(ValueError, match=re.escape(message)):
        rl_config.load(file)


@pytest.mark.parametrize("override", ["training.seed=017", "training.device=${oc.env:HOME}", "training.num_envs=1:30"])
def test_overrides_are_plain_data_too(override: str) -> None:
    with pytest.raises(ValueError, match=r"YAML does not read|refers to another value"):
        rl_config.load(None, [override])


# --- the source -------------------------------------------------------------------------------------------------------

FORBIDDEN_IMPORTS = {"pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
FORBIDDEN_CALLS = re.compile(
    r"^(eval|exec|__import__|os\.system|os\.popen|yaml\.(load|unsafe_load|full_load)|pickle\..*|torch\.jit\.load)$"
)
# Who may all the same: pipes between processes of one run, and an export that is read back to compare it.
EXCUSED = ("rl/envs/worker.py", "rl/envs/supervised.py", "rl/training/policy_export.py")


def test_no_source_can_execute_what_it_reads() -> None:
    sources = [p for d in ("rl", "f1_vla", "kernels", "benchmarks", "scripts") for p in (REPO / d).rglob("*.py")]
    found = []
    for path in sources:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            where = f"{path.relative_to(REPO)}:{getattr(node, 'lineno', 0)}"
            if isinstance(node, ast.Import) and {a.name for a in node.names} & FORBIDDEN_IMPORTS:
                found.append(where)
            if isinstance(node, ast.ImportFrom) and node.module in FORBIDDEN_IMPORTS:
                found += [where] * ({a.name for a in node.names} != {"UnpicklingError"})
            if isinstance(node, ast.Call):
                risky = {k.arg: ast.unparse(k.value) for k in node.keywords}
                bad = risky.get("allow_pickle") == "True" or risky.get("shell") == "True"
                bad |= risky.get("trust_remote_code") == "True" or risky.get("weights_only") == "False"
                if bad or FORBIDDEN_CALLS.match(ast.unparse(node.func)):
                    found.append(where)
    assert [where for where in found if not where.startswith(EXCUSED)] == []


def test_every_locked_package_has_a_hash_and_the_set_up_requires_it() -> None:
    for lock in sorted((REPO / "requirements").glob("lock-py3*.txt")):
        entries = re.split(r"\n(?=[A-Za-z0-9])", "\n" + lock.read_text(encoding="utf-8"))[1:]
        bare = [e.split("\n")[0] for e in entries if "--hash=sha256:" not in e]
        assert entries and bare == [], lock.name
    assert "--require-hashes" in (REPO / "setup.sh").read_text(encoding="utf-8")


def test_a_run_saves_no_secret_of_its_environment_or_command_line() -> None:
    secret = "hunter2-hunter2"
    os.environ["WANDB_API_KEY"] = os.environ["HF_TOKEN"] = secret
    try:
        texts = [json.dumps(provenance.collect()), rl_config.to_yaml(rl_config.load())]
        texts.append(
            json.dumps(provenance.redact(["--hf_token", secret, f"wandb.api_key={secret}", f"--password={secret}"]))
        )
    finally:
        del os.environ["WANDB_API_KEY"], os.environ["HF_TOKEN"]
    assert all(secret not in t for t in texts)
