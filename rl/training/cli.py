"""One command line for all phases: flags, `block.key=value` overrides, exit codes.

Order of precedence: dataclass defaults, then the file of --rl_config, then flags and overrides together; a flag and
an override that name the same key must agree.
"""

import argparse
import difflib
import json
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

from f1_vla.config import F1Config
from rl import config as rl_config
from rl.training.cli_flags import EXAMPLES, FLAGS, PHASES, POLICY_RUNS, flags_of, run_of
from rl.training.errors import (
    EXIT_CRASH,
    EXIT_OK,
    CollectiveError,
    NumericalError,
    OutOfMemoryError,
    Preempted,
    exit_code_of,
)
from rl.training.process_end import end_process
from rl.training.run_dir import ResumeMode

# Launchers turn every failure into 1: the first rank of a node leaves the real code in the file this names.
EXIT_CODE_FILE = "RL_EXIT_CODE_FILE"


@dataclass
class Args:
    """A parsed command line."""

    phase: str
    config: rl_config.Config
    arch: F1Config
    resume: ResumeMode
    resume_path: Path | None
    overwrite: bool
    json: Path | None
    checkpoint: Path | None
    teacher: Path | None  # --teacher_path or --teacher_checkpoint
    student: Path | None  # --student_checkpoint
    eval_phase: str | None  # --phase of evaluate and plan
    debug: bool
    run: str | None = None  # arm or rl, whose presets the configuration has: the phase, or what is planned
    num_processes: int | None = None  # --num_processes of plan
    overrides: list[str] = field(default_factory=list)  # of the configuration, by the command line alone
    arch_overrides: list[str] = field(default_factory=list)  # of the architecture, without "arch."
    config_file: str | None = None  # --rl_config
    allow_drift: list[str] = field(default_factory=list)  # keys that a resume may change

    @property
    def output_dir(self) -> Path:
        """`<phase>.output_dir` of the configuration; of arm and rl by task and name where it is not given."""
        if self.phase in POLICY_RUNS:
            return rl_config.run_directory(self.config, self.phase)
        return Path(getattr(self.config, self.phase).output_dir)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ValueError(f"{message}; see --help")


def _parser(phase: str, run: str | None) -> _Parser:
    parser = _Parser(
        prog=f"train.sh {phase}",
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description=PHASES[phase],
        epilog="Anything else: block.key=value for a key of the configuration (see --print_config), or\n"
        "arch.key=value for the architecture.\n\nExamples:\n" + "\n".join(f"  {e}" for e in EXAMPLES[phase]),
    )
    defaults = rl_config.to_dict(rl_config.Config())
    for flag in flags_of(phase, run):
        key = flag.key_for(run or phase)
        default = "" if key is None else f" (default {_lookup(defaults, key)})"
        if flag.switch:
            parser.add_argument(*flag.spellings(run or phase), action="store_true", default=None, help=flag.help)
        else:
            parser.add_argument(
                *flag.spellings(run or phase), metavar=flag.metavar, help=flag.help + default, choices=flag.choices
            )
    return parser


def _lookup(tree: dict[str, Any], key: str) -> Any:
    for part in key.split("."):
        tree = tree[part]
    return tree


def _refuse_unknown(argument: str, phase: str) -> NoReturn:
    name = argument.split("=")[0]
    owners = [p for p in PHASES if any(f.name == name for f in flags_of(p))]
    if owners:
        raise ValueError(f"{name} is not a flag of {phase}; it belongs to {', '.join(owners)}")
    if "." in name and "=" in argument:
        raise ValueError(f"unknown flag {name}; write overrides without dashes: {argument.lstrip('-')}")
    underscored = "--" + name.lstrip("-").replace("-", "_")
    near = difflib.get_close_matches(underscored, [f.name for f in flags_of(phase)], n=1)
    raise ValueError(f"unknown flag {name}" + (f"; did you mean {near[0]}?" if near else "; see --help"))


