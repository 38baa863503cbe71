"""A screen on the table that shows fresh noise at every step: nothing to learn there, much to be wrong about.

Curiosity that rewards prediction error stays in front of it (the "noisy TV" of Burda et al. 2019).
"""

import numpy as np
import numpy.typing as npt
import sapien
from sapien.render import RenderBodyComponent, RenderMaterial, RenderShapeBox, RenderTexture2D

from rl.sims.textures import to_rgba

NAME = "noisy_screen"
# It lies flat in the left half of the arm's workspace: about a quarter of the first view of the wrist camera, which
# looks down, and most of it after the first joint has turned by 0.6 rad.
CENTER = (0.40, 0.36, 0.001)  # m
HALF_SIZE = (0.40, 0.30, 0.001)  # m
CELLS = 24  # per side; each has a colour of its own
TEXTURE_SIZE = 96  # px


class NoisyScreen:
    """Visible only: objects stand on the table under it, which is 2 mm lower."""

    def __init__(self, scene: sapien.Scene) -> None:
        self._texture = RenderTexture2D(self._picture(np.zeros((CELLS, CELLS, 3))), format="R8G8B8A8Unorm")
        material = RenderMaterial(roughness=1.0, specular=0.0)
        material.base_color_texture = self._texture
        body = RenderBodyComponent()
        body.attach(RenderShapeBox(list(HALF_SIZE), material))
        entity = sapien.Entity()
        entity.name = NAME
        entity.add_component(body)
        entity.pose = sapien.Pose(list(CENTER))
        scene.add_entity(entity)

    def refresh(self, rng: np.random.Generator) -> None:
        """Shows the next picture of the stream, from the next `update_render` on."""
        self._texture.upload(self._picture(rng.uniform(0.0, 1.0, (CELLS, CELLS, 3))))

    @staticmethod
    def _picture(colors_CC3: npt.NDArray[np.float64]) -> npt.NDArray[np.uint8]:
        """(TEXTURE_SIZE, TEXTURE_SIZE, 4) uint8 of one sRGB colour a cell."""
        rows = np.repeat(colors_CC3, TEXTURE_SIZE // CELLS, 0)
        return np.ascontiguousarray(to_rgba(np.repeat(rows, TEXTURE_SIZE // CELLS, 1)))
