"""What a pass through GR00T holds besides its parameters, from the sizes of its layers.

Counted are the tensors that `rl.models.gr00t_stub` makes: those that autograd keeps for the backward, and those that
live together at the fullest moment of a pass without gradients and of a backward. The released model has the same
sizes; what its layers keep was not counted.
"""

from dataclasses import dataclass

import gymnasium as gym
import torch

from kernels.dispatch import DECODE_QUERIES
from rl.config import Config
from rl.models.gr00t import GR00TActorCritic
from rl.models.gr00t_backend import Gr00tModel
from rl.models.gr00t_stub import FULL, Sizes

PATCHES_A_TOKEN = 4
BLACK = (3, 32, 32)  # what a policy without cameras sees


@dataclass(frozen=True)
class Layer:
    """One layer of a transformer, for one row. Widths are numbers of a token."""

    tokens: int
    context: int  # tokens that it attends to
    width: int
    queries: int  # heads * head size
    keys: int  # the same of keys and values
    heads: int
    mlp: int
    gated: bool = False
    foreign: int = 0  # width of a context that is not the layer's own input; 0: it is


@dataclass(frozen=True)
class Precision:
    """Bytes of a number, and how attention is computed there."""

    product: int  # in products: those of gr00t.dtype
    norm: int  # of what enters a norm
    scores: bool  # attention keeps every weight of every pair (kernels.matmul), else its output and a sum a query

    @property
    def half(self) -> bool:
        return self.product == 2

    @property
    def casts(self) -> int:
        """Copies of one input that three products make."""
        return 3 if self.half and self.norm == 4 else 1


def kept(s: Layer, p: Precision, trains: bool, rank: int = 0) -> int:
    """Bytes that autograd keeps of a layer through which gradients pass. `trains`: its weights do, `rank`: adapters in
    its attention do. A foreign context is kept once for all layers; only copies of it are counted here."""
    n, m = s.tokens, s.context
    total = 2 * n * s.width * p.norm + 4 * 4 * n  # inputs of both norms, their means and deviations
    total += (n * s.queries + 2 * m * s.keys) * p.product  # q, k, v
    total += n * m * s.heads * p.product if p.scores else n * s.queries * p.product + 4 * n * s.heads
    total += (3 if s.gated else 1) * n * s.mlp * p.product  # before the activation; gated: its two halves and silu
    if trains:  # inputs of all products; the output of attention is there where there are no scores
        own = p.casts if not s.foreign else 1
        total += own * n * s.width * p.product + (n * s.queries * p.product if p.scores else 0)
        total += n * s.width * p.product + n * s.mlp * p.product
        total += n * s.width * p.norm + 3 * s.width * p.product  # what time scales, and what it is told
    elif rank:  # peft casts the input of every adapter to float32, autocast back: a copy each
        inputs = n * s.width + 2 * m * s.foreign if s.foreign else 3 * n * s.width
        total += (inputs + n * s.queries if p.half else n * s.width) * p.product
        total += 2 * (n + m) * rank * p.product
    return total


def fullest(s: Layer, p: Precision) -> int:
    """Bytes alive at the fullest moment of a layer without gradients, its own input among them."""
    n, m = s.tokens, s.context
    masks = 24 * (n + m)  # block ids, key ends, validity
    attention = (2 * n * s.width + 3 * n * s.queries + 2 * m * s.keys) * p.product  # x, h, q, scaled q, out, k, v
    if p.scores or n <= DECODE_QUERIES:  # all pairs twice, k and v laid out anew
        attention += (2 * n * m * s.heads + 2 * m * s.keys) * p.product
    mlp = (4 * n * s.width + n * s.queries + 2 * m * s.keys + (4 if s.gated else 2) * n * s.mlp) * p.product
    return masks + max(attention, mlp)  # names inside the layer hold q, k and v to its end


def passing_back(s: Layer, p: Precision) -> int:
    """Bytes of gradients alive at the fullest moment of a layer's backward: those of its MLP, its input and output."""
    return s.tokens * ((4 if s.gated else 2) * s.mlp + 3 * s.width) * max(p.product, p.norm)


# --- the model --------------------------------------------------------------------------------------------------------


