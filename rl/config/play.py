"""`train.sh play`: watching a trained policy."""

from dataclasses import dataclass, field


@dataclass
class PlayConfig:
    num_envs: int = 1
    seed: int = 1_000_000
    steps: int = 300  # environment steps of each environment
    video: bool = False  # videos/play.mp4 in the run directory
    video_length: int = 300  # frames; with `video` so many steps are played
    video_size: int = 256  # px, of each camera
    real_time: bool = False  # not faster than the robot
    export: bool = False  # export/policy.pt (TorchScript) and policy.onnx, checked for equal actions
    log_data: bool = False  # play_data.csv in the run directory
    log_steps: int = 200  # rows of each logged environment
    log_env_ids: list[int] = field(default_factory=lambda: [0])


def check_play(play: PlayConfig) -> None:
    """Raises ValueError naming key and remedy."""
    for name in ("num_envs", "steps", "video_length", "log_steps"):
        if getattr(play, name) < 1:
            raise ValueError(f"play.{name} is {getattr(play, name)}; it must be at least 1")
    wrong = [i for i in play.log_env_ids if not 0 <= i < play.num_envs]
    if play.log_data and (wrong or not play.log_env_ids):
        raise ValueError(
            f"play.log_env_ids {play.log_env_ids}: there are {play.num_envs} environments, counted from 0; "
            "raise --num_envs or name others"
        )
