"""Atari games (`train.sh rl --task ALE/Pong-v5`): details 14 to 20 of PPO's 37, each with its switch."""

from dataclasses import dataclass, replace


@dataclass
class AtariConfig:
    """Pictures are gray (detail 18)."""

    noop_max: int = 30  # up to so many no-ops after a reset (14); 0: none
    frame_skip: int = 4  # frames that an action is repeated, the last two maxed (15); 1: every frame is a step
    episodic_life: bool = True  # in training an episode ends with a life (16), not with the game
    fire: bool = True  # pressed where a game waits for it (17)
    screen_size: int = 84  # px (18)
    clip_rewards: bool = True  # in training the sign of a reward counts (19)
    frame_stack: int = 4  # pictures in an observation (20)

    def measured(self) -> "AtariConfig":
        """For evaluations and play: whole games, and the points that the game gives."""
        return replace(self, episodic_life=False, clip_rewards=False)


def check_atari(cfg: AtariConfig) -> None:
    """Raises ValueError naming key and remedy."""
    for name, least in {"noop_max": 0, "frame_skip": 1, "screen_size": 36, "frame_stack": 1}.items():
        if getattr(cfg, name) < least:
            raise ValueError(f"atari.{name} is {getattr(cfg, name)}; it must be at least {least}")
