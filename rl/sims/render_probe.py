"""Draws one small test frame with SAPIEN: `python -m rl.sims.render_probe FILE.png`, run by the set-up and by doctor.

A program of its own because a broken Vulkan driver may hang or crash the process that tries it. Prints a line of
JSON: {"device": name, "spread": standard deviation of the picture in 0..255}.
"""

import json
import sys
from pathlib import Path

SIZE = 64  # px
MIN_SPREAD = 5.0  # of 255: a red box before a grey background spreads far more, an empty picture not at all


def draw(path: Path) -> tuple[str, float]:
    """Writes a PNG of a lit box; (device name, spread). Raises RuntimeError when no Vulkan device can draw."""
    import imageio.v3 as iio
    import numpy as np
    import sapien

    sapien.render.set_log_level("off")
    sapien.render.set_camera_shader_dir("minimal")  # compiles faster than the default
    complaints = []
    for name in ("cuda", "cpu"):
        try:
            render_system = sapien.render.RenderSystem(sapien.Device(name))
            break
        except RuntimeError as e:
            complaints.append(f"{name}: {e}")
    else:
        raise RuntimeError("; ".join(complaints))
    scene = sapien.Scene([render_system, sapien.physx.PhysxCpuSystem()])
    scene.set_ambient_light([0.4, 0.4, 0.4])
    scene.add_directional_light([-1, 0.5, -1], [1, 1, 1])
    box = scene.create_actor_builder()
    box.add_box_visual(half_size=[0.3, 0.3, 0.3], material=sapien.render.RenderMaterial(base_color=[0.8, 0.2, 0.1, 1]))
    box.set_initial_pose(sapien.Pose([1.5, 0, 0], [0.9, 0.1, 0.2, 0.4]))
    box.build_static(name="box")
    camera = scene.add_camera("probe", SIZE, SIZE, fovy=1.0, near=0.01, far=10)
    scene.update_render()
    camera.take_picture()
    rgb = (np.clip(camera.get_picture("Color")[..., :3], 0, 1) * 255).astype(np.uint8)
    iio.imwrite(path, rgb)
    return name, float(rgb.std())


def main() -> int:
    try:
        device, spread = draw(Path(sys.argv[1]))
    except (RuntimeError, ImportError, OSError) as e:
        print(f"{type(e).__name__}: {e}", file=sys.stderr)
        return 1
    print(json.dumps({"device": device, "spread": round(spread, 2)}))
    if spread < MIN_SPREAD:
        print(f"the test picture on {device} is blank (spread {spread:.2f} of 255)", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
