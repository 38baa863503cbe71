"""The Franka Panda in a SAPIEN scene: no gravity on its links, position drives on its joints."""

import sapien

from rl.sims.panda_assets import panda_urdf

NUM_JOINTS = 7
STIFFNESS, DAMPING = 1000.0, 100.0
GRIPPER_RANGE = (0.0, 0.04)  # m of travel per finger


def load_panda(scene: sapien.Scene, low_poly: bool, visible: bool = True) -> sapien.physx.PhysxArticulation:
    """Base fixed at the origin; the first 7 active joints are the arm's, the other two the fingers'.

    With `visible` False nothing of it is drawn and the scene needs no render system.
    """
    urdf = panda_urdf(low_poly)
    loader = scene.create_urdf_loader()
    loader.fix_root_link = True
    builder = loader.load_file_as_articulation_builder(str(urdf), srdf_file=str(urdf.with_suffix(".srdf")))
    if not visible:
        for link in builder.link_builders:
            link.visual_records.clear()
    robot = builder.build()
    for link in robot.links:
        link.disable_gravity = True
    for joint in robot.active_joints:
        joint.set_drive_properties(STIFFNESS, DAMPING)
    return robot
