"""The flags of the command line, one row each: which phases take them and which configuration key they set.

Defaults live in `rl.config` only; a flag that is absent leaves its key alone.
"""

from collections.abc import Sequence
from dataclasses import dataclass

POLICY_RUNS = ("arm", "rl")  # their presets enter between file and overrides
PHASES = {
    "teacher": "Phase 1: train the world model to predict the next wrist-camera frame.",
    "student": "Phase 2: train the explorer with the frozen world model of phase 1.",
    "adversarial": "Phase 3: world model and explorer train against each other.",
    "tokenizer": "Train the multi-scale VQ-VAE on frames of the simulator.",
    "evaluate": "Measure a checkpoint on held-out scenes.",
    "pipeline": "All phases one after another, measured and shown in one report.html.",
    "arm": "Learn to reach with a Franka arm: PPO, A2C, SAC, FASTSAC or DIT (a diffusion transformer).",
    "rl": "The same algorithms on any task by its id.",
    "play": "Watch a policy that arm or rl has trained: video, data log, numbers.",
    "plan": "Parameters, memory by part and time of an update of a phase, before anything big is allocated.",
}
EXAMPLES = {
    "teacher": (
        "bash train.sh teacher 1 1 --num_episodes 1000",
        "bash train.sh teacher 4 2 --num_episodes 10000 --auto_resume",
        "bash train.sh teacher 1 1 --resume outputs/teacher_rl/checkpoint-500 training.log_every=1",
    ),
    "student": ("bash train.sh student 4 2 --teacher_path outputs/teacher_rl --num_episodes 5000",),
    "adversarial": (
        "bash train.sh adversarial 4 2 --teacher_checkpoint outputs/teacher_rl "
        "--student_checkpoint outputs/student_rl --total_iterations 100000",
    ),
    "tokenizer": ("bash train.sh tokenizer --output_dir outputs/tokenizer --seed 0 tokenizer.steps=3000",),
    "evaluate": (
        "bash train.sh evaluate --phase teacher --checkpoint outputs/teacher_rl --json numbers.json",
        "bash train.sh evaluate --phase student --checkpoint outputs/student_rl --json explorer.json --video",
        "bash train.sh evaluate --checkpoint outputs/teacher_rl --student_checkpoint outputs/student_rl "
        "--policy explorer --json teacher_on_explorer.json",
    ),
    "pipeline": (
        "bash train.sh pipeline --output_dir outputs/pipeline",
        "bash train.sh pipeline --phases teacher,student,evaluation --auto_resume",
    ),
    "arm": (
        "bash train.sh arm --algorithm FASTSAC --steps 100000",
        "bash train.sh arm --algorithm PPO --vision --image-size 64 --frame-stack 4",
        "bash train.sh arm --compare --compare-steps 50000",
    ),
    "rl": (
        "bash train.sh rl --task CartPole-v1 --algorithm PPO --max_iterations 100 --seed 0",
        "bash train.sh rl --task Pendulum-v1 --algorithm SAC --num_envs 1 --max_iterations 20000",
    ),
    "play": (
        "bash train.sh play --checkpoint outputs/ArmReach-v1/fastsac_seed0 --video --video_length 300",
        "bash train.sh play --checkpoint outputs/ArmReach-v1/ppo_seed0/checkpoint-100352 --num_envs 3 --log_data "
        "--log_steps 200 --log_env_ids 0,1,2",
    ),
    "plan": (
        "bash train.sh plan teacher --model_config f1_base --num_processes 8 --mixed_precision bf16 model.lora.mode=on",
        "bash train.sh plan gr00t gr00t.size=n1.7 gr00t.dtype=bfloat16 gr00t.stages=[dit] gr00t.lora_rank=16",
        "bash train.sh plan gr00t --task Pendulum-v1 rl.preset=gr00t --num_processes 2  # flags of rl, or of arm",
    ),
}
_ROLLOUT = ("teacher", "student", "adversarial")
_POLICY = POLICY_RUNS
_F1_RUN = (*_ROLLOUT, "tokenizer")
_RUN = (*_F1_RUN, *_POLICY)
_ALL = tuple(PHASES)
_DASHES = (*_POLICY, "play")  # where --image-size means --image_size


