"""How updates are compiled, whatever the algorithm."""

from enum import StrEnum


class CompileMode(StrEnum):
    kernels = "kernels"  # fused kernels, launched one by one
    cuda_graphs = "cuda_graphs"  # the same, replayed as one CUDA graph: for GPUs that wait for launches
