"""Next-scale token world model: embeddings of history and scales, output head, losses. The trunk runs elsewhere.

Letters: B batch (or batch x time), O history frames, L tokens of a frame, C latent channels, d width of the gen expert,
V codes, K scales, M any number of output slots. Slot i of L predicts token i; slot 0 is the last history token.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from f1_vla.config import F1Config, HeadLoss, WorldModelConfig
from f1_vla.ensemble import make_ensemble
from f1_vla.latent_head import Aligned, LatentHead

FUSED_ROWS = 2048  # rows of logits held at a time for the accuracy beside `fused_nll`


@dataclass
class StepContext:
    """Per-sample quantities that every scale of one frame shares."""

    condition: Tensor | None = None  # (B, d) action and state conditioning, added to every gen token
    aligned: Aligned | None = None
    codebook: Tensor | None = None  # (V, C), needed with `aligned`


class Conditioning(nn.Module):
    """Actions (with known and history bits) and state -> one vector a sample, zero until trained."""

    def __init__(self, in_features: int, width: int) -> None:
        super().__init__()
        self.hidden = nn.Linear(in_features, width)
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(F.silu(self.hidden(x)))


def make_additions(cfg: F1Config) -> tuple[Conditioning | None, LatentHead | None]:
    """What the published world model lacks, with initial weights; None where it is switched off."""
    w, tok, width = cfg.world_model, cfg.tokenizer, cfg.trunk.gen.hidden_size
    features = w.action_conditioning * cfg.n_obs_img_steps * (cfg.max_action_dim + 2)
    features += w.state_conditioning * cfg.max_state_dim
    condition = Conditioning(features, width) if features else None
    if not w.latent_head:
        return condition, None
    head = LatentHead(
        channels=tok.z_channels,
        num_obs=cfg.n_obs_img_steps,
        side=tok.scales[-1],
        cond_dim=features,
        memory_dim=cfg.memory.memory_hidden,
        width=w.latent_head_width,
        blocks=w.latent_head_blocks,
        trunk_width=width,
        scales=tok.scales,
        logit_scale=w.latent_head_logit_scale,
    )
    return condition, head


class WorldModel(nn.Module):
    mask_embedding: Tensor  # (1, 1, C), a buffer: never trained
    level_of_slot: Tensor  # int64 (L,)

    def __init__(self, cfg: F1Config) -> None:
        super().__init__()
        tok, width = cfg.tokenizer, cfg.trunk.gen.hidden_size
        L, C, K, O = tok.num_tokens, tok.z_channels, len(tok.scales), cfg.n_obs_img_steps  # noqa: E741
        self.cfg = cfg
        self.scale_sizes = [p * p for p in tok.scales]
        self.first_slot = [sum(self.scale_sizes[:k]) for k in range(K)]
        self.num_tokens = L
        self.temporal_conv = nn.Conv1d(C, C, O, stride=cfg.world_model.temporal_conv_stride)
        self.embed = nn.Linear(C, width)
        self.sos = nn.Parameter(torch.empty(1, 1, width))
        self.history_position = nn.Parameter(torch.empty(1, L - 1, C))
        self.condition_position = nn.Parameter(torch.empty(1, L, width))
        self.output_position = nn.Parameter(torch.empty(1, L, width))
        self.level = nn.Embedding(K, width)
        self.out_norm = nn.LayerNorm(width, eps=1e-5)
        self.out_proj = nn.Linear(width, tok.vocab_size)
        self.register_buffer("mask_embedding", torch.empty(1, 1, C))
        self.register_buffer("level_of_slot", torch.tensor(self.slot_levels()), persistent=False)
        self.condition, self.latent_head = make_additions(cfg)
        self.ensemble = make_ensemble(cfg)

    def slot_levels(self) -> list[int]:
        """Scale (from 0) of every output slot."""
        return [k for k, size in enumerate(self.scale_sizes) for _ in range(size)]

    def condition_inputs(self, actions: Tensor, known: Tensor, history_mask: Tensor, state: Tensor) -> Tensor:
        """(B, O, A), (B, O), (B, O), (B, S) -> (B, X), what the conditioning reads. Unknown actions are zeroed."""
        parts = [state[:, :0]]
        if self.cfg.world_model.action_conditioning:
            bits = torch.stack([known, history_mask], -1).to(actions.dtype)
            parts.append(torch.cat([actions * known[..., None], bits], -1).flatten(1))
        if self.cfg.world_model.state_conditioning:
            parts.append(state)
        return torch.cat(parts, -1)

    def embed_prefix(self, history_var_BOLC: Tensor, condition_Bd: Tensor | None) -> Tensor:
        """Next-scale inputs of the O history frames (B, O, L-1, C) -> gen prefix (B, L, d), memory not yet added."""
        B = history_var_BOLC.shape[0]
        # kernel == stride == O: the convolution over time is one linear map of the stacked frames.
        stacked = history_var_BOLC.permute(0, 2, 3, 1).flatten(2)
        h = F.linear(stacked, self.temporal_conv.weight.flatten(1), self.temporal_conv.bias)
        h = self.embed(h + self.history_position)
        x = torch.cat([self.sos.expand(B, -1, -1).to(h.dtype), h], 1) + self.condition_position
        slot0 = self.output_position[:, :1] + self.level.weight[0]
        x = torch.cat([x[:, :-1], x[:, -1:] + slot0], 1)
        return x if condition_Bd is None else x + condition_Bd[:, None]

    def memory_shift(self, read_B: Tensor) -> Tensor:
        """What the memory adds to every embedded history vector: (B, C) before or (B, d) after W_emb -> (B, 1, d)."""
        if self.cfg.memory.memory_project_to_vae_dim:
            read_B = F.linear(read_B, self.embed.weight)  # W_emb is linear, so adding after it is the same
        return read_B[:, None]

    def embed_slots(self, var_inputs_BMC: Tensor, first_slot: int, condition_Bd: Tensor | None) -> Tensor:
        """Next-scale inputs of slots first_slot .. first_slot+M-1 -> gen tokens (B, M, d), without aligned features."""
        slots = slice(first_slot, first_slot + var_inputs_BMC.shape[1])
        table = self.output_position[:, slots] + self.level(self.level_of_slot[slots])
        x = self.embed(var_inputs_BMC) + table
        return x if condition_Bd is None else x + condition_Bd[:, None]

    def corrupt(self, target_var_BMC: Tensor) -> Tensor:
        """Replaces some teacher-forced inputs by `mask_embedding`, while training only."""
        w = self.cfg.world_model
        if not self.training or w.mask_sample_prob * w.mask_token_prob == 0:
            return target_var_BMC
        B, M, _ = target_var_BMC.shape
        sample = torch.rand(B, 1, 1, device=target_var_BMC.device) < w.mask_sample_prob
        token = torch.rand(B, M, 1, device=target_var_BMC.device) < w.mask_token_prob
        return torch.where(sample & token, self.mask_embedding, target_var_BMC)

    def prefix_blocks(self) -> Tensor:
        """int32 (L,): block 0, except the slot of scale 1."""
        block = torch.zeros(self.num_tokens, dtype=torch.int32, device=self.level_of_slot.device)
        block[-1] = 1
        return block

    def slot_blocks(self, first_slot: int, count: int) -> Tensor:
        """int32 (count,): scale k (from 1) is block k."""
        return (self.level_of_slot[first_slot : first_slot + count] + 1).to(torch.int32)

    def head(self, hidden_BMd: Tensor, var_inputs_BMC: Tensor, first_slot: int, context: StepContext) -> Tensor:
        """Outputs of the gen expert at slots first_slot.. -> float32 logits (B, M, V).

        var_inputs_BMC: next-scale inputs at these slots, slot 0 (which has none) left out.
        """
        logits = self.out_proj(self.out_norm(hidden_BMd.float())).float()
        if context.aligned is None:
            return logits
        assert self.latent_head is not None and context.codebook is not None
        scale = self.first_slot.index(first_slot)
        return logits + self.latent_head.logit_prior(
            context.aligned.latent.detach(), var_inputs_BMC, context.codebook, scale
        )


def token_nll(logits_BMV: Tensor, target_BM: Tensor) -> Tensor:
    """Cross entropy of every token (B, M), float32."""
    return F.cross_entropy(logits_BMV.flatten(0, 1).float(), target_BM.flatten(), reduction="none").view(
        target_BM.shape
    )


def use_fused(cfg: WorldModelConfig) -> bool:
    """Whether `fused_nll` computes the loss. ValueError when it is asked for and this PyTorch lacks it."""
    there = hasattr(F, "linear_cross_entropy")
    if cfg.head_loss is HeadLoss.fused and not there:
        raise ValueError(
            f"world_model.head_loss=fused needs torch 2.13 or newer, this is {torch.__version__}; use auto or plain"
        )
    return there and not cfg.latent_head and cfg.head_loss is not HeadLoss.plain


def fused_nll(wm: WorldModel, hidden_NMd: Tensor, target_NM: Tensor) -> tuple[Tensor, Tensor]:
    """(cross entropy float32, whether the likeliest token is the target, detached), both (N, M), a chunk of rows at a
    time: the logits, V numbers a token, are computed again in the backward pass instead of kept. float32 throughout."""
    with torch.autocast(hidden_NMd.device.type, enabled=False):
        x, target = wm.out_norm(hidden_NMd.float()).flatten(0, 1), target_NM.flatten()
        weight, bias = wm.out_proj.weight, wm.out_proj.bias
        options = torch.nn.LinearCrossEntropyOptions()
        nll = F.linear_cross_entropy(x, weight, target, linear_bias=bias, reduction="none", options=options)
        with torch.no_grad():
            likeliest = [F.linear(rows, weight, bias).argmax(-1) for rows in x.split(FUSED_ROWS)]
    return nll.view(target_NM.shape), torch.cat(likeliest).view(target_NM.shape) == target_NM


def tail_accuracy(correct_BM: Tensor, num_scales: int) -> Tensor:
    """Share of hits over the last num_scales ** 2 tokens (the published metric squares the number, not a side)."""
    return correct_BM[:, -(num_scales**2) :].float().mean()
