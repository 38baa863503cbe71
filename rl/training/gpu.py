"""Which physical GPU a rank draws on. SAPIEN's Vulkan device does not follow CUDA_VISIBLE_DEVICES, other parts do."""

import os

RENDER_VARIABLES = ("VK_DEVICE_INDEX", "SAPIEN_DEVICE_INDEX", "EGL_DEVICE_ID")


def get_physical_gpu_id(accelerator: object | None = None) -> int | str:
    """Entry of CUDA_VISIBLE_DEVICES that belongs to this rank: a number, or the UUID (GPU-... or MIG-...) as text.

    The rank is `accelerator.local_process_index`, else LOCAL_RANK, else 0. Without CUDA_VISIBLE_DEVICES it is the rank
    itself. Raises ValueError when fewer devices are visible than ranks on this machine.
    """
    own = getattr(accelerator, "local_process_index", None)
    local_rank = int(os.environ.get("LOCAL_RANK", "0")) if own is None else int(own)
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        return local_rank
    devices = [d.strip() for d in visible.split(",") if d.strip()]
    if local_rank >= len(devices):
        raise ValueError(
            f"local rank {local_rank} has no GPU: CUDA_VISIBLE_DEVICES='{visible}' lists {len(devices)}; "
            "start fewer processes or make more devices visible"
        )
    return int(devices[local_rank]) if devices[local_rank].isdigit() else devices[local_rank]


def setup_sapien_gpu(gpu_id: int | str | None = None) -> None:
    """Sets the device variables that renderers read; call before SAPIEN is imported. Nothing to do on a CPU machine.

    What counts for SAPIEN 3 is the device the simulator is given, `cuda:<local index>`; EGL and Vulkan layers read
    these.
    """
    if gpu_id is None:
        if os.environ.get("CUDA_VISIBLE_DEVICES", "unset") == "" or not _cuda_available():
            return
        gpu_id = get_physical_gpu_id()
    for name in RENDER_VARIABLES:
        os.environ[name] = str(gpu_id)


def _cuda_available() -> bool:
    import torch  # late: this module is imported before anything heavy

    return torch.cuda.is_available()