def sizes_of(model: Gr00tModel) -> Sizes:
    """Of the stub its own; of a released model those of its configuration that count here. N1.5 is taken for N1.7."""
    inner = model.model
    if hasattr(inner, "sizes"):
        sizes: Sizes = inner.sizes
        return sizes
    if model.version != "n1.7":
        return FULL
    config, backbone = inner.config, inner.backbone.model.config
    text, vision = backbone.text_config, backbone.vision_config
    return Sizes(
        text_width=text.hidden_size, text_layers=len(inner.backbone.model.model.language_model.layers),
        text_heads=text.num_attention_heads, text_kv_heads=text.num_key_value_heads, head_dim=text.head_dim,
        text_mlp=text.intermediate_size, vision_width=vision.hidden_size, vision_layers=vision.depth,
        vision_heads=vision.num_heads, vision_mlp=vision.intermediate_size, patch=vision.patch_size,
        vl_layers=config.vl_self_attention_cfg["num_layers"],
        vl_heads=config.vl_self_attention_cfg["num_attention_heads"], hidden=config.hidden_size,
        dit_width=model.state_width, dit_layers=config.diffusion_model_cfg["num_layers"],
        dit_heads=config.diffusion_model_cfg["num_attention_heads"], action_slots=model.action_slots,
        horizon=model.horizon,
    )  # fmt: skip


