"""A flow-matching policy as a stochastic one whose chain of denoising steps has an exact likelihood.

Convention of f1_vla.flow: x_t = t * noise + (1 - t) * action, v = noise - action, t runs from 1 to 0 in K steps of size
d. With a_hat = x - v t and e_hat = x + v (1 - t), a stochastic step from t to s = t - d draws from a normal with

  Flow-SDE    mean = a_hat (1 - s) + e_hat (s - sigma^2 d / 2t), std = sigma sqrt(d), sigma = n sqrt(t / (1 - t))
              (Liu et al. 2025, Flow-GRPO; at t = 1 the denominator is taken at the next t). It has the marginals of the
              ODE and becomes the Euler step for n = 0.
  Flow-Noise  mean = x - v d, the Euler step, with a learned std (Zhang et al. 2025, ReinFlow).

Only the elements of `mask` are random, and only they enter the likelihood: executed actions, real dimensions. Padded
dimensions follow x_t = t * noise, the path of a padding of zeros that training showed to the network; other actions of
the chunk follow the ODE. What is drawn is stored; the likelihood of a stored chain is recomputed from its own x, so
with equal weights the ratio is 1. Everything is float32 or finer.

Letters: B batch, K denoise steps, J stochastic steps of a chain, Q actions of a chunk, A padded action dims.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from f1_vla.config import FlowKind, StochasticSteps

Velocity = Callable[[Tensor, Tensor], Tensor]  # x (B, Q, A), time (B,) -> v (B, Q, A) float32
LearnedStd = Callable[[Tensor], Tensor]  # time (B,) -> std (B, 1, A) float32


@dataclass(frozen=True)
class FlowProcess:
    """How chains are drawn."""

    kind: FlowKind
    num_steps: int  # K
    noise_level: float  # n of Flow-SDE
    stochastic: StochasticSteps

    def time(self, index_B: Tensor) -> Tensor:
        """float32 time of step `index`, 1 at index 0, 0 at index K."""
        return 1.0 - index_B.float() / self.num_steps


@dataclass
class Chain:
    """Stored denoising chains."""

    x: Tensor  # float32 (B, K + 1, Q, A), from noise to actions
    steps: Tensor  # int64 (B, J), which steps were drawn
    reference: Tensor | None = None  # float32 (B, J, 2, Q, A): mean and std of these steps under another policy

    @property
    def actions(self) -> Tensor:
        """(B, Q, A), as drawn: not clipped to the bounds."""
        return self.x[:, -1]

    def rows(self, index: Tensor | slice) -> "Chain":
        return Chain(self.x[index], self.steps[index], None if self.reference is None else self.reference[index])


def sde_moments(x: Tensor, v: Tensor, t: Tensor, d: float, noise_level: float) -> tuple[Tensor, Tensor]:
    """Mean (B, Q, A) and std (B, 1, 1) of the Flow-SDE step from t (B,) to t - d."""
    t = t[:, None, None]
    s = t - d
    # At t = 1 the exact sigma is infinite: the denominator of the next time stands in.
    sigma_square = noise_level**2 * t / torch.where(t > 1 - 0.5 * d, torch.full_like(t, d), 1 - t)
    a_hat, e_hat = x - v * t, x + v * (1 - t)
    mean = a_hat * (1 - s) + e_hat * (s - sigma_square * d / (2 * t))
    return mean, (sigma_square * d).sqrt()


def noise_moments(x: Tensor, v: Tensor, d: float, std: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and std of the Flow-Noise step: the Euler step and a learned std (B, 1, A)."""
    return x - v * d, std


