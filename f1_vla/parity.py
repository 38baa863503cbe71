"""Compares this model with numbers of the public F1-VLA code: `python -m f1_vla.parity DIR [--backend NAME]`.

DIR holds one or more fixtures NAME.json + NAME.safetensors. The JSON has the public configuration, every `state_dict`
entry with the recipe that fills it (weights are a function of their names) and the comparison rule of every tensor; the
safetensors file has inputs (`in.*`) and expected outputs (`out.*`, `aux.*`). Sizes are read from the files.

Exit code 0: everything within tolerance; 1: something is not; 4: the folder is not such a fixture.
"""

import argparse
import json
import logging
import sys
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

import kernels
from f1_vla import weights
from f1_vla.builders import build_policy
from f1_vla.config import F1Config, MemoryConfig
from f1_vla.parity_outputs import Sizes, compute_outputs
from f1_vla.policy import F1Policy
from f1_vla.public_config import from_public

ATOL, GRADIENT_RTOL, CHECKSUM_RTOL = 1e-4, 1e-3, 1e-5
INPUTS = {f"in.{n}" for n in ("history", "lang_tokens", "lang_masks", "state", "action", "noise", "time")}


@dataclass
class Fixture:
    """One fixture, read and understood."""

    name: str
    spec: dict[str, Any]
    data: dict[str, Tensor]
    config: F1Config
    sizes: Sizes


@dataclass
class Row:
    """One compared tensor: largest error and what is allowed (absolute), both 0 for integers that agree."""

    name: str
    error: float
    allowed: float

    @property
    def ok(self) -> bool:
        return self.error <= self.allowed  # False for nan


def config_of(public: dict[str, Any]) -> F1Config:
    """Our configuration of a public one. Parts the public model lacks are all on: they must change nothing."""
    cfg = from_public(public)
    cfg.memory = MemoryConfig(memory_hidden=24, memory_num_layers=2)
    w = cfg.world_model
    w.mask_sample_prob = 0.0
    w.latent_head, w.latent_head_width, w.latent_head_blocks = True, 16, 1
    return cfg


# --- reading ----------------------------------------------------------------------------------------------------------


def read_fixture(spec_file: Path) -> Fixture:
    """ValueError when a file or an entry is missing or unreadable."""
    try:
        spec = json.loads(spec_file.read_text(encoding="utf-8"))
        data = load_file(spec_file.with_suffix(".safetensors"))
        config, derived = config_of(spec["config"]), spec["derived"]
        forced = spec.get("robustness", {}).get("teacher_forced_num_resolutions")
        sizes = Sizes(derived["n_obs"], forced or config.world_model.num_resolutions)
        absent = sorted((set(spec["tensors"]) | INPUTS) - set(data))
    except (SafetensorError, OSError, json.JSONDecodeError, KeyError) as e:
        raise ValueError(f"{spec_file} is no readable parity fixture: {type(e).__name__} {e}") from e
    if absent:
        raise ValueError(f"{spec_file.with_suffix('.safetensors')} lacks {', '.join(absent)}")
    return Fixture(spec_file.stem, spec, data, config, sizes)


def find_fixtures(directory: Path) -> list[Path]:
    """The JSON files of the fixtures in a folder. ValueError when there is none."""
    found = [p for p in sorted(directory.glob("*.json")) if p.with_suffix(".safetensors").is_file()]
    if not found:
        raise ValueError(f"{directory}: no parity fixture there; it needs NAME.json and NAME.safetensors")
    return found


def recipe(name: str, shape: list[int], fill: str) -> Tensor:
    """A weight, from its name and shape alone: float32. ValueError for an unknown fill rule."""
    g = torch.Generator().manual_seed(zlib.crc32(name.encode()))
    r = torch.randn(shape, generator=g)
    if fill == "default":
        return 0.08 * r
    if fill == "rmsnorm_weight":
        return 0.02 * r
    if fill == "affine_norm_weight":
        return 1 + 0.02 * r
    raise ValueError(f"{name}: unknown fill rule '{fill}'")


def check_sum(entry: dict[str, Any], value: Tensor) -> None:
    """ValueError when a weight does not have the recorded sums: then torch's generator differs from the recipe's."""
    x = value.double()
    for key, total in (("sum", x.sum().item()), ("sumsq", x.square().sum().item())):
        # The sum of squares has its own scale; numel * sumsq bounds the square of the sum.
        bound = CHECKSUM_RTOL * ((x.numel() * entry["sumsq"]) ** 0.5 if key == "sum" else entry["sumsq"])
        if abs(total - entry[key]) > bound:
            raise ValueError(
                f"{entry['name']}: {key} {total} differs from the recorded {entry[key]}; the recipe gives "
                f"other weights under torch {torch.__version__}"
            )


