"""Our own descriptions (MJCF) of the robots that Isaac Lab's small tasks need, for machines without NVIDIA's server.

Joint and body names are those the tasks look up; sizes and masses are plain textbook ones, so that results on these
robots are not results on NVIDIA's files. Lengths in metres, masses in kg, angles in degrees.
"""

import math

CARTPOLE = """\
<mujoco model="cartpole">
  <compiler angle="degree"/>
  <worldbody>
    <body name="slider">
      <geom name="rail" type="box" size="0.015 4 0.015" mass="1" contype="0" conaffinity="0" rgba="0.6 0.6 0.6 1"/>
      <body name="cart">
        <joint name="slider_to_cart" type="slide" axis="0 1 0" range="-4 4"/>
        <geom name="cart_box" type="box" size="0.1 0.125 0.1" mass="1" contype="0" conaffinity="0"
              rgba="0.2 0.4 0.8 1"/>
        <body name="pole" pos="0.12 0 0">
          <joint name="cart_to_pole" type="hinge" axis="1 0 0"/>
          <geom name="pole_box" type="box" size="0.02 0.03 0.5" pos="0 0 0.47" mass="1" contype="0" conaffinity="0"
                rgba="0.8 0.3 0.2 1"/>
        </body>
      </body>
    </body>
  </worldbody>
</mujoco>
"""

# leg: x and y sign, ankle axis, range of the ankle
_LEGS = {
    "front_left": (1, 1, "-1 1 0", "30 100"),
    "front_right": (-1, 1, "1 1 0", "-100 -30"),
    "left_back": (-1, -1, "-1 1 0", "-100 -30"),
    "right_back": (1, -1, "1 1 0", "30 100"),
}
_JOINT = 'armature="0.01" damping="0.1"'
_CAPSULE = 'type="capsule" size="0.08" density="5"'


def _leg(name: str) -> str:
    x, y, axis, limits = _LEGS[name]
    return f"""\
      <geom name="{name}_hip" {_CAPSULE} fromto="0 0 0 {0.2 * x} {0.2 * y} 0"/>
      <body name="{name}_leg" pos="{0.2 * x} {0.2 * y} 0">
        <joint name="{name}_leg" type="hinge" axis="0 0 1" range="-40 40" {_JOINT}/>
        <geom name="{name}_upper" {_CAPSULE} fromto="0 0 0 {0.2 * x} {0.2 * y} 0"/>
        <body name="{name}_foot" pos="{0.2 * x} {0.2 * y} 0">
          <joint name="{name}_foot" type="hinge" axis="{axis}" range="{limits}" {_JOINT}/>
          <geom name="{name}_lower" {_CAPSULE} fromto="0 0 0 {0.4 * x} {0.4 * y} 0"/>
        </body>
      </body>
"""


ANT = f"""\
<mujoco model="ant">
  <compiler angle="degree"/>
  <worldbody>
    <body name="torso" pos="0 0 0.75">
      <freejoint name="root"/>
      <geom name="torso_ball" type="sphere" size="0.25" density="5"/>
{"".join(_leg(name) for name in _LEGS)}\
    </body>
  </worldbody>
</mujoco>
"""

