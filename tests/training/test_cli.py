"""The command line: what each phase accepts, how it complains, what the exit codes mean."""

from pathlib import Path

import pytest
from omegaconf import OmegaConf

from rl.config import Config, MixedPrecision, to_dict
from rl.training import cli
from rl.training.cli_flags import EXAMPLES, FLAGS, PHASES, flags_of
from rl.training.config_drift import flatten
from rl.training.errors import CollectiveError, NumericalError, Preempted
from rl.training.run_dir import ResumeMode

EXPECTED_FLAGS = {
    "teacher": "auto_resume resume overwrite allow_drift num_episodes steps_per_episode num_envs output_dir rl_config "
    "model_config accelerate_config max_restarts mixed_precision gradient_accumulation_steps device seed "
    "debug print_config",
    "student": "auto_resume resume overwrite allow_drift num_episodes steps_per_episode teacher_path "
    "teacher_checkpoint num_envs output_dir rl_config model_config accelerate_config max_restarts mixed_precision "
    "gradient_accumulation_steps device seed debug print_config",
    "adversarial": "auto_resume resume overwrite allow_drift steps_per_episode total_iterations teacher_path "
    "teacher_checkpoint student_checkpoint num_envs output_dir rl_config model_config accelerate_config max_restarts "
    "mixed_precision gradient_accumulation_steps device seed debug print_config",
    "tokenizer": "auto_resume resume overwrite allow_drift num_envs output_dir rl_config model_config "
    "accelerate_config max_restarts mixed_precision device seed json debug print_config",
    "plan": "num_envs rl_config model_config accelerate_config mixed_precision device seed json phase "
    "num_processes debug print_config",
    "arm": "auto_resume resume overwrite allow_drift num_envs output_dir rl_config accelerate_config max_restarts "
    "mixed_precision gradient_accumulation_steps device seed json algorithm steps vision physics "
    "image_size frame_stack compare compare_steps compare_seeds no_compile experiment_name run_name "
    "export debug print_config",
    "rl": "auto_resume resume overwrite allow_drift num_envs output_dir rl_config accelerate_config max_restarts "
    "mixed_precision gradient_accumulation_steps device seed json algorithm task max_iterations "
    "no_compile headless distributed experiment_name run_name logger export debug print_config",
    "play": "num_envs rl_config accelerate_config device seed json checkpoint steps export video video_length "
    "real_time log_data log_steps log_env_ids debug print_config",
    "evaluate": "teacher_checkpoint student_checkpoint rl_config model_config accelerate_config device seed json "
    "checkpoint phase episodes policy video debug print_config",
    "pipeline": "auto_resume overwrite steps_per_episode num_envs output_dir rl_config model_config accelerate_config "
    "max_restarts mixed_precision device seed num_processes phases debug print_config",
}


@pytest.mark.parametrize("phase", PHASES)
def test_the_flags_of_a_phase_are_frozen(phase: str) -> None:
    assert [f.dest for f in flags_of(phase)] == EXPECTED_FLAGS[phase].split()


@pytest.mark.parametrize("phase", PHASES)
def test_help_names_every_flag_its_default_and_an_example(phase: str, capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit) as stop:
        cli.parse(phase, ["--help"])
    text = capsys.readouterr().out
    assert stop.value.code == 0
    assert all(f.name in text for f in flags_of(phase)) and EXAMPLES[phase][0] in text
    assert "(default auto)" in text  # --device


def test_every_flag_that_sets_a_key_names_one_that_exists() -> None:
    known = set(flatten(to_dict(Config())))
    keys = {flag.key_for(phase) for phase in PHASES for flag in flags_of(phase)} - {None}
    assert "training.num_episodes" in keys and keys - known == set()


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        ([], {}),
        (["--num_episodes", "20"], {"num_episodes": 20}),
        (["--seed=7", "--num_envs", "3"], {"seed": 7, "num_envs": 3}),
        (["--mixed_precision", "no"], {"mixed_precision": MixedPrecision.no}),
        (["--mixed_precision", "bf16", "training.learning_rate=1e-4"], {"learning_rate": 1e-4}),
        (["--debug"], {"debug": True}),
        (["--seed", "1", "training.seed=1"], {"seed": 1}),
        (["training.num_episodes=3", "--device", "cpu"], {"num_episodes": 3, "device": "cpu"}),
    ],
)
def test_flags_and_overrides_set_training_keys(argv: list[str], expected: dict) -> None:
    training = cli.parse("teacher", argv).config.training
    assert {k: getattr(training, k) for k in expected} == expected