def released_state(spec: dict[str, Any]) -> dict[str, Tensor]:
    """Every entry of the public `state_dict` that carries a value, checksums compared."""
    by_name = {e["name"]: e for e in spec["state_dict"]}
    state: dict[str, Tensor] = {}
    for e in spec["state_dict"]:
        if e["fill"] == "keep":
            continue
        source = by_name[e.get("alias_of") or e["name"]]
        if source["name"] not in state:
            state[source["name"]] = recipe(source["name"], source["shape"], source["fill"])
        state[e["name"]] = state[source["name"]]
        check_sum(e, state[e["name"]])
    return state


def build(fixture: Fixture, backend: str = "auto", device: str = "cpu") -> F1Policy:
    """The policy with the fixture's weights; every parameter outside the tokenizer trains, as in the recording."""
    fixture.config.trunk.attention_backend = fixture.config.vision.attention_backend = backend
    state = released_state(fixture.spec)
    policy = build_policy(fixture.config, device)
    weights.load_released(policy, state, fixture.name)
    for entry in fixture.spec["state_dict"]:
        if entry["name"] == weights.CONSTRUCTED:
            check_sum(entry, policy.world_model.level_of_slot[None].cpu())
    for name, p in policy.named_parameters():
        p.requires_grad_(not name.startswith("tokenizer."))
    return policy.eval()


# --- comparing --------------------------------------------------------------------------------------------------------


def compare(name: str, rule: dict[str, Any], actual: Tensor, expected: Tensor) -> Row:
    """Largest absolute difference against the rule; inf when shapes differ or an exact comparison fails."""
    if actual.shape != expected.shape:
        return Row(name, float("inf"), 0.0)
    if not expected.dtype.is_floating_point:
        return Row(name, 0.0 if torch.equal(actual, expected) else float("inf"), 0.0)
    error = (actual.float() - expected.float()).abs().max().item() if expected.numel() else 0.0
    if ".grad" in name:
        return Row(name, error, rule.get("rel", GRADIENT_RTOL) * expected.abs().max().item())
    return Row(name, error, rule.get("atol", ATOL))


def check(spec_file: Path, backend: str = "auto", device: str = "cpu") -> list[Row]:
    """Rows of every expected tensor of one fixture, in the order of their names.

    FlexAttention has no backward on CPU: gradients are left out there. ValueError when an expected tensor is one that
    this comparison does not know.
    """
    fixture = read_fixture(spec_file)
    policy = build(fixture, backend, device)
    gradients = not (policy.trunk.backend == "flex" and torch.device(device).type == "cpu")
    rules = {n: r for n, r in fixture.spec["tensors"].items() if r["compare"] != "input"}
    wanted = {n for n in rules if gradients or ".grad" not in n}
    actual = compute_outputs(policy, fixture.spec, fixture.data, fixture.sizes, gradients)
    unknown = sorted(wanted - set(actual))
    if unknown:
        raise ValueError(f"{fixture.name}: this version cannot compute {', '.join(unknown)}")
    return [compare(n, rules[n], actual[n].detach().cpu(), fixture.data[n]) for n in sorted(wanted)]


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m f1_vla.parity", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("directory", type=Path, metavar="DIR")
    parser.add_argument("--backend", default="auto", help=f"auto, {', '.join(kernels.BACKENDS)}; 'all': each that runs")
    parser.add_argument("--device", default="cpu", help="cpu or cuda (default %(default)s)")
    args = parser.parse_args(argv)
    logging.basicConfig(level=logging.WARNING)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    failed = 0
    try:
        names = kernels.available_backends(args.device) if args.backend == "all" else (args.backend,)
        for spec_file in find_fixtures(args.directory):
            for backend in names:
                rows = check(spec_file, backend, args.device)
                bad = [r for r in rows if not r.ok]
                failed += len(bad)
                print(f"{spec_file.stem}, attention backend {backend}, {args.device}")
                for r in rows:
                    print(f"  {r.name:<44} {r.error:9.2e}  allowed {r.allowed:8.1e}  {'ok' if r.ok else 'WRONG'}")
                print(f"  {len(rows) - len(bad)} of {len(rows)} tensors within tolerance")
    except ValueError as e:
        print(f"error: {e}", file=sys.stderr)
        return 4
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