def _moments(
    process: FlowProcess, x: Tensor, time_B: Tensor, velocity: Velocity, learned_std: LearnedStd | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Velocity, mean and std of one stochastic step."""
    v, d = velocity(x, time_B), 1.0 / process.num_steps
    if process.kind is FlowKind.sde:
        return (v, *sde_moments(x, v, time_B, d, process.noise_level))
    assert learned_std is not None, "Flow-Noise needs a noise head"
    return (v, *noise_moments(x, v, d, learned_std(time_B)))


def normal_log_prob(x: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """log N(x; mean, std^2), element by element."""
    return -0.5 * ((x - mean) / std).square() - std.log() - 0.5 * math.log(2 * math.pi)


Moments = list[tuple[Tensor, Tensor]]  # mean (B, Q, A) and std (B, 1, 1 or A) of each drawn step


def chain_moments(
    process: FlowProcess, chain: Chain, velocity: Velocity, learned_std: LearnedStd | None = None
) -> Moments:
    """Of the drawn steps of stored chains under the current network, one network pass each."""
    rows = torch.arange(chain.x.shape[0], device=chain.x.device)
    found = []
    for index in chain.steps.unbind(1):
        _, mean, std = _moments(process, chain.x[rows, index], process.time(index), velocity, learned_std)
        found.append((mean, std))
    return found


def likelihood_of(chain: Chain, moments: Moments, mask_QA: Tensor) -> tuple[Tensor, Tensor]:
    """Log-probability (B,) of stored chains whose drawn steps have these moments, and the entropy (B,) of the steps.

    Both are sums over drawn steps and the elements of mask_QA (bool (Q, A)). The initial noise is not counted: its
    density does not depend on the network.
    """
    log_prob = entropy = torch.zeros(chain.x.shape[0], device=chain.x.device)
    rows = torch.arange(chain.x.shape[0], device=chain.x.device)
    for index, (mean, std) in zip(chain.steps.unbind(1), moments, strict=True):
        after = chain.x[rows, index + 1]
        log_prob = log_prob + (normal_log_prob(after, mean, std) * mask_QA).sum((1, 2))
        spread = (std.log() + 0.5 * math.log(2 * math.pi * math.e)).expand_as(mean)
        entropy = entropy + (spread * mask_QA).sum((1, 2))
    return log_prob, entropy


def chain_likelihood(
    process: FlowProcess, chain: Chain, mask_QA: Tensor, velocity: Velocity, learned_std: LearnedStd | None = None
) -> tuple[Tensor, Tensor]:
    """Log-probability and entropy (B,) of stored chains under the current network; see `likelihood_of`."""
    return likelihood_of(chain, chain_moments(process, chain, velocity, learned_std), mask_QA)


def chain_kl(moments: Moments, reference_BJ2QA: Tensor, mask_QA: Tensor) -> Tensor:
    """(B,) sum over drawn steps of KL(step || the same step of the reference), in nats, each at its stored x.

    Normal distributions in closed form: for equal stds |mean - mean_ref|^2 / (2 std^2).
    """
    total = torch.zeros(reference_BJ2QA.shape[0], device=reference_BJ2QA.device)
    for (mean, std), reference in zip(moments, reference_BJ2QA.unbind(1), strict=True):
        there, spread = reference.unbind(1)
        ratio = std / spread
        kl = 0.5 * (((mean - there) / spread).square() + ratio.square() - 1) - ratio.log()
        total = total + (kl * mask_QA).sum((1, 2))
    return total


def stacked(moments: Moments) -> Tensor:
    """As `Chain.reference` stores them: (B, J, 2, Q, A)."""
    return torch.stack([torch.stack([mean, std.expand_as(mean)], 1) for mean, std in moments], 1)


@torch.no_grad()
def sample_chain(
    process: FlowProcess, noise_BKQA: Tensor, steps_BJ: Tensor, mask_QA: Tensor, real_A: Tensor,
    velocity: Velocity, learned_std: LearnedStd | None = None,
) -> tuple[Chain, Tensor]:  # fmt: skip
    """Draws chains, and their log-probability (B,) as `chain_likelihood` defines it.

    noise_BKQA float32 (B, K + 1, Q, A), standard normal: row 0 is x at t = 1, row i + 1 serves step i. steps_BJ: which
    steps are stochastic (see `draw_noise`); real_A bool (A,): False for padding.
    """
    x, d = noise_BKQA[:, 0], 1.0 / process.num_steps
    start, xs, log_prob = x, [x], x.new_zeros(len(x))
    for i in range(process.num_steps):
        index = torch.full((x.shape[0],), i, device=x.device)
        v, mean, std = _moments(process, x, process.time(index), velocity, learned_std)
        drawn = (steps_BJ == i).any(1)[:, None, None] & mask_QA
        x = torch.where(drawn, mean + std * noise_BKQA[:, i + 1], x - v * d)
        x = torch.where(real_A, x, start * process.time(index + 1)[:, None, None])
        log_prob = log_prob + (normal_log_prob(x, mean, std) * drawn).sum((1, 2))
        xs.append(x)
    return Chain(torch.stack(xs, 1), steps_BJ), log_prob


def draw_noise(
    process: FlowProcess, batch_size: int, chunk: int, action_dim: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """What `sample_chain` consumes: noise (B, K + 1, Q, A) and the stochastic steps (B, J), on the CPU."""
    K = process.num_steps
    noise = torch.randn(batch_size, K + 1, chunk, action_dim, generator=generator)
    if process.stochastic is StochasticSteps.all:
        return noise, torch.arange(K).expand(batch_size, K)
    return noise, torch.randint(K, (batch_size, 1), generator=generator)
