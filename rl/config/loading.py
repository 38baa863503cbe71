"""Merges and checks configurations: the only reader of YAML."""

import dataclasses
import difflib
import hashlib
import json
import re
from collections.abc import Iterable
from enum import StrEnum
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from f1_vla.config import F1Config
from rl.config.presets import apply_run_options, preset_files
from rl.config.run import EnvironmentConfig
from rl.config.tree import CONFIG_DIR, Config, validate


def _key_paths(cls: type, prefix: str = "") -> list[str]:
    paths = []
    for f in dataclasses.fields(cls):
        paths.append(prefix + f.name)
        if isinstance(f.type, type) and dataclasses.is_dataclass(f.type):
            paths += _key_paths(f.type, f"{prefix}{f.name}.")
    return paths


def _flatten(node: Any, prefix: str = "") -> list[str]:
    if not isinstance(node, dict):
        return [prefix[:-1]]
    return [p for k, v in node.items() for p in ([*_flatten(v, f"{prefix}{k}.")] if v != {} else [f"{prefix}{k}"])]


def _words_for_booleans(node: DictConfig, cls: type, prefix: str = "") -> None:
    """YAML reads an unquoted on, off, yes or no as a boolean; where a choice has that word, the word was meant."""
    for f in dataclasses.fields(cls):
        if not isinstance(f.type, type):
            continue
        if dataclasses.is_dataclass(f.type):
            _words_for_booleans(node, f.type, f"{prefix}{f.name}.")
        elif issubclass(f.type, StrEnum) and isinstance(value := OmegaConf.select(node, prefix + f.name), bool):
            words = ("on", "yes") if value else ("off", "no")
            word = next((w for w in words if w in f.type.__members__), None)
            if word is not None:
                OmegaConf.update(node, prefix + f.name, word)
        elif f.type is bool:
            value = OmegaConf.select(node, prefix + f.name)
            if isinstance(value, int | float) and value not in (0, 1):  # OmegaConf takes any number for true
                raise ValueError(f"key '{prefix}{f.name}': {value} is neither true nor false")


def _merge(base: DictConfig, extra: DictConfig, source: str) -> DictConfig:
    """Merges `extra` into the structured `base`; every complaint names `source`, the key and the remedy."""
    cls = OmegaConf.get_type(base)
    assert cls is not None
    known = _key_paths(cls)
    for path in _flatten(OmegaConf.to_container(extra)):
        if path not in known:
            near = difflib.get_close_matches(path, known, n=1, cutoff=0.4)
            hint = (
                f"; did you mean '{near[0]}'?"
                if near
                else f"; known blocks: {', '.join(sorted({k.split('.')[0] for k in known}))}"
            )
            raise ValueError(f"{source}: unknown configuration key '{path}'{hint}")
        if any(k.startswith(f"{path}.") for k in known) and not OmegaConf.is_dict(OmegaConf.select(extra, path)):
            raise ValueError(f"{source}: key '{path}' is a block of keys; write {path}.KEY=value")
    try:
        _words_for_booleans(extra, cls)
    except ValueError as e:
        raise ValueError(f"{source}: {e}") from e
    try:
        merged = OmegaConf.merge(base, extra)
    except OmegaConfBaseException as e:
        first_line = str(e).strip().splitlines()[0]
        raise ValueError(f"{source}: key '{e.full_key}': {first_line}") from e
    assert isinstance(merged, DictConfig)
    return merged


# What YAML 1.1 makes other numbers of than a reader does: 017 is 15, 12:30 is 750.
_SCANNER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_TRAP = re.compile(r"[-+]?(?:0[0-9_]+|[0-9][0-9_]*(?::[0-5]?[0-9])+)(?:\.[0-9_]*)?")


def _refuse_traps(text: str, source: str) -> None:
    """Values are plain data that mean what they look like. ValueError: other numbers, references to other values or to
    the environment (which would be saved with the run)."""
    for token in yaml.scan(text, Loader=_SCANNER):
        if isinstance(token, yaml.ScalarToken):
            if token.plain and _TRAP.fullmatch(token.value):
                raise ValueError(
                    f"{source}: YAML does not read {token.value} as that number; write it without leading zeros and "
                    "colons, or in quotes if it is a text"
                )
            if "${" in token.value:
                raise ValueError(f"{source}: '{token.value}' refers to another value; write the value itself")


def _read_yaml(path: Path) -> DictConfig:
    if not path.is_file():
        raise ValueError(f"configuration file {path} does not exist")
    try:
        text = path.read_text(encoding="utf-8")
        node = OmegaConf.load(path)
    except Exception as e:  # yaml errors carry line and column
        raise ValueError(f"{path}: not readable as YAML: {e}") from e
    _refuse_traps(text, str(path))
    if not isinstance(node, DictConfig):
        raise ValueError(f"{path}: the top level must be a mapping of blocks")
    return node


