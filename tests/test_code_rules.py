"""Rules of the code base that no linter knows: sizes, and who may touch what."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parent.parent
PACKAGES = ("f1_vla", "kernels", "rl")
MAX_FILE_LINES, MAX_FUNCTION_LINES = 450, 80
SOURCES = sorted(p for package in (*PACKAGES, "tests", "scripts") for p in (REPO / package).rglob("*.py"))
OWN = [p for p in SOURCES if p.relative_to(REPO).parts[0] in PACKAGES]

# module -> the only places that may import it
SOLE_IMPORTERS = {
    "accelerate": ("rl/training/parallel_utils.py",),
    # Splitting over ranks is a part of parallel_utils, in files of their own.
    "torch.distributed": ("rl/training/parallel_utils.py", "rl/training/sharding.py", "rl/training/deepspeed_zero.py"),
    "omegaconf": ("rl/config/loading.py",),
    "yaml": ("rl/config/loading.py",),
    "sapien": ("rl/sims/",),
    "mani_skill": ("rl/sims/",),
    "isaaclab": ("rl/sims/", "rl/envs/"),
}


def name(path: Path) -> str:
    return path.relative_to(REPO).as_posix()


def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


def imports(path: Path) -> set[str]:
    """Every module that the file imports, with `from a import b` as both a and a.b."""
    found: set[str] = set()
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def test_no_file_is_longer_than_the_limit() -> None:
    lengths = {name(p): len(p.read_text(encoding="utf-8").splitlines()) for p in SOURCES}
    assert {n: length for n, length in lengths.items() if length > MAX_FILE_LINES} == {}


def test_no_function_is_longer_than_the_limit() -> None:
    functions = [
        (f"{name(p)}:{node.lineno} {node.name}", (node.end_lineno or 0) - node.lineno + 1)
        for p in OWN
        for node in ast.walk(tree(p))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    ]
    assert [(n, length) for n, length in functions if length > MAX_FUNCTION_LINES] == []


def test_no_bare_except() -> None:
    bare = [
        f"{name(p)}:{node.lineno}"
        for p in SOURCES
        for node in ast.walk(tree(p))
        if isinstance(node, ast.ExceptHandler) and node.type is None
    ]
    assert bare == []


@pytest.mark.parametrize("module", sorted(SOLE_IMPORTERS))
def test_a_guarded_module_is_imported_only_where_it_belongs(module: str) -> None:
    allowed = SOLE_IMPORTERS[module]
    offenders = [
        name(p)
        for p in OWN
        if not name(p).startswith(allowed) and any(i == module or i.startswith(module + ".") for i in imports(p))
    ]
    assert offenders == []


def test_torch_load_and_save_are_called_only_by_the_checkpoint_files() -> None:
    allowed = ("rl/training/checkpoint", "f1_vla/weights.py")
    offenders = [
        f"{name(p)}:{node.lineno}"
        for p in OWN
        if not name(p).startswith(allowed)
        for node in ast.walk(tree(p))
        if isinstance(node, ast.Call) and ast.unparse(node.func) in ("torch.load", "torch.save")
    ]
    assert offenders == []


def test_every_torch_load_reads_weights_only() -> None:
    unsafe = [
        f"{name(p)}:{node.lineno}"
        for p in SOURCES
        for node in ast.walk(tree(p))
        if isinstance(node, ast.Call)
        and ast.unparse(node.func) == "torch.load"
        and not any(k.arg == "weights_only" and ast.unparse(k.value) == "True" for k in node.keywords)
    ]
    assert unsafe == []


def test_no_text_in_the_repository_names_a_place_outside_it() -> None:
    # Joined here so that this file does not find itself.
    words = ["/work" + "/", "/root" + "/", "/home" + "/", "file:" + "///"]
    suffixes = {".py", ".sh", ".md", ".toml", ".yaml", ".txt", ".in"}
    top = ("README.md", "NOTICE", "setup.sh", "train.sh", "pyproject.toml")
    folders = (*PACKAGES, "tests", "scripts", "configs", "docs", "requirements", ".ci")
    texts = [REPO / n for n in top if (REPO / n).is_file()]
    texts += [p for f in folders for p in (REPO / f).rglob("*") if p.is_file() and p.suffix in suffixes]
    offenders = [f"{name(p)}: {w}" for p in texts for w in words if w in p.read_text(encoding="utf-8")]
    assert offenders == []


def test_no_simulator_is_loaded_until_one_is_chosen() -> None:
    modules = ["rl.config", "rl.types", "rl.envs", "rl.sims", "rl.training.cli", "f1_vla.config", "kernels"]
    simulators = ("sapien", "mani_skill", "isaaclab")
    code = f"import {', '.join(modules)}, sys; print([m for m in {simulators} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=REPO)
    assert done.stdout.strip() == "[]"
