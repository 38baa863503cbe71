"""Our own robots, whether NVIDIA's server answers or not: what these tests expect is true of them."""

import importlib.util
import os

if importlib.util.find_spec("isaaclab") is not None:
    from rl.sims import isaaclab_assets

    # Here and not in a fixture: Isaac Lab reads it when the tests' files import it. Runs of their own inherit it.
    os.environ[isaaclab_assets.VARIABLE] = str(isaaclab_assets.offline_root())