@dataclass(frozen=True)
class Flag:
    """`keys`: configuration key, or one for each phase that differs ("*" for the others); None: not a key."""

    name: str
    phases: tuple[str, ...]
    help: str
    keys: dict[str, str] | None = None
    metavar: str = "N"
    switch: bool = False
    value: str = "true"  # what a switch sets
    choices: tuple[str, ...] | None = None

    @property
    def dest(self) -> str:
        return self.name.removeprefix("--")

    def spellings(self, phase: str) -> tuple[str, ...]:
        """The name, and with dashes between its words where a phase takes both."""
        dashed = "--" + self.dest.replace("_", "-")
        return (self.name, dashed) if phase in _DASHES and dashed != self.name else (self.name,)

    @property
    def is_text(self) -> bool:
        """The value is text (a path, a name), not a number or a switch."""
        return not self.switch and self.metavar != "N" and not self.is_list

    @property
    def is_list(self) -> bool:
        """The value is a list, written with commas."""
        return "," in self.metavar

    def key_for(self, phase: str) -> str | None:
        if self.keys is None:
            return None
        return self.keys.get(phase, self.keys["*"]).replace("PHASE", phase)


FLAGS = (
    Flag("--auto_resume", (*_RUN, "pipeline"), "continue the run in the output directory, start it when there is none",
         switch=True),
    Flag("--resume", _RUN, "continue from checkpoint-N, or the newest one of a run directory", metavar="DIR"),
    Flag("--overwrite", (*_RUN, "pipeline"), "replace the run in the output directory", switch=True),
    Flag("--allow_drift", _RUN, "configuration keys that a continued run may change", metavar="KEY,KEY"),
    Flag("--num_episodes", ("teacher", "student"), "episodes over all environments and processes",
         {"*": "training.num_episodes"}),
    Flag("--steps_per_episode", (*_ROLLOUT, "pipeline"), "environment steps of one episode",
         {"*": "training.steps_per_episode"}),
    Flag("--total_iterations", ("adversarial",), "iterations of both players", {"*": "adversarial.total_iterations"}),
    Flag("--teacher_path", ("student", "adversarial"), "run or checkpoint of phase 1", metavar="DIR"),
    Flag("--teacher_checkpoint", ("student", "adversarial", "evaluate"), "the same as --teacher_path; evaluate: a "
         "world model to compare with, on the same episodes", metavar="DIR"),
    Flag("--student_checkpoint", ("adversarial", "evaluate"), "run or checkpoint of phase 2; not needed to resume; "
         "evaluate: the explorer that acts, when it is another's", metavar="DIR"),
    Flag("--num_envs", (*_RUN, "pipeline", "plan", "play"), "environments per process",
         {"*": "training.num_envs", "arm": "arm.num_envs", "rl": "rl.num_envs", "play": "play.num_envs"}),
    Flag("--output_dir", (*_RUN, "pipeline"), "run directory", {"*": "PHASE.output_dir"}, metavar="DIR"),
    Flag("--rl_config", _ALL, "configuration file instead of configs/rl_config.yaml", metavar="FILE"),
    Flag("--model_config", (*_F1_RUN, "pipeline", "evaluate", "plan"),
         "model preset (tiny, debug_test, f1_base) or file", {"*": "model.config_file"}, metavar="NAME"),
    Flag("--accelerate_config", _ALL, "configuration of accelerate launch; read by train.sh", metavar="FILE"),
    Flag("--max_restarts", (*_RUN, "pipeline"), "starts again after a crash, from the newest checkpoint (default 0); "
         "read by train.sh"),
    Flag("--mixed_precision", (*_RUN, "pipeline", "plan"), "no, bf16 or fp16", {"*": "training.mixed_precision"},
         metavar="KIND"),
    Flag("--gradient_accumulation_steps", (*_ROLLOUT, *_POLICY), "micro-batches of one update (arm and rl: of "
         "PPO and A2C only)",
         {"*": "training.gradient_accumulation_steps"}),
    Flag("--device", _ALL, "auto, cpu or cuda", {"*": "training.device"}, metavar="NAME"),
    Flag("--seed", _ALL, "seed of everything random",
         {"*": "training.seed", "evaluate": "evaluation.seed", "play": "play.seed"}),
    Flag("--json", ("evaluate", "tokenizer", "plan", *_DASHES), "write the measured numbers to this file",
         metavar="FILE"),
    Flag("--checkpoint", ("evaluate", "play"), "checkpoint-N, or a run directory (its newest valid one)",
         metavar="DIR"),
    Flag("--phase", ("evaluate", "plan"), "phase that made the checkpoint, or that is planned (plan: or gr00t)",
         metavar="NAME", choices=(*_ROLLOUT, "gr00t")),
    Flag("--num_processes", ("pipeline", "plan"), "processes of each phase (plan: of the planned run), one a GPU"),
    Flag("--phases", ("pipeline",), "those to run, of teacher,student,adversarial,evaluation", {"*": "pipeline.phases"},
         metavar="NAME,NAME"),
    Flag("--episodes", ("evaluate",), "episodes to measure", {"*": "evaluation.num_episodes"}),
    Flag("--policy", ("evaluate",), "who acts: explorer, random or zero", {"*": "evaluation.policy"}, metavar="WHO"),
    Flag("--algorithm", _POLICY, "PPO, A2C, SAC, FASTSAC or DIT", {"*": "PHASE.algorithm"}, metavar="NAME"),
    Flag("--task", ("rl",), "id of the task", {"*": "rl.task"}, metavar="ID"),
    Flag("--steps", ("arm", "play"), "environment steps (play: of each environment)", {"*": "PHASE.steps"}),
    Flag("--max_iterations", ("rl",), "iterations of the training loop", {"*": "rl.max_iterations"}),
    Flag("--vision", ("arm",), "three cameras instead of the target's coordinates", {"*": "arm.vision"}, switch=True),
    Flag("--physics", ("arm",), "a simulated arm instead of kinematics", {"*": "arm.physics"}, switch=True),
    Flag("--image_size", ("arm",), "px of each camera", {"*": "arm.image_size"}),
    Flag("--frame_stack", ("arm",), "pictures of each camera in an observation", {"*": "arm.frame_stack"}),
    Flag("--compare", ("arm",), "all algorithms with the same seeds: table and learning curves", {"*": "arm.compare"},
         switch=True),
    Flag("--compare_steps", ("arm",), "environment steps of each", {"*": "arm.compare_steps"}),
    Flag("--compare_seeds", ("arm",), "seeds of each, from --seed on", {"*": "arm.compare_seeds"}),
    Flag("--no_compile", _POLICY, "no torch.compile, whatever the preset says", {"*": "PHASE.compile"}, switch=True,
         value="false"),
    Flag("--headless", ("rl",), "no window (the default)", {"*": "rl.headless"}, switch=True),
    Flag("--distributed", ("rl",), "a simulator on each process's own GPU", {"*": "rl.distributed"}, switch=True),
    Flag("--experiment_name", _POLICY, "first half of the run's name", {"*": "PHASE.experiment_name"}, metavar="NAME"),
    Flag("--run_name", _POLICY, "second half of the run's name", {"*": "PHASE.run_name"}, metavar="NAME"),
    Flag("--logger", ("rl",), "tensorboard or wandb", {"*": "rl.logger"}, metavar="NAME"),
    Flag("--export", _DASHES, "write the policy as TorchScript and ONNX", {"*": "PHASE.export"}, switch=True),
    Flag("--video", ("play", "evaluate"), "write a video (play: videos/play.mp4 in the run directory; evaluate: "
         "beside the file of --json)", {"play": "play.video", "*": "evaluation.video"}, switch=True),
    Flag("--video_length", ("play",), "frames of the video", {"*": "play.video_length"}),
    Flag("--real_time", ("play",), "not faster than the robot", {"*": "play.real_time"}, switch=True),
    Flag("--log_data", ("play",), "write play_data.csv in the run directory", {"*": "play.log_data"}, switch=True),
    Flag("--log_steps", ("play",), "rows of each logged environment", {"*": "play.log_steps"}),
    Flag("--log_env_ids", ("play",), "environments to log", {"*": "play.log_env_ids"}, metavar="N,N"),
    Flag("--debug", _ALL, "tracebacks for every error, anomaly checks", {"*": "training.debug"}, switch=True),
    Flag("--print_config", _ALL, "print the merged configuration and exit", switch=True),
)  # fmt: skip


def flags_of(phase: str, run: str | None = None) -> list[Flag]:
    """Of `phase`, and of the `run` that it is about."""
    return [f for f in FLAGS if phase in f.phases or run in f.phases]


def run_of(phase: str, argv: Sequence[str]) -> str | None:
    """arm or rl, whose presets and task enter the configuration: the phase itself, or the run that `plan --phase gr00t`
    is about, whose flags it takes. That is `rl` where a flag or a key of rl alone is given, else `arm`. None: all other
    phases."""
    if phase in POLICY_RUNS:
        return phase
    joined = " ".join(argv).replace("--phase ", "--phase=").split()
    if phase != "plan" or "--phase=gr00t" not in joined:
        return None
    only = {s for f in FLAGS if "rl" in f.phases and not {"arm", "plan"} & {*f.phases} for s in f.spellings("rl")}
    return "rl" if any(a.split("=")[0] in only or a.startswith("rl.") for a in argv) else "arm"