def _overrides(
    phase: str, run: str | None, given: dict[str, Any], rest: Sequence[str]
) -> tuple[list[str], list[str]]:  # fmt: skip
    """Configuration overrides and architecture overrides (without "arch."), flags included."""
    values: dict[str, tuple[str, str]] = {}  # key -> (value, where from)
    texts = {f.key_for(run or phase) for f in flags_of(phase, run) if f.is_text}
    for argument in rest:
        if argument.startswith("-"):
            _refuse_unknown(argument, phase)
        if "=" not in argument:
            raise ValueError(f"unexpected argument '{argument}'; write --flag or block.key=value")
        key, value = argument.split("=", 1)
        if key in values and values[key][0] != value:
            raise ValueError(f"{key} is given twice: {values[key][0]} and {value}")
        values[key] = (value, argument)
    for flag in flags_of(phase, run):
        target = flag.key_for(run or phase)
        if target is None or given[flag.dest] is None:
            continue
        text = flag.value if flag.switch else str(given[flag.dest])
        text = f"[{text}]" if flag.is_list else text
        if target in values and values[target][0] != text:
            raise ValueError(f"{flag.name} {text} and {values[target][1]} contradict each other; give only one")
        values[target] = (text, flag.name)
    # Quoted, because an unquoted value is read as YAML: `no`, `1e3` and `a: b` would not stay text.
    pairs = [(k, _quoted(v) if k in texts else v) for k, (v, _) in values.items()]
    arch = [f"{k.removeprefix('arch.')}={v}" for k, v in pairs if k.startswith("arch.")]
    return [f"{k}={v}" for k, v in pairs if not k.startswith("arch.")], arch


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def parse(phase: str, argv: Sequence[str]) -> Args:
    """Arguments of one phase. ValueError in one line for anything wrong; --help and --print_config exit with 0."""
    run = run_of(phase, argv)
    given_namespace, rest = _parser(phase, run).parse_known_args(list(argv))
    given: dict[str, Any] = {f.dest: None for f in FLAGS} | vars(given_namespace)
    if given["overwrite"] and (given["resume"] or given["auto_resume"]):
        raise ValueError("--overwrite and --resume or --auto_resume contradict each other; give only one")
    if given["resume"] and given["auto_resume"]:
        raise ValueError("--resume and --auto_resume contradict each other; give only one")
    if given["allow_drift"] is not None and not (given["resume"] or given["auto_resume"]):
        raise ValueError("--allow_drift is for a run that is continued; give --auto_resume or --resume, too")
    if given["teacher_path"] and given["teacher_checkpoint"]:
        raise ValueError("--teacher_path and --teacher_checkpoint mean the same; give only one")
    for flag in ("accelerate_config", "max_restarts"):
        if given[flag] is not None:
            raise ValueError(f"--{flag} is for the launcher: bash train.sh {phase} ... --{flag} {given[flag]}")
    overrides, arch_overrides = _overrides(phase, run, given, rest)
    resume_path = None if given["resume"] is None else Path(given["resume"])
    own_place = any(o.startswith(f"{run or phase}.output_dir=") for o in overrides)
    if resume_path is not None and not own_place:  # continue where the checkpoint lies
        parent = resume_path.parent if resume_path.name.startswith("checkpoint-") else resume_path
        overrides.append(f"{run or phase}.output_dir={_quoted(str(parent))}")
    config = rl_config.load(given["rl_config"], overrides, run)
    arch = rl_config.load_model(config.model.config_file, arch_overrides)
    if given["print_config"]:
        print(rl_config.to_yaml(config), end="")
        print("# architecture (model.config_file; override with arch.key=value):")
        print("".join(f"#   {line}\n" for line in rl_config.to_yaml(arch).splitlines()), end="")
        raise SystemExit(EXIT_OK)
    mode = ResumeMode.path if resume_path is not None else ResumeMode.auto if given["auto_resume"] else ResumeMode.never
    return Args(
        phase=phase, config=config, arch=arch, resume=mode, resume_path=resume_path, overwrite=bool(given["overwrite"]),
        json=_path(given["json"]), checkpoint=_path(given["checkpoint"]),
        teacher=_path(given["teacher_path"] or given["teacher_checkpoint"]), student=_path(given["student_checkpoint"]),
        eval_phase=given["phase"], debug=config.training.debug, run=run, num_processes=_count("--num_processes", given),
        overrides=overrides, arch_overrides=arch_overrides, config_file=given["rl_config"],
        allow_drift=[] if given["allow_drift"] is None else given["allow_drift"].split(","),
    )  # fmt: skip


def _count(flag: str, given: dict[str, Any]) -> int | None:
    """A whole number of at least 1, or None when the flag is absent. Raises ValueError."""
    text = given[flag.removeprefix("--")]
    if text is not None and (not text.isdecimal() or int(text) < 1):
        raise ValueError(f"{flag} is '{text}'; it must be a whole number of at least 1")
    return None if text is None else int(text)


def _path(value: str | None) -> Path | None:
    return None if value is None else Path(value)


def run_main(phase: str, fn: Callable[[Args], int | None], argv: Sequence[str] | None = None) -> NoReturn:
    """Parses, runs `fn(args)` and exits: 0 done, 75 preempted, 3 not finite, 4 wrong input; crashes keep tracebacks.

    `fn` may return an exit code of its own. One line on stderr for 3 and 4, the traceback too with --debug.
    """
    argv = sys.argv[1:] if argv is None else argv
    debug = "--debug" in argv or "training.debug=true" in argv
    rank = int(os.environ.get("RANK", "0"))
    code = EXIT_CRASH
    try:
        try:
            args = parse(phase, argv)
        except ValueError as e:  # the same on every rank
            raise CollectiveError(str(e)) from e
        code = fn(args) or EXIT_OK
    except Preempted as e:
        code = exit_code_of(e)
        _say(f"stopped: {e}", rank, everywhere=False)
    except (NumericalError, OutOfMemoryError, ValueError) as e:
        code = exit_code_of(e)
        if debug:
            traceback.print_exc()
        _say(f"error: {' '.join(str(e).split())}", rank, everywhere=not isinstance(e, CollectiveError))
    except SystemExit as e:
        code = e.code if isinstance(e.code, int) else EXIT_CRASH
        raise
    finally:
        if os.environ.get("LOCAL_RANK", "0") == "0" and EXIT_CODE_FILE in os.environ:
            Path(os.environ[EXIT_CODE_FILE]).write_text(f"{code}\n", encoding="utf-8")
    end_process(code)


def _say(line: str, rank: int, everywhere: bool) -> None:
    if rank == 0:
        print(line, file=sys.stderr, flush=True)
    elif everywhere:
        print(f"[rank {rank}] {line}", file=sys.stderr, flush=True)
