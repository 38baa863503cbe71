"""The files that mujoco-usd-converter makes of our robots, opened with USD."""

import pytest

pytest.importorskip("isaaclab", reason="needs Isaac Lab: bash setup.sh isaaclab, then bash tests/run.sh isaaclab")

from pxr import Usd, UsdPhysics

from rl.sims.isaaclab_assets import FLOOR, ROBOTS, offline_root

LEGS = {f"{leg}_{part}" for leg in ("front_left", "front_right", "left_back", "right_back") for part in ("leg", "foot")}
ARM = {f"panda_joint{i}" for i in range(1, 8)}
LINKS = {f"panda_link{i}" for i in range(8)}
# Joints that move and bodies, as the tasks look them up.
EXPECTED = {
    "cartpole.usd": ({"slider_to_cart", "cart_to_pole"}, {"slider", "cart", "pole"}),
    "ant_instanceable.usd": (LEGS, {"torso", *LEGS}),
    "franka_panda.usda": (
        ARM | {"panda_finger_joint1", "panda_finger_joint2"},
        LINKS | {"panda_hand", "panda_leftfinger", "panda_rightfinger"},
    ),
}


def opened(place: str) -> Usd.Stage:
    return Usd.Stage.Open(str(offline_root() / place))


@pytest.mark.parametrize("place", ROBOTS)
def test_a_built_robot_has_the_joints_and_bodies_that_the_tasks_look_up(place: str) -> None:
    stage = opened(place)  # prims die with it
    prims = list(stage.Traverse())
    moving = [p for p in prims if p.IsA(UsdPhysics.RevoluteJoint) or p.IsA(UsdPhysics.PrismaticJoint)]
    bodies = [p for p in prims if p.HasAPI(UsdPhysics.RigidBodyAPI)]
    assert ({p.GetName() for p in moving}, {p.GetName() for p in bodies}) == EXPECTED[place.rpartition("/")[2]]


def test_the_arm_has_drives_in_units_of_degrees() -> None:
    """400 N m / rad are 6.98 N m / degree; a finger's 1,000 N / m stay."""
    place = next(p for p in ROBOTS if p.endswith("franka_panda.usda"))
    stage = opened(place)
    joints = {p.GetName(): p for p in stage.Traverse() if p.IsA(UsdPhysics.Joint)}
    turning = UsdPhysics.DriveAPI(joints["panda_joint4"], "angular").GetStiffnessAttr().Get()
    sliding = UsdPhysics.DriveAPI(joints["panda_finger_joint1"], "linear").GetStiffnessAttr().Get()
    assert (turning, sliding) == (pytest.approx(6.981, abs=1e-3), pytest.approx(1000.0))


def test_the_floor_has_something_to_stand_on() -> None:
    floor = opened(FLOOR)
    assert floor.GetDefaultPrim().GetName() == "World"
    assert [p.GetName() for p in floor.Traverse() if p.HasAPI(UsdPhysics.CollisionAPI)] == ["CollisionPlane"]
