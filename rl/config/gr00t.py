"""GR00T as actor-critic of PPO: which model, what of it is trained and when."""

from dataclasses import dataclass, field

from rl.config.policy_run import nearest

BACKENDS = ("none", "stub", "n1.7", "n1.5")
SIZES = ("tiny", "n1.7")
DTYPES = ("float32", "bfloat16", "float16")
STAGES = ("projector", "dit", "vl_head", "backbone")  # parts of the model, from the action outwards


@dataclass
class GR00TConfig:
    """The adapter of the actions and the value head always train; the rest stands still until its stage begins."""

    backend: str = "none"  # none: the network of `ppo.network` | stub: same shapes, random weights | n1.7 | n1.5
    checkpoint: str | None = None  # local directory of a released model; null: random weights
    instruction: str | None = None  # what the checkpoint is told; null: LeRobot's "perform the task"
    size: str = "tiny"  # of random weights: tiny | n1.7
    mlp_fallback: bool = False  # the network of `ppo.network` where the backend is not installed; said loudly
    embodiment: str = "new_embodiment"  # picks encoder and decoder weights and, of a checkpoint, the statistics
    dtype: str = "float32"  # of what stands still: float32 | bfloat16 | float16; what trains is float32
    # Names of the environment's actions, looked up among those of the checkpoint's embodiment; null: the first ones,
    # mixed by a linear map that starts as the identity.
    action_names: list[str] | None = None
    # Names, among those of the checkpoint's embodiment, of the numbers that the actor is shown: one for each, null for
    # one that the checkpoint does not know. Null as a whole: all of them in their own order, unscaled.
    state_names: list[str | None] | None = None
    denoise_steps: int = 4
    noise_level: float = 0.5  # n of Flow-SDE (f1_vla.flow_likelihood); one denoising step of a decision is random
    # Spread of the noise a chunk begins with. 1 as the released models were trained; random weights do not take it out
    # again, so that it drowns what is learned: 0.
    start_noise: float = 1.0
    stages: list[str] = field(default_factory=lambda: ["projector"])  # of projector, dit, vl_head, backbone
    unfreeze_at: list[float] = field(default_factory=lambda: [0.0])  # share of the run at which each stage begins
    warmup_updates: int = 5  # over which the learning rate of a new stage grows to its full size
    backbone_layers: int = 4  # of the language model, from the top, that the stage `backbone` trains
    lora_rank: int = 0  # adapters in the linear layers of `dit` (a stage) instead of their weights; 0: the weights
    lora_alpha: int = 32
    value_hidden: list[int] = field(default_factory=lambda: [256, 128])
    value_lr_scale: float = 3.0  # learning rate of the value head, relative to ppo.learning_rate


def check_gr00t(cfg: GR00TConfig) -> None:
    """Raises ValueError naming key and remedy."""
    for name, value, known in [
        ("backend", cfg.backend, BACKENDS),
        ("size", cfg.size, SIZES),
        ("dtype", cfg.dtype, DTYPES),
    ]:
        if value not in known:
            raise nearest(value, known, f"gr00t.{name}")
    for stage in cfg.stages:
        if stage not in STAGES:
            raise nearest(stage, STAGES, "gr00t.stages:")
    if len(set(cfg.stages)) < len(cfg.stages):
        raise ValueError(f"gr00t.stages {cfg.stages} names a stage twice")
    if len(cfg.stages) != len(cfg.unfreeze_at):
        raise ValueError(f"gr00t.unfreeze_at {cfg.unfreeze_at} needs one share of the run for each of {cfg.stages}")
    if sorted(cfg.unfreeze_at) != cfg.unfreeze_at or any(not 0 <= s < 1 for s in cfg.unfreeze_at):
        raise ValueError(
            f"gr00t.unfreeze_at {cfg.unfreeze_at}: shares of the run in [0, 1), none before its predecessor"
        )
    for name, number, least in [
        ("denoise_steps", cfg.denoise_steps, 1), ("backbone_layers", cfg.backbone_layers, 1),
        ("lora_rank", cfg.lora_rank, 0), ("warmup_updates", cfg.warmup_updates, 0),
    ]:  # fmt: skip
        if number < least:
            raise ValueError(f"gr00t.{name} is {number}; it must be at least {least}")
    if cfg.lora_rank and "dit" not in cfg.stages:
        raise ValueError(
            f"gr00t.lora_rank={cfg.lora_rank} adds adapters to dit, which gr00t.stages {cfg.stages} does not train; "
            "add dit (and its share to gr00t.unfreeze_at), or set gr00t.lora_rank=0"
        )
    if cfg.start_noise < 0:
        raise ValueError(f"gr00t.start_noise is {cfg.start_noise}; it must not be negative")
    for name, size in [("noise_level", cfg.noise_level), ("value_lr_scale", cfg.value_lr_scale)]:
        if size <= 0:
            raise ValueError(f"gr00t.{name} is {size}; it must be positive")
    if cfg.state_names is not None:
        _check_state_names(cfg, cfg.state_names)
    if cfg.backend == "none" and cfg.checkpoint is not None:
        raise ValueError("gr00t.checkpoint is given, but gr00t.backend=none reads none; choose n1.7, or leave it out")
    if cfg.instruction is not None and cfg.checkpoint is None:
        raise ValueError("gr00t.instruction needs gr00t.checkpoint: random weights know no words; leave it out")
    if cfg.backend == "stub" and cfg.checkpoint is not None:
        raise ValueError("gr00t.backend=stub has random weights; for gr00t.checkpoint choose the backend n1.7")


def _check_state_names(cfg: GR00TConfig, state_names: list[str | None]) -> None:
    named = [n for n in state_names if n is not None]
    if cfg.checkpoint is None:
        raise ValueError("gr00t.state_names needs gr00t.checkpoint, whose state has names; leave it out")
    if cfg.backend == "n1.5":
        raise ValueError(
            "gr00t.state_names: a checkpoint of N1.5 does not say how its state was encoded; leave it out, or choose "
            "the backend n1.7"
        )
    if not named:
        raise ValueError(f"gr00t.state_names {state_names} names nothing, so GR00T would see no state; leave it out")
    twice = sorted({n for n in named if named.count(n) > 1})
    if twice:
        raise ValueError(
            f"gr00t.state_names names {', '.join(twice)} twice; give each name to one number, null to the others"
        )
