"""The flags of the command line, one row each: which phases take them and which configuration key they set.

Defaults live in `rl.config` only; a flag that is absent leaves its key alone.
"""

from dataclasses import dataclass

PHASES = {
    "teacher": "Phase 1: train the world model to predict the next wrist-camera frame.",
    "student": "Phase 2: train the explorer with the frozen world model of phase 1.",
    "adversarial": "Phase 3: world model and explorer train against each other.",
    "tokenizer": "Train the multi-scale VQ-VAE on frames of the simulator.",
    "evaluate": "Measure a checkpoint on held-out scenes.",
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
    "evaluate": ("bash train.sh evaluate --phase teacher --checkpoint outputs/teacher_rl --json numbers.json",),
    "plan": (
        "bash train.sh plan teacher --model_config f1_base --num_processes 8 --mixed_precision bf16 model.lora.mode=on",
    ),
}
_ROLLOUT = ("teacher", "student", "adversarial")
_RUN = (*_ROLLOUT, "tokenizer")
_ALL = tuple(PHASES)


@dataclass(frozen=True)
class Flag:
    """`keys`: configuration key, or one for each phase that differs ("*" for the others); None: not a key."""

    name: str
    phases: tuple[str, ...]
    help: str
    keys: dict[str, str] | None = None
    metavar: str = "N"
    switch: bool = False
    choices: tuple[str, ...] | None = None

    @property
    def dest(self) -> str:
        return self.name.removeprefix("--")

    @property
    def is_text(self) -> bool:
        """The value is text (a path, a name), not a number or a switch."""
        return not self.switch and self.metavar != "N"

    def key_for(self, phase: str) -> str | None:
        if self.keys is None:
            return None
        return self.keys.get(phase, self.keys["*"]).replace("PHASE", phase)


FLAGS = (
    Flag("--auto_resume", _RUN, "continue the run in the output directory, start it when there is none", switch=True),
    Flag("--resume", _RUN, "continue from checkpoint-N, or the newest one of a run directory", metavar="DIR"),
    Flag("--overwrite", _RUN, "replace the run in the output directory", switch=True),
    Flag("--num_episodes", ("teacher", "student"), "episodes over all environments and processes",
         {"*": "training.num_episodes"}),
    Flag("--steps_per_episode", _ROLLOUT, "environment steps of one episode",
         {"*": "training.steps_per_episode"}),
    Flag("--total_iterations", ("adversarial",), "iterations of both players", {"*": "adversarial.total_iterations"}),
    Flag("--teacher_path", ("student", "adversarial"), "run or checkpoint of phase 1", metavar="DIR"),
    Flag("--teacher_checkpoint", ("student", "adversarial"), "the same as --teacher_path", metavar="DIR"),
    Flag("--student_checkpoint", ("adversarial",), "run or checkpoint of phase 2; not needed to resume", metavar="DIR"),
    Flag("--num_envs", (*_RUN, "plan"), "environments per process", {"*": "training.num_envs"}),
    Flag("--output_dir", _RUN, "run directory", {"*": "PHASE.output_dir"}, metavar="DIR"),
    Flag("--rl_config", _ALL, "configuration file instead of configs/rl_config.yaml", metavar="FILE"),
    Flag("--model_config", _ALL, "model preset (tiny, debug_test, f1_base) or file", {"*": "model.config_file"},
         metavar="NAME"),
    Flag("--accelerate_config", _ALL, "configuration of accelerate launch; read by train.sh", metavar="FILE"),
    Flag("--mixed_precision", (*_RUN, "plan"), "no, bf16 or fp16", {"*": "training.mixed_precision"}, metavar="KIND"),
    Flag("--gradient_accumulation_steps", _ROLLOUT, "micro-batches of one update",
         {"*": "training.gradient_accumulation_steps"}),
    Flag("--device", _ALL, "auto, cpu or cuda", {"*": "training.device"}, metavar="NAME"),
    Flag("--seed", _ALL, "seed of everything random", {"*": "training.seed", "evaluate": "evaluation.seed"}),
    Flag("--json", ("evaluate", "tokenizer", "plan"), "write the measured numbers to this file", metavar="FILE"),
    Flag("--checkpoint", ("evaluate",), "checkpoint-N, or a run directory (its newest valid one)", metavar="DIR"),
    Flag("--phase", ("evaluate", "plan"), "phase that made the checkpoint, or that is planned", metavar="NAME",
         choices=_ROLLOUT),
    Flag("--num_processes", ("plan",), "processes of the planned run, one a GPU"),
    Flag("--episodes", ("evaluate",), "episodes to measure", {"*": "evaluation.num_episodes"}),
    Flag("--debug", _ALL, "tracebacks for every error, anomaly checks", {"*": "training.debug"}, switch=True),
    Flag("--print_config", _ALL, "print the merged configuration and exit", switch=True),
)  # fmt: skip


def flags_of(phase: str) -> list[Flag]:
    return [f for f in FLAGS if phase in f.phases]