def test_evaluate_has_its_own_seed_and_episodes() -> None:
    args = cli.parse(
        "evaluate",
        ["--phase", "teacher", "--checkpoint", "outputs/x", "--episodes", "3", "--seed", "5", "--json", "o.json"],
    )
    assert (args.config.evaluation.num_episodes, args.config.evaluation.seed) == (3, 5)
    assert args.config.training.seed == Config().training.seed
    assert (args.eval_phase, args.checkpoint, args.json) == ("teacher", Path("outputs/x"), Path("o.json"))


def test_the_architecture_is_overridden_with_arch_keys() -> None:
    assert cli.parse("teacher", ["arch.trunk.num_layers=2"]).arch.trunk.num_layers == 2


@pytest.mark.parametrize(
    ("argv", "mode", "output_dir"),
    [
        ([], ResumeMode.never, "outputs/teacher_rl"),
        (["--auto_resume"], ResumeMode.auto, "outputs/teacher_rl"),
        (["--resume", "/runs/a/checkpoint-500"], ResumeMode.path, "/runs/a"),
        (["--resume", "/runs/a"], ResumeMode.path, "/runs/a"),
        (["--resume", "/runs/a/checkpoint-5", "--output_dir", "/runs/fork"], ResumeMode.path, "/runs/fork"),
        (["--output_dir", "/runs/a b: #1,{x}"], ResumeMode.never, "/runs/a b: #1,{x}"),
    ],
)
def test_resuming_continues_where_the_checkpoint_lies_unless_told_otherwise(
    argv: list[str], mode: ResumeMode, output_dir: str
) -> None:
    args = cli.parse("teacher", argv)
    assert (args.resume, args.output_dir) == (mode, Path(output_dir))


