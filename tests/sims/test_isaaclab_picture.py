"""The picture's part that needs no Isaac Lab; tests/isaaclab draws real robots."""

from types import SimpleNamespace

import numpy as np
import torch

from rl.sims.isaaclab_picture import poses


def test_both_generations_of_isaac_lab_are_read_alike() -> None:
    places = torch.tensor([[[1.0, 2.0, 3.0]], [[9.0, 9.0, 9.0]]])
    xyzw = torch.tensor([[[0.1, 0.2, 0.3, 0.5]], [[9.0, 9.0, 9.0, 9.0]]])
    wxyz = torch.tensor([[[0.5, 0.1, 0.2, 0.3]], [[9.0, 9.0, 9.0, 9.0]]])
    now = SimpleNamespace(body_pos_w=SimpleNamespace(torch=places), body_quat_w=SimpleNamespace(torch=xyzw))
    before_3 = SimpleNamespace(body_pos_w=places, body_quat_w=wxyz)
    for data in (now, before_3):
        found = poses(data)
        np.testing.assert_allclose(found[0], [[1.0, 2.0, 3.0]])
        np.testing.assert_allclose(found[1], [[0.1, 0.2, 0.3, 0.5]], rtol=1e-6)
