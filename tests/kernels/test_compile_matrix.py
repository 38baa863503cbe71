"""The tile table: every kernel compiles for its architecture, fits its shared memory and spills no more than it may."""

import numpy as np
import pytest

from kernels import exp2_coefficients
from kernels.triton_tiles import KINDS, SHARED_LIMIT, SPILL_LIMIT, Options, tile_for


@pytest.mark.parametrize("arch", sorted(SHARED_LIMIT))
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("head_dim", [256, *(pytest.param(d, marks=pytest.mark.slow) for d in (32, 64, 128))])
def test_kernel_compiles_fits_and_does_not_spill(arch, kind, head_dim):
    from kernels.compile_matrix import compile_kernel

    found = compile_kernel(kind, arch, head_dim)
    assert found.shared <= SHARED_LIMIT[arch]
    assert found.spilled <= SPILL_LIMIT.get((arch, head_dim, kind), 0)
    assert found.wgmma == (arch == 90)


def test_polynomial_exponential_compiles_without_spilling():
    from kernels.compile_matrix import compile_kernel

    assert compile_kernel("forward", 89, 256, options=Options(poly_exp2=True)).spilled == 0


def test_other_architectures_take_the_table_of_their_generation_and_float32_smaller_tiles():
    assert tile_for("forward", 86, 256, 2) == tile_for("forward", 89, 256, 2)
    assert tile_for("forward", 100, 256, 2) == tile_for("forward", 90, 256, 2)
    assert tile_for("forward", 90, 72, 2) == tile_for("forward", 90, 128, 2)
    assert tile_for("forward", 90, 256, 4).n == 16


def test_polynomial_coefficients_are_what_the_script_computes_and_keep_the_stated_error():
    np.testing.assert_array_equal(
        exp2_coefficients.remez().astype(np.float32), np.float32(exp2_coefficients.COEFFICIENTS)
    )
    error = exp2_coefficients.relative_error(exp2_coefficients.COEFFICIENTS)
    assert 7e-5 < error <= exp2_coefficients.MAX_RELATIVE_ERROR < 1e-4
