"""SAPIEN's `minimal` camera shader without its environment map, which no scene here has.

Pictures are the same to the last bit. But the table for environment reflections costs 6 s at a process's first
picture on a CPU, and looking up the (black) map in every pixel costs a third of the drawing time from 128 px on.
"""

import re
import shutil
from pathlib import Path

import sapien

from rl.sims.asset_cache import build_once

VERSION = 1  # raise it when what is generated changes
# Pattern -> replacement, each found exactly once.
EDITS = {
    "gbuffer.frag": {
        r"layout\(set = 3, binding = 7\) uniform samplerCube samplerEnvironment;\n": "",
        r"layout\(set = 3, binding = 8\) uniform sampler2D samplerBRDFLUT;\n": "",
        r"vec3 getBackgroundColor\(.*?\n}\n": "",
        r"vec3 diffuseIBL\(.*?\n}\n": "",
        r"vec3 specularIBL\(.*?\n}\n": "",
        r"  color \+= diffuseIBL\(.*?;\n": "",
        r"  color \+= specularIBL\(.*?;\n": "",
    },
    "composite0.frag": {
        r"layout\(set = 2, binding = 7\) uniform samplerCube samplerEnvironment;\n": "",
        r"layout\(set = 2, binding = 8\) uniform sampler2D samplerBRDFLUT;\n": "",
        r"vec3 getBackgroundColor\(.*?\n}\n": "",
        r"  vec3 bg = pow\(getBackgroundColor.*?;\n": "  vec3 bg = vec3(0);\n",
    },
}


def camera_shader_directory() -> Path:
    """Directory for `sapien.render.set_camera_shader_dir`, generated on first use from the installed SAPIEN.

    Raises ValueError when that SAPIEN's shader is not the known one.
    """
    return build_once(f"shaders_sapien_{sapien.__version__}_v{VERSION}", _fill) / "minimal"


def _fill(directory: Path) -> None:
    source = Path(sapien.__file__).parent / "vulkan_shader"
    for part in ("minimal", "common"):
        shutil.copytree(source / part, directory / part)
    for name, edits in EDITS.items():
        path = directory / "minimal" / name
        text = path.read_text(encoding="utf-8")
        for pattern, replacement in edits.items():
            text, count = re.subn(pattern, replacement, text, flags=re.DOTALL)
            if count != 1:
                raise ValueError(
                    f"{source / 'minimal' / name} of SAPIEN {sapien.__version__} is not the shader this project knows: "
                    "install the pinned version with `bash setup.sh`"
                )
        path.write_text(text, encoding="utf-8")
