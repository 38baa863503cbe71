"""The published formulation of F1-VLA, for comparison: eager attention with repeated key/value heads under dense masks,
scale after scale with concatenated caches, pictures encoded again at every step. Plain tensors and the released names;
it shares its weights (and only the tokenizer's code) with the policy it is made from, so gradients land there, too.

Letters: B batch, T frames, N cameras, L tokens of a frame, C latent channels, d width, H heads, G key/value heads,
D head size, Q actions of a chunk.
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from f1_vla import weights
from f1_vla.policy import F1Policy

PREFIX = "model.paligemma_with_expert."
PALI = PREFIX + "paligemma."
EXPERTS = {
    "und": PALI + "language_model.model.",
    "gen": PREFIX + "gemma_wm_expert.model.",
    "act": PREFIX + "gemma_expert.model.",
}
MASKED = -2.3819763e38
Cache = list[tuple[Tensor, Tensor]]


@dataclass
class Inputs:
    """One step as the public code takes it."""

    images: list[Tensor]  # cameras, (B, 3, S, S) in [-1, 1]
    image_masks: list[Tensor]  # bool (B,)
    lang_tokens: Tensor  # (B, Lt)
    lang_masks: Tensor
    frames: Tensor  # (B, T, 3, H, W) in [-1, 1]: history, then the target
    state: Tensor  # (B, S), padded
    shift: Tensor | None = None  # (B, C): what our memory adds to the history vectors


def rms_norm(x: Tensor, w: Tensor) -> Tensor:
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6) * (1 + w)


def dense_mask(valid: Tensor, flags: Tensor) -> Tensor:
    """Validity (B, L) and block flags (B, L) -> bool (B, L, L)."""
    c = flags.cumsum(1)
    return (c[:, None, :] <= c[:, :, None]) & valid[:, None, :] & valid[:, :, None]


def rope(x: Tensor, positions: Tensor) -> Tensor:
    """x (B, L, H, D), positions (B, L)."""
    half = x.shape[-1] // 2
    frequency = 10000 ** (-2 * torch.arange(half, dtype=torch.float32) / x.shape[-1])
    angle = positions[..., None].float() * frequency
    sin, cos = angle.sin()[:, :, None], angle.cos()[:, :, None]
    a, b = x.split(half, -1)
    return torch.cat([a * cos - b * sin, b * cos + a * sin], -1)


class PublishedF1:
    def __init__(self, policy: F1Policy) -> None:
        self.cfg, self.tokenizer = policy.cfg, policy.tokenizer
        own = policy.state_dict(keep_vars=True)
        self.w = {names[0]: t for n, t in own.items() if (names := weights.released_names(n))}
        self.sizes = [p * p for p in self.cfg.tokenizer.scales]

    def linear(self, x: Tensor, name: str) -> Tensor:
        return F.linear(x, self.w[name + ".weight"], self.w.get(name + ".bias"))

    # --- trunk --------------------------------------------------------------------------------------------------------

    def trunk(
        self, streams: dict[str, Tensor], mask: Tensor, positions: Tensor, cache: Cache | None = None
    ) -> tuple[dict[str, Tensor], Cache]:
        t = self.cfg.trunk
        xs, new = dict(streams), []
        for i in range(t.num_layers):
            q, k, v = [], [], []
            for s, x in xs.items():
                p = f"{EXPERTS[s]}layers.{i}."
                n = rms_norm(x, self.w[p + "input_layernorm.weight"])
                for parts, name in ((q, "q"), (k, "k"), (v, "v")):
                    y = self.linear(n, f"{p}self_attn.{name}_proj")
                    parts.append(y.view(*y.shape[:2], -1, t.head_dim))
            qs, ks, vs = rope(torch.cat(q, 1), positions), rope(torch.cat(k, 1), positions), torch.cat(v, 1)
            if cache is not None:
                ks, vs = torch.cat([cache[i][0], ks], 1), torch.cat([cache[i][1], vs], 1)
            new.append((ks, vs))
            group = t.num_heads // t.num_kv_heads
            ke, ve = ks.repeat_interleave(group, 2), vs.repeat_interleave(group, 2)
            scores = torch.einsum("bqhd,bkhd->bhqk", qs, ke) * t.head_dim**-0.5
            probs = torch.where(mask[:, None], scores, MASKED).softmax(-1)
            o = torch.einsum("bhqk,bkhd->bqhd", probs, ve).flatten(2)
            start = 0
            for s, x in list(xs.items()):
                p = f"{EXPERTS[s]}layers.{i}."
                y = x + self.linear(o[:, start : start + x.shape[1]], p + "self_attn.o_proj")
                m = rms_norm(y, self.w[p + "post_attention_layernorm.weight"])
                gate = F.gelu(self.linear(m, p + "mlp.gate_proj"), approximate="tanh")
                xs[s] = y + self.linear(gate * self.linear(m, p + "mlp.up_proj"), p + "mlp.down_proj")
                start += x.shape[1]
        return {s: rms_norm(x, self.w[EXPERTS[s] + "norm.weight"]) for s, x in xs.items()}, new

    # --- inputs of the streams ----------------------------------------------------------------------------------------

    def siglip(self, images: Tensor) -> Tensor:
        v, p = self.cfg.vision, PALI + "vision_tower.vision_model."
        e = p + "embeddings."
        x = F.conv2d(images, self.w[e + "patch_embedding.weight"], self.w[e + "patch_embedding.bias"], v.patch_size)
        x = x.flatten(2).transpose(1, 2) + self.w[e + "position_embedding.weight"]
        for i in range(v.num_layers):
            b = f"{p}encoder.layers.{i}."
            n = self.layer_norm(x, b + "layer_norm1", 1e-6)
            q, k, u = (
                self.linear(n, f"{b}self_attn.{s}_proj").unflatten(-1, (v.num_heads, -1)).transpose(1, 2) for s in "qkv"
            )
            probs = (q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5).softmax(-1)
            x = x + self.linear((probs @ u).transpose(1, 2).flatten(2), b + "self_attn.out_proj")
            n = self.layer_norm(x, b + "layer_norm2", 1e-6)
            x = x + self.linear(F.gelu(self.linear(n, b + "mlp.fc1"), approximate="tanh"), b + "mlp.fc2")
        return self.layer_norm(x, p + "post_layernorm", 1e-6)

    def layer_norm(self, x: Tensor, name: str, eps: float) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], self.w[name + ".weight"], self.w[name + ".bias"], eps)

    def und_inputs(self, x: Inputs) -> tuple[Tensor, Tensor]:
        tokens, valid = [], []
        for image, mask in zip(x.images, x.image_masks, strict=True):
            tokens.append(self.linear(self.siglip(image), PALI + "multi_modal_projector.linear"))
            valid.append(mask[:, None].expand(-1, tokens[-1].shape[1]))
        table = self.w[PALI + "language_model.lm_head.weight"]
        tokens.append(F.embedding(x.lang_tokens, table) * math.sqrt(table.shape[1]))
        valid.append(x.lang_masks)
        return torch.cat(tokens, 1), torch.cat(valid, 1)

    @torch.no_grad()
    def encode(self, frames: Tensor) -> tuple[Tensor, Tensor]:
        """Frames (B, T, 3, H, W) -> token ids (B, T, L) and next-scale inputs (B, T, L-1, C)."""
        ids = self.tokenizer.img_to_ids(frames.flatten(0, 1))
        return ids.unflatten(0, frames.shape[:2]), self.tokenizer.ids_to_var_input(ids).unflatten(0, frames.shape[:2])

    def embed(self, x: Tensor) -> Tensor:
        return self.linear(x, "model.wm_embeddings")

    def slot_table(self) -> Tensor:
        """Positions and levels of the L output slots (L, d)."""
        level = torch.repeat_interleave(torch.arange(len(self.sizes)), torch.tensor(self.sizes))
        return self.w["model.wm_output_position_embedding"][0] + self.w["model.lvl_embed.weight"][level]

    def gen_prefix(self, history_var: Tensor, shift: Tensor | None) -> Tensor:
        """(B, O, L-1, C) -> (B, L, d)."""
        B, _, n, _ = history_var.shape
        series = history_var.permute(0, 2, 3, 1).flatten(0, 1)  # (B * (L-1), C, O)
        kernel, name = self.cfg.world_model.temporal_conv_stride, "model.temporal_conv.conv"
        h = F.conv1d(series, self.w[name + ".weight"], self.w[name + ".bias"], stride=kernel)[..., 0].view(B, n, -1)
        h = h + self.w["model.wm_hist_pos_embs"]
        if shift is not None:
            h = h + shift[:, None]
        x = torch.cat([self.w["model.wm_sos_token_embs"].expand(B, -1, -1), self.embed(h)], 1)
        x = x + self.w["model.wm_cond_pos_embs"]
        table = torch.cat([torch.zeros_like(self.slot_table())[1:], self.slot_table()])
        return x + table[: x.shape[1]]

    def gen_flags(self, B: int, resolutions: int) -> Tensor:
        flags = [0] * (sum(self.sizes) - 1)
        for n in self.sizes[:resolutions]:
            flags += [1] + [0] * (n - 1)
        return torch.tensor(flags).expand(B, -1)

    def head(self, x: Tensor) -> Tensor:
        return self.linear(self.layer_norm(x, "model.wm_out_layer_norm", 1e-5), "model.wm_out_proj")

    # --- paths --------------------------------------------------------------------------------------------------------

    def teacher_forced(self, x: Inputs) -> dict[str, Tensor]:
        """All scales, target frame given. Memory reads: outputs of und (masked mean) and of the gen prefix."""
        ids, var = self.encode(x.frames)
        O, L = self.cfg.n_obs_img_steps, sum(self.sizes)  # noqa: E741
        und, und_valid = self.und_inputs(x)
        forced = self.embed(var[:, O]) + self.slot_table()[1:]
        gen = torch.cat([self.gen_prefix(var[:, :O], x.shift), forced], 1)
        valid = torch.cat([und_valid, torch.ones(gen.shape[:2], dtype=torch.bool)], 1)
        flags = torch.cat([torch.zeros_like(und_valid, dtype=torch.long), self.gen_flags(len(und), len(self.sizes))], 1)
        mask, positions = dense_mask(valid, flags), valid.cumsum(1) - 1
        out, _ = self.trunk({"und": und, "gen": gen}, mask, positions)
        logits = self.head(out["gen"][:, L - 1 :])
        w = und_valid[..., None]
        pooled = torch.cat([(out["und"] * w).sum(1) / w.sum(1), out["gen"][:, :L].mean(1)], -1)
        return {
            "gen_embs": gen,
            "att_mask": mask,
            "position_ids": positions,
            "gen_hidden": out["gen"],
            "und_hidden_masked": out["und"] * w,
            "logits": logits,
            "targets": ids[:, O],
            "loss": F.cross_entropy(logits.flatten(0, 1), ids[:, O].flatten()),
            "pooled": pooled,
        }

    def roll_out(self, x: Inputs, resolutions: int) -> dict[str, Any]:
        """Greedy foresight. Cache, validity and mask of everything before the action suffix."""
        _, var = self.encode(x.frames[:, : self.cfg.n_obs_img_steps])
        und, und_valid = self.und_inputs(x)
        gen = self.gen_prefix(var, x.shift)
        L, n = sum(self.sizes), sum(self.sizes[:resolutions])
        flags = torch.cat([torch.zeros_like(und_valid, dtype=torch.long), self.gen_flags(len(und), resolutions)], 1)
        valid = torch.cat([und_valid, torch.ones(len(und), L - 1 + n, dtype=torch.bool)], 1)
        mask, positions = dense_mask(valid, flags), valid.cumsum(1) - 1
        end = und.shape[1] + L
        out, cache = self.trunk({"und": und, "gen": gen}, mask[:, :end, :end], positions[:, :end])
        hidden, logits, ids = out["gen"][:, -1:], [], []
        quantizer, fhat, slot = self.tokenizer.quantize, torch.zeros(()), 0
        for k in range(resolutions):
            logits.append(self.head(hidden))
            ids.append(logits[-1].argmax(-1))
            with torch.no_grad():
                fhat = fhat + quantizer.enlarge(quantizer.embed(ids[-1], k), k)
            slot += self.sizes[k]
            if k + 1 < resolutions:
                e = quantizer.pool(fhat, k + 1).flatten(2).transpose(1, 2).detach()
                tokens = self.embed(e) + self.slot_table()[slot : slot + self.sizes[k + 1]]
                stop = end + tokens.shape[1]
                out, cache = self.trunk({"gen": tokens}, mask[:, end:stop, :stop], positions[:, end:stop], cache)
                hidden, end = out["gen"], stop
        found = {"logits": torch.cat(logits, 1), "ids": torch.cat(ids, 1), "fhat": fhat, "cache": cache}
        return found | {"valid": valid, "prefix_embs": gen}

    def velocity(self, state: Tensor, x_t: Tensor, time: Tensor, rolled: dict[str, Any]) -> Tensor:
        """Action head on top of the cache: (B, Q, A)."""
        width, (B, Q, _) = self.cfg.trunk.act.hidden_size, x_t.shape
        period = 0.004 * 1000 ** (torch.arange(width // 2, dtype=torch.float64) / (width // 2 - 1))
        angle = 2 * math.pi * time.double()[:, None] / period
        tau = torch.cat([angle.sin(), angle.cos()], -1).float()[:, None].expand(-1, Q, -1)
        a = torch.cat([self.linear(x_t, "model.action_in_proj"), tau], -1)
        a = self.linear(F.silu(self.linear(a, "model.action_time_mlp_in")), "model.action_time_mlp_out")
        suffix = torch.cat([self.linear(state, "model.state_proj")[:, None], a], 1)
        flags = torch.tensor([1, 1] + [0] * (Q - 1)).expand(B, -1)
        own = dense_mask(torch.ones(B, Q + 1, dtype=torch.bool), flags)
        mask = torch.cat([rolled["valid"][:, None].expand(-1, Q + 1, -1), own], -1)
        positions = rolled["valid"].sum(1, keepdim=True) + torch.arange(Q + 1)
        out, _ = self.trunk({"act": suffix}, mask, positions, rolled["cache"])
        return self.linear(out["act"][:, 1:], "model.action_out_proj")

    def sample(self, x: Inputs, noise: Tensor, resolutions: int) -> dict[str, Tensor]:
        """Foresight, then Euler steps from t = 1."""
        rolled = self.roll_out(x, resolutions)
        dt, time, action, steps = torch.tensor(-1.0 / self.cfg.num_denoise_steps), torch.tensor(1.0), noise, []
        while time >= -dt / 2:
            v = self.velocity(x.state, action, time.expand(len(noise)), rolled)
            steps.append((action, v, time))
            action, time = action + dt * v, time + dt
        before, v, times = (torch.stack(s) for s in zip(*steps, strict=True))
        found = {"actions": action, "x_before_step": before, "v": v, "time": times, "fhat": rolled["fhat"]}
        return found | {"wm_logits": rolled["logits"], "greedy_ids": rolled["ids"]}