# Panda: a, d (metres), alpha (degrees), mass, range (degrees) of links 1 to 7; modified Denavit-Hartenberg parameters
# and limits of the manufacturer, masses as identified by Gaz et al. 2019. Links are capsules that touch nothing.
_PANDA = (
    (0.0, 0.333, 0, 4.97, (-166, 166)),
    (0.0, 0.0, -90, 0.65, (-101, 101)),
    (0.0, 0.316, 90, 3.23, (-166, 166)),
    (0.0825, 0.0, 90, 3.59, (-176, -4)),
    (-0.0825, 0.384, -90, 1.23, (-166, 166)),
    (0.0, 0.0, 90, 1.67, (-1, 215)),
    (0.088, 0.0, 90, 0.74, (-166, 166)),
)
_GHOST = 'contype="0" conaffinity="0"'
_HAND = f"""\
<body name="panda_hand" pos="0 0 0.107" euler="0 0 -45">
  <geom name="hand_box" type="box" size="0.03 0.1 0.035" pos="0 0 0.03" mass="0.73" {_GHOST}/>
  <body name="panda_leftfinger" pos="0 0 0.0584">
    <joint name="panda_finger_joint1" type="slide" axis="0 1 0" range="0 0.04" armature="0.1"/>
    <geom name="left_box" type="box" size="0.01 0.01 0.025" pos="0 0.01 0.025" mass="0.015" {_GHOST}/>
  </body>
  <body name="panda_rightfinger" pos="0 0 0.0584">
    <joint name="panda_finger_joint2" type="slide" axis="0 -1 0" range="0 0.04" armature="0.1"/>
    <geom name="right_box" type="box" size="0.01 0.01 0.025" pos="0 -0.01 0.025" mass="0.015" {_GHOST}/>
  </body>
</body>
"""


def _offset(link: int) -> tuple[float, float, float]:
    """Origin of a link in the frame of the one before; of the hand for 8."""
    if link > len(_PANDA):
        return 0.0, 0.0, 0.107
    a, d, alpha, *_ = _PANDA[link - 1]
    turn = math.radians(alpha)
    return a, -d * math.sin(turn), d * math.cos(turn)


def _text(numbers: tuple[float, ...]) -> str:
    return " ".join(f"{round(n, 6) + 0.0:g}" for n in numbers)


def _panda(link: int = 1) -> str:
    """Links from `link` on, one inside the other."""
    if link > len(_PANDA):
        return _HAND
    _, _, alpha, mass, (low, high) = _PANDA[link - 1]
    end = _offset(link + 1)
    if math.hypot(*end) < 0.05:
        end = (0.0, 0.0, -0.1)
    return f"""\
<body name="panda_link{link}" pos="{_text(_offset(link))}" euler="{alpha} 0 0">
  <joint name="panda_joint{link}" type="hinge" axis="0 0 1" range="{low} {high}" armature="0.1"/>
  <geom name="shell{link}" type="capsule" size="0.05" fromto="0 0 0 {_text(end)}" mass="{mass}" {_GHOST}/>
{_panda(link + 1)}</body>
"""


PANDA = f"""\
<mujoco model="panda">
  <compiler angle="degree"/>
  <worldbody>
    <body name="panda_link0">
      <geom name="base" type="cylinder" size="0.08 0.05" pos="0 0 0.05" mass="2" {_GHOST}/>
{_panda()}
    </body>
  </worldbody>
</mujoco>
"""
# Stiffness of the drives that the task expects in the file: N m / rad, N / m.
PANDA_STIFFNESS = {"panda_joint": 400.0, "panda_finger_joint1": 1000.0}

# The checked floor under every task: a mesh to look at and an endless plane to stand on.
GROUND_PLANE = """\
#usda 1.0
(
    defaultPrim = "World"
    metersPerUnit = 1
    upAxis = "Z"
)

def Xform "World"
{
    def Xform "Environment"
    {
        float3 xformOp:scale = (1, 1, 1)
        uniform token[] xformOpOrder = ["xformOp:scale"]

        def Mesh "Geometry"
        {
            int[] faceVertexCounts = [4]
            int[] faceVertexIndices = [0, 1, 2, 3]
            point3f[] points = [(-50, -50, 0), (50, -50, 0), (50, 50, 0), (-50, 50, 0)]
            texCoord2f[] primvars:st = [(-25, -25), (25, -25), (25, 25), (-25, 25)] (
                interpolation = "varying"
            )
        }
    }

    def Plane "CollisionPlane" (
        prepend apiSchemas = ["PhysicsCollisionAPI"]
    )
    {
        uniform token axis = "Z"
        uniform token purpose = "guide"
    }

    def Scope "Looks"
    {
        def Material "theGrid"
        {
            def Shader "Shader"
            {
                color3f inputs:diffuse_tint = (1, 1, 1)
            }
        }
    }
}
"""