def read_dict(path: Path) -> dict[str, Any]:
    """A saved configuration as plain data, without checking its keys (an older version may have had others)."""
    container = OmegaConf.to_container(_read_yaml(path))
    assert isinstance(container, dict)
    return {str(k): v for k, v in container.items()}


def _dotlist(overrides: list[str]) -> DictConfig:
    for o in overrides:
        if "=" not in o:
            raise ValueError(f"override '{o}': write block.key=value")
        try:
            _refuse_traps(o.split("=", 1)[1], f"override '{o}'")
        except yaml.YAMLError as e:
            raise ValueError(f"override '{o}': not readable as YAML: {e}") from e
    return OmegaConf.from_dotlist(overrides)


def load_saved(path: Path, unread: Iterable[str], overrides: list[str] | None = None) -> Config:
    """The configuration that a run has saved, under overrides. Blocks named by `unread` stay at their defaults: the
    reader does not use them, and another version of the program may have had other keys there."""
    saved = _read_yaml(path)
    for block in unread:
        saved.pop(block, None)
    node = _merge(OmegaConf.structured(Config), saved, str(path))
    cfg = _typed(_merge(node, _dotlist(overrides or []), "command line"))
    validate(cfg)
    return cfg


def load(path: str | Path | None = None, overrides: list[str] | None = None, run: str | None = None) -> Config:
    """Defaults <- YAML file at `path` (default configs/rl_config.yaml) <- `block.key=value` overrides.

    `run`: arm or rl; the presets of its algorithm and its task are merged before the overrides.
    """
    node = OmegaConf.structured(Config)
    path = Path(path) if path is not None else CONFIG_DIR / "rl_config.yaml"
    node = _merge(node, _read_yaml(path), str(path))
    given = _dotlist(overrides or [])
    if run is not None:
        for preset in preset_files(run, _typed(_merge(node, given, "command line"))):
            node = _merge(node, _read_yaml(preset), str(preset))
    cfg = _typed(_merge(node, given, "command line"))
    if run is not None:
        apply_run_options(cfg, run)
    validate(cfg)
    return cfg


def _typed(node: DictConfig) -> Config:
    cfg = OmegaConf.to_object(node)
    assert isinstance(cfg, Config)
    return cfg


def load_model(name_or_path: str, overrides: list[str] | None = None) -> F1Config:
    """The architecture named by `model.config_file`: a preset under configs/model or a path."""
    path = Path(name_or_path)
    if not path.suffix:
        path = CONFIG_DIR / "model" / f"{name_or_path}.yaml"
        if not path.is_file():
            presets = sorted(p.stem for p in (CONFIG_DIR / "model").glob("*.yaml"))
            raise ValueError(f"model.config_file '{name_or_path}': no such preset; there are {', '.join(presets)}")
    node = _merge(OmegaConf.structured(F1Config), _read_yaml(path), str(path))
    node = _merge(node, _dotlist(overrides or []), "command line")
    cfg = OmegaConf.to_object(node)
    assert isinstance(cfg, F1Config)
    cfg.validate()
    return cfg


def to_yaml(cfg: Any) -> str:
    """YAML text of a config dataclass; loads back to an equal tree."""
    return OmegaConf.to_yaml(OmegaConf.structured(cfg))


def to_dict(cfg: Any) -> dict[str, Any]:
    """Plain nested dict (enums as their values)."""
    container = OmegaConf.to_container(OmegaConf.structured(cfg), enum_to_str=True)
    assert isinstance(container, dict)
    return {str(k): v for k, v in container.items()}


def as_node(cfg: Config) -> DictConfig:
    """The tree with attribute and item access."""
    return OmegaConf.structured(cfg)


def as_config(cfg: DictConfig | Config) -> Config:
    """The typed tree of `as_node`'s result; a typed tree is returned as it is."""
    if isinstance(cfg, Config):
        return cfg
    typed = OmegaConf.to_object(_merge(OmegaConf.structured(Config), cfg, "configuration"))
    assert isinstance(typed, Config)
    validate(typed)
    return typed


def with_overrides(cfg: Config, overrides: list[str], source: str) -> Config:
    """A changed copy of a tree; `source` is named in errors."""
    changed = _typed(_merge(as_node(cfg), _dotlist(overrides), source))
    validate(changed)
    return changed


def environment_from_dict(block: dict[str, Any]) -> EnvironmentConfig:
    """The `environment` block from a plain dict; unknown keys and wrong types raise ValueError."""
    return as_config(OmegaConf.create({"environment": block})).environment


def fingerprint(cfg: Any) -> str:
    """sha256 over the canonical JSON of a config tree."""
    return hashlib.sha256(json.dumps(to_dict(cfg), sort_keys=True).encode()).hexdigest()
