"""Scale-by-scale roll-out of the world model on top of the key/value cache: it feeds on its own tokens.

Letters: B batch, L tokens of a frame, M tokens predicted so far, C latent channels, P latent side, V codes, K scales.
"""

from dataclasses import dataclass
from enum import StrEnum

import torch
from torch import Tensor

from f1_vla.tokenizer import MultiScaleVQVAE
from f1_vla.trunk import KVCache, Trunk
from f1_vla.world_model import StepContext, WorldModel


class Decoding(StrEnum):
    greedy = "greedy"
    soft = "soft"  # feeds and accumulates the expected code instead of a drawn one; ids are the argmax
    sample = "sample"  # top-k, then top-p, as released


@dataclass(frozen=True)
class Sampling:
    decoding: Decoding = Decoding.greedy
    top_k: int = 900  # clamped to the vocabulary
    top_p: float = 0.95
    temperature: float = 1.0


@dataclass
class Foresight:
    """Result of a roll-out over the first R scales."""

    logits: Tensor  # float32 (B, M, V)
    ids: Tensor  # int64 (B, M)
    fhat: Tensor  # float32 (B, C, P, P) accumulated latent
    cache: KVCache  # und, gen prefix and the inputs of scales 2..R: what actions may see
    memory_features: Tensor  # (B, und + gen width) pooled prefix outputs, for the memory
    predicted_latent: Tensor | None = None  # (B, C, P, P) of the latent head


def draw_tokens(logits: Tensor, sampling: Sampling) -> Tensor:
    """(..., V) -> ids (...). Keeps logits not below the k-th, then the smallest set of mass above top_p, then draws."""
    if sampling.decoding is not Decoding.sample:
        return logits.argmax(-1)
    logits = logits / sampling.temperature
    k = min(sampling.top_k, logits.shape[-1])
    logits = logits.masked_fill(logits < logits.topk(k).values[..., -1:], -torch.inf)
    ascending, order = logits.sort(-1)
    drop = ascending.softmax(-1).cumsum(-1) <= 1 - sampling.top_p
    drop[..., -1] = False  # the largest always stays
    logits = logits.masked_fill(torch.zeros_like(drop).scatter(-1, order, drop), -torch.inf)
    flat = torch.multinomial(logits.softmax(-1).flatten(0, -2), 1)
    return flat.view(logits.shape[:-1])


def code_map(tokenizer: MultiScaleVQVAE, logits: Tensor, ids: Tensor, scale: int, decoding: Decoding) -> Tensor:
    """Codes of one scale as a map (B, C, p, p): the drawn ones, or their expectation when soft."""
    if decoding is not Decoding.soft:
        return tokenizer.quantize.embed(ids, scale)
    p = tokenizer.quantize.scales[scale]
    codes = logits.float().softmax(-1) @ tokenizer.quantize.embedding.weight
    return codes.transpose(1, 2).reshape(ids.shape[0], -1, p, p)


def roll_out(
    trunk: Trunk,
    world_model: WorldModel,
    tokenizer: MultiScaleVQVAE,
    cache: KVCache,
    last_hidden: Tensor,
    context: StepContext,
    num_scales: int,
    sampling: Sampling,
    memory_features: Tensor,
) -> Foresight:
    """Predicts scales 1..num_scales. `cache` holds und and the gen prefix; `last_hidden` is the output of its last
    token, the slot of scale 1. Tokens drawn at the last scale are not fed back; drawn ids cut the gradient.
    """
    wm, B = world_model, last_hidden.shape[0]
    hidden, var_inputs = last_hidden, last_hidden.new_zeros(B, 0, tokenizer.cfg.z_channels)
    all_logits: list[Tensor] = []
    all_ids: list[Tensor] = []
    fhat = torch.zeros(())
    for k in range(num_scales):
        logits = wm.head(hidden, var_inputs, wm.first_slot[k], context)
        ids = draw_tokens(logits.detach(), sampling)
        all_logits.append(logits)
        all_ids.append(ids)
        with torch.no_grad(), torch.autocast(logits.device.type, enabled=False):
            g = tokenizer.quantize.enlarge(code_map(tokenizer, logits, ids, k, sampling.decoding), k)
            fhat = g if k == 0 else fhat + g
            if k + 1 < num_scales:
                var_inputs = tokenizer.quantize.pool(fhat, k + 1).flatten(2).transpose(1, 2)
        if k + 1 < num_scales:
            first, count = wm.first_slot[k + 1], wm.scale_sizes[k + 1]
            x = wm.embed_slots(var_inputs, first, context.condition)
            if context.aligned is not None:
                x = x + context.aligned.features[:, first : first + count]
            positions = cache.valid.sum(1, keepdim=True) + torch.arange(count, device=x.device)
            valid = torch.ones(B, count, dtype=torch.bool, device=x.device)
            out, extended = trunk(
                {"gen": x}, positions, wm.slot_blocks(first, count)[None], valid, cache=cache, keep_cache=True
            )
            assert extended is not None
            hidden, cache = out["gen"], extended
    latent = None if context.aligned is None else context.aligned.latent
    return Foresight(torch.cat(all_logits, 1), torch.cat(all_ids, 1), fhat, cache, memory_features, latent)
