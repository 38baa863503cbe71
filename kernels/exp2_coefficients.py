"""Cubic polynomial for 2^x on [-1/2, 1/2], smallest largest relative error: `python -m kernels.exp2_coefficients`.

The exponential of the softmax runs on a special unit with few lanes; FlashAttention-4 computes part of it as a
polynomial on the ordinary ones. Cody-Waite: x = n + f with n = round(x), 2^x = 2^n * p(f), where the product with 2^n
is an integer addition to the exponent bits. The coefficients come from the Remez exchange below.
"""

import numpy as np

# c0 + c1 f + c2 f^2 + c3 f^3, rounded to float32. Printed by this file.
COEFFICIENTS = (0.9999280571937561, 0.6932609677314758, 0.2426111251115799, 0.0551716685295105)
MAX_RELATIVE_ERROR = 7.5e-5


def remez(degree: int = 3, rounds: int = 20) -> np.ndarray:
    """float64 coefficients (degree + 1), lowest first, of the polynomial whose relative error equi-oscillates."""
    n = degree + 2
    points = 0.5 * np.cos(np.pi * np.arange(n) / (n - 1))[::-1]  # Chebyshev extrema
    grid = np.linspace(-0.5, 0.5, 20001)
    coefficients = np.zeros(degree + 1)
    for _ in range(rounds):
        # p(x_i) = 2^x_i (1 + (-1)^i E), linear in the coefficients and E.
        target = 2.0**points
        matrix = np.column_stack([np.vander(points, degree + 1, increasing=True), -target * (-1.0) ** np.arange(n)])
        coefficients = np.linalg.solve(matrix, target)[:-1]
        error = np.polynomial.polynomial.polyval(grid, coefficients) / 2.0**grid - 1
        # New points: the largest error between neighbouring sign changes.
        pieces = np.split(np.arange(len(grid)), np.flatnonzero(np.sign(error[1:]) != np.sign(error[:-1])) + 1)
        points = np.array([grid[p[np.abs(error[p]).argmax()]] for p in pieces])
        assert len(points) == n, f"the error changes sign {len(points) - 1} times instead of {n - 1}"
    return coefficients


def relative_error(coefficients: tuple[float, ...] | np.ndarray) -> float:
    """Largest relative error of the float32 evaluation (Horner) over the float32 numbers of a fine grid."""
    f = np.linspace(-0.5, 0.5, 1_000_001).astype(np.float32)
    p = np.zeros_like(f)
    for c in reversed(np.asarray(coefficients, np.float32)):
        p = p * f + c
    return float(np.abs(p.astype(np.float64) / 2.0 ** f.astype(np.float64) - 1).max())


if __name__ == "__main__":
    found = remez().astype(np.float32)
    print("COEFFICIENTS =", tuple(float(c) for c in found))
    print(f"largest relative error in float32: {relative_error(found):.3e}")
