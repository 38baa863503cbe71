"""`train.sh arm`: reaching with a Franka arm."""

from dataclasses import dataclass

from rl.config.policy_run import PolicyRunConfig

VISION_TASK = "VisionArmReach-v1"


@dataclass
class ArmConfig(PolicyRunConfig):
    """`train.sh rl` reads what its reaching tasks are made of from here, too: pictures, critic and bonus."""

    steps: int = 100_000  # environment steps
    physics: bool = False  # a simulated arm (SAPIEN) instead of kinematics
    vision: bool = False  # three cameras instead of the target's coordinates
    image_size: int = 64  # px, of each camera
    frame_stack: int = 4
    privileged_critic: bool = False  # VisionArmReach: the critic, which only training needs, sees the target's place
    reach_bonus: bool = False  # +10 once an episode, and a flag in the observation that says so
    save_every: int = 20_000  # environment steps
    log_every: int = 2_000
    eval_every: int = 20_000
    compare: bool = False  # all algorithms, one after another
    compare_steps: int = 50_000
    compare_seeds: int = 1  # from training.seed on

    @property
    def task(self) -> str:
        """Id of the environment."""
        return VISION_TASK if self.vision else "ArmReachPhysics-v1" if self.physics else "ArmReach-v1"


def check_arm(arm: ArmConfig) -> None:
    """Raises ValueError naming key and remedy."""
    if arm.vision and arm.physics:
        raise ValueError("arm.vision and arm.physics are both true; the arm that cameras see is kinematic, choose one")
    for name in ("steps", "compare_steps", "compare_seeds", "frame_stack"):
        if getattr(arm, name) < 1:
            raise ValueError(f"arm.{name} is {getattr(arm, name)}; it must be at least 1")
    if not 36 <= arm.image_size <= 1024:
        raise ValueError(f"arm.image_size is {arm.image_size} px; it must lie between 36 and 1024")