@pytest.mark.parametrize(
    ("phase", "argv", "message"),
    [
        ("teacher", ["--num_episode", "3"], r"unknown flag --num_episode; did you mean --num_episodes\?"),
        ("teacher", ["--num-episodes=3"], r"unknown flag --num-episodes; did you mean --num_episodes\?"),
        (
            "teacher",
            ["--teacher_path", "x"],
            "--teacher_path is not a flag of teacher; it belongs to student, adversarial",
        ),
        ("evaluate", ["--num_episodes", "3"], "not a flag of evaluate; it belongs to teacher, student"),
        ("teacher", ["--training.seed=1"], "write overrides without dashes: training.seed=1"),
        ("teacher", ["word"], "unexpected argument 'word'"),
        ("teacher", ["training.sed=1"], r"unknown configuration key 'training\.sed'; did you mean 'training\.seed'\?"),
        ("teacher", ["arch.trunk.num_layer=2"], r"did you mean 'trunk\.num_layers'\?"),
        ("teacher", ["--seed", "x"], r"training\.seed"),
        ("teacher", ["--num_envs", "0"], "num_envs is 0; it must be at least 1"),
        ("teacher", ["--seed"], "--seed: expected one argument"),
        ("teacher", ["--seed", "1", "training.seed=2"], "--seed 1 and training.seed=2 contradict"),
        ("teacher", ["training.seed=1", "training.seed=2"], "given twice"),
        ("teacher", ["--overwrite", "--auto_resume"], "contradict"),
        ("teacher", ["--overwrite", "--resume", "x"], "contradict"),
        ("teacher", ["--resume", "x", "--auto_resume"], "contradict"),
        ("student", ["--teacher_path", "a", "--teacher_checkpoint", "b"], "mean the same"),
        ("evaluate", ["--phase", "teachers"], "invalid choice: 'teachers'"),
        ("teacher", ["--model_config", "huge"], r"'huge': no such preset; there are .*tiny"),
        ("teacher", ["--rl_config", "missing.yaml"], r"missing\.yaml does not exist"),
        ("teacher", ["--mixed_precision", "half"], r"training\.mixed_precision"),
    ],
)
def test_a_wrong_command_line_is_one_line_with_the_remedy(phase: str, argv: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        cli.parse(phase, argv)


def test_print_config_prints_yaml_that_loads_back(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit) as stop:
        cli.parse("teacher", ["--print_config", "--seed", "3", "arch.trunk.num_layers=2"])
    text = capsys.readouterr().out
    assert stop.value.code == 0 and "#     num_layers: 2" in text
    (tmp_path / "c.yaml").write_text(text)
    assert cli.parse("teacher", ["--rl_config", str(tmp_path / "c.yaml")]).config.training.seed == 3
    assert OmegaConf.create(text).training.seed == 3


@pytest.mark.parametrize(
    ("outcome", "code", "line"),
    [
        (None, 0, ""),
        (7, 7, ""),
        (ValueError("wrong\nvalue"), 4, "error: wrong value\n"),
        (CollectiveError("no checkpoint"), 4, "error: no checkpoint\n"),
        (NumericalError("loss is nan"), 3, "error: loss is nan\n"),
        (Preempted("checkpoint-5 saved"), 75, "stopped: checkpoint-5 saved\n"),
    ],
)
def test_exit_codes_tell_the_launcher_what_happened(
    outcome: object,
    code: int,
    line: str,
    capsys: pytest.CaptureFixture,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv(cli.EXIT_CODE_FILE, str(tmp_path / "code"))

    def body(_: cli.Args) -> int | None:
        if isinstance(outcome, Exception):
            raise outcome
        assert outcome is None or isinstance(outcome, int)
        return outcome

    with pytest.raises(SystemExit) as stop:
        cli.run_main("teacher", body, [])
    assert stop.value.code == code and capsys.readouterr().err == line
    assert (tmp_path / "code").read_text() == f"{code}\n"


def test_a_crash_keeps_its_traceback(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(cli.EXIT_CODE_FILE, str(tmp_path / "code"))
    with pytest.raises(ZeroDivisionError):
        cli.run_main("teacher", lambda _: 1 // 0, [])
    assert (tmp_path / "code").read_text() == "1\n"


def test_debug_shows_the_traceback_of_user_errors_too(capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit):
        cli.run_main("teacher", lambda _: 0, ["--debug", "--num_envs", "0"])
    assert "Traceback" in capsys.readouterr().err


def test_an_error_of_one_rank_is_printed_by_that_rank_and_a_shared_one_only_by_rank_0(
    capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", "1")

    def fail(error: Exception) -> str:
        def body(_: cli.Args) -> int:
            raise error

        with pytest.raises(SystemExit) as stop:
            cli.run_main("teacher", body, [])
        assert stop.value.code == 4
        return capsys.readouterr().err

    assert fail(ValueError("no camera")) == "[rank 1] error: no camera\n"
    assert fail(CollectiveError("no checkpoint")) == ""


def test_flags_are_unique() -> None:
    assert len({f.name for f in FLAGS}) == len(FLAGS)


def test_arm_rl_and_play_take_dashes_between_words_too() -> None:
    dashed = ["--vision", "--image-size", "48", "--frame-stack=2", "--compare-steps", "7", "--no-compile"]
    arm = cli.parse("arm", dashed).config.arm
    assert (arm.vision, arm.image_size, arm.frame_stack, arm.compare_steps, arm.compile) == (True, 48, 2, 7, False)
    underscored = [d.replace("-", "_").replace("__", "--") for d in dashed]
    assert cli.parse("arm", underscored).config.arm == arm
    play = cli.parse("play", ["--real-time", "--log_data", "--num-envs", "3", "--log-env-ids", "0,2"]).config.play
    assert (play.real_time, play.log_data, play.log_env_ids) == (True, True, [0, 2])


def test_the_preset_of_the_algorithm_is_merged_before_flags_and_overrides() -> None:
    config = cli.parse("arm", ["--algorithm", "FASTSAC", "--num_envs", "7", "sac.tau=0.5"]).config
    assert (config.sac.gamma, config.sac.num_envs, config.sac.tau) == (0.9, 7, 0.5)
    assert cli.parse("teacher", []).config.sac == Config().sac


@pytest.mark.parametrize(
    ("phase", "argv", "message"),
    [
        ("arm", ["--algorithm", "PPOO"], r"arm\.algorithm 'PPOO' is unknown; did you mean PPO\?"),
        ("rl", ["--algorithm", "DQN"], r"rl\.algorithm 'DQN' is unknown; there are PPO, A2C, SAC, FASTSAC, DIT"),
        ("arm", ["--task", "CartPole-v1"], "--task is not a flag of arm; it belongs to rl"),
        ("arm", ["--vision", "--physics"], "choose one"),
        ("rl", ["--logger", "paper"], r"rl\.logger"),
        ("play", ["--log_env_ids", "a,b"], r"play\.log_env_ids"),
        ("arm", ["--steps", "0"], r"arm\.steps is 0"),
    ],
)
def test_a_wrong_policy_run_is_one_line_with_the_remedy(phase: str, argv: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        cli.parse(phase, argv)