class Pass:
    """Bytes of one row of a minibatch, by what happens to it."""

    def __init__(self, policy: GR00TActorCritic, cfg: Config, device: torch.device) -> None:
        """`device`: on which the run is planned."""
        self.policy, self.g, self.sizes = policy, cfg.gr00t, sizes_of(policy.model)
        half, on_cpu = self.g.dtype != "float32", device.type == "cpu"
        # Norms compute in float32 on a GPU, and wherever the float32 weights of the projector make what they read so.
        wide = not half or not on_cpu or "projector" in self.g.stages
        self.inside = Precision(2 if half else 4, 4 if wide else 2, half and on_cpu)
        self.outside = Precision(2 if half else 4, 4 if not half or not on_cpu else 2, half and on_cpu)  # of backbone
        self.patches = [patches(shape, self.sizes.patch) for shape in shown(policy) or [BLACK]]  # of every camera
        words = policy.model.prompt.text(len(self.patches))
        self.tokens = sum(self.patches) // PATCHES_A_TOKEN + words  # of the context

    def layers(self, part: str) -> list[Layer]:
        s, n = self.sizes, self.tokens
        if part == "dit":
            chunk, W = s.horizon + 1, s.dit_width
            seen = Layer(chunk, n, W, W, W, s.dit_heads, 4 * W, foreign=s.text_width)
            own = Layer(chunk, chunk, W, W, W, s.dit_heads, 4 * W)
            return [(seen, own)[i % 2] for i in range(s.dit_layers)]
        if part == "vl_head":
            return s.vl_layers * [Layer(n, n, s.text_width, s.text_width, s.text_width, s.vl_heads, 4 * s.text_width)]
        D = s.head_dim
        return s.text_layers * [
            Layer(n, n, s.text_width, s.text_heads * D, s.text_kv_heads * D, s.text_heads, s.text_mlp, gated=True)
        ]

    def kept(self, stages: list[str]) -> tuple[int, int]:
        """Bytes for the backward of `stages`: of every row, and those that a pass keeps once."""
        s, p, g = self.sizes, self.inside, self.g
        if not stages:
            return self._heads(), 0
        dit, rank = "dit" in stages, g.lora_rank
        row = sum(kept(layer, p, dit and not rank, rank if dit else 0) for layer in self.layers("dit"))
        row += (s.horizon + 1) * s.dit_width * (2 * p.norm + 2 * p.product)  # after the last layer
        row += self._projector("projector" in stages) + self._heads()
        seen = 0
        if dit and (not rank or not p.half):  # the context that all layers read
            seen += self.tokens * s.text_width * p.product
        deep = "backbone" in stages
        if deep or "vl_head" in stages:
            seen += 2 * self.tokens * s.text_width * self.outside.norm
            seen += sum(kept(layer, self.outside, "vl_head" in stages) for layer in self.layers("vl_head"))
        if deep:
            seen += sum(kept(layer, self.outside, True) for layer in self.layers("backbone")[-g.backbone_layers :])
        return (row + seen, 0) if self.policy.pictures else (row, seen)  # without pictures all rows share one context

    def _projector(self, trains: bool) -> int:
        """Rows pick the weights of their robot: the picked ones are kept where gradients pass their input."""
        s, p = self.sizes, self.inside
        picked = s.hidden * (s.hidden + s.action_slots)
        numbers = (s.horizon + 1) * s.hidden * (p.product + p.norm)
        if trains:
            picked += s.hidden * s.dit_width + 3 * s.dit_width * s.dit_width
            numbers += s.horizon * s.dit_width * (3 * p.product + 4) + (s.horizon + 1) * s.hidden * p.product
            numbers += (s.horizon + 1) * s.action_slots * p.product + s.hidden * (p.product + 4)
        return picked * p.product + numbers

    def _heads(self) -> int:
        """Value head, adapter of the actions and the likelihood, in float32."""
        s = self.sizes
        head = 2 * (s.text_width + 2 * sum(self.g.value_hidden)) + self.policy.critic_dims
        return 4 * (head + s.horizon * (s.action_slots + self.policy.layout.dims) + self.tokens)

    def acting(self) -> tuple[int, int]:
        """Bytes alive at the fullest moment of a pass without gradients: of every row, and those it has once."""
        s, p = self.sizes, self.outside
        pictures = 2 * 3 * 2 * s.patch**2 * 4  # of a patch: its numbers, and those of all cameras together
        seen = pictures * sum(self.patches)
        W, heads = s.vision_width, s.vision_heads
        eyes = [Layer(n, n, W, W, W, heads, s.vision_mlp) for n in self.patches]
        words, mind = self.tokens * s.text_width * p.product, self.layers("backbone")[0]
        cut = (seen // 4 if p.half else 0) + words + sum(self.patches) * W * p.product  # cast, and into the first layer
        ids = 6 * 8 * self.tokens  # of tokens, their lists, which of them are valid and of pictures; sizes of pictures
        looking = seen + ids + max(cut, words + sum(fullest(e, p) for e in eyes), words + fullest(mind, p))
        context = words
        picked = 3 * s.dit_width * s.dit_width  # the widest layer of the action's encoder and the next one's
        picked *= p.product + (4 if p.half and "projector" in self.g.stages else 0)
        chunks = 2 * (self.g.denoise_steps + 1) * s.horizon * s.action_slots * 4  # noise, and what it becomes
        chunks += (2 * (s.horizon + 1) + 6) * s.dit_width * self.inside.norm  # embedded, and what time scales
        chunks += 8 * self.policy.layout.width
        moving = chunks + max(picked, *(fullest(layer, self.inside) for layer in self.layers("dit")))
        if self.policy.pictures:
            return max(looking, context + moving, context + fullest(self.layers("vl_head")[0], p)), 0
        return moving, max(looking, context)

    def returning(self, stages: list[str]) -> int:
        """Bytes of gradients alive in a row's backward while everything that is kept is still there."""
        s, p = self.sizes, self.inside
        if not stages:
            return 0
        # Those of picked weights in the precision of products, then in float32.
        picked = s.hidden * max(s.hidden, s.action_slots) * (p.product + 4) if "projector" in stages else 0
        return max(picked, passing_back(self.layers("dit")[-1], p))


def shown(policy: GR00TActorCritic) -> list[tuple[int, ...]]:
    """Shape of the picture of every camera that the policy looks at."""
    space = policy.observation_space
    entries = dict(space.spaces) if isinstance(space, gym.spaces.Dict) else {"": space}
    return [tuple(entries[camera.entry].shape or ()) for camera in policy.pictures]


def patches(shape: tuple[int, ...], patch: int) -> int:
    """Of a picture (C, H, W), as `gr00t_backend.patchify` cuts it."""
    cell = 2 * patch
    height, width = (max(1, round(n / cell)) for n in shape[-2:])
    return PATCHES_A_TOKEN * height * width


def widest_product(policy: GR00TActorCritic) -> int:
    """Bytes of the largest matrix of a product: oneDNN and cuBLAS work on a copy of about that size."""
    named = [(n, p) for n, p in policy.named_parameters() if p.dim() == 2]
    return max(p.numel() * p.element_size() for n, p in named if "embed" not in n)


def half_copies(policy: GR00TActorCritic, cfg: Config, trained: set[int]) -> int:
    """Bytes of the matrices of what trains, which is float32, as autocast keeps them in half precision for a pass.
    Weights that rows pick are counted where they are picked."""
    if cfg.gr00t.dtype == "float32":
        return 0
    return sum(2 * p.numel() for p in policy.model.parameters() if id(p) in trained and p.dim() == 2)
