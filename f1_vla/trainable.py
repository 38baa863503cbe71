"""Which parameters train: the four switches of the published trainer, and a table of the outcome."""

from torch import nn

from f1_vla.policy import F1Policy

# Named parts of the policy, as prefixes of parameter names; every parameter belongs to the first that fits.
PARTS: dict[str, str] = {
    "vision tower": "vision.tower.",
    "vision projector": "vision.projector.",
    "text embedding": "text_embedding.",
    "und expert": "trunk.und.",
    "gen expert": "trunk.gen.",
    "act expert": "trunk.act.",
    "action projections": "flow.",
    "latent head": "world_model.latent_head.",
    "ensemble heads": "world_model.ensemble.",
    "action and state conditioning": "world_model.condition.",
    "world-model embeddings and head": "world_model.",
    "memory": "memory.",
    "tokenizer": "tokenizer.",
}

_PALIGEMMA = ("vision tower", "vision projector", "text embedding", "und expert")


def part_of(name: str) -> str:
    """The part a parameter belongs to."""
    for part, prefix in PARTS.items():
        if name.startswith(prefix):
            return part
    raise AssertionError(f"parameter {name} belongs to no part; add it to PARTS")


def set_parts(policy: F1Policy, frozen: set[str]) -> None:
    """requires_grad for every parameter: False in the frozen parts, True elsewhere. Language heads that nothing reads
    and the tokenizer are always frozen; adapters keep what they have."""
    for name, p in policy.named_parameters():
        if ".lora_" in name:
            continue
        part = part_of(name)
        p.requires_grad_(part not in frozen and part != "tokenizer" and ".lm_head." not in name)


def set_policy_requires_grad(
    policy: F1Policy,
    freeze_vision_encoder: bool = True,
    freeze_gen_expert: bool = False,
    train_act_expert_only: bool = False,
    train_gen_expert_only: bool = False,
) -> None:
    """The published switches.

    freeze_vision_encoder freezes the vision tower but not the projector; freeze_gen_expert the gen expert's layers but
    not the world-model embeddings and head; train_act_expert_only all of PaliGemma; train_gen_expert_only PaliGemma,
    the act expert and the state and action projections. The tokenizer is always frozen.
    ValueError when both train_..._only switches are set.
    """
    if train_act_expert_only and train_gen_expert_only:
        raise ValueError("freeze.train_act_expert_only and freeze.train_gen_expert_only exclude each other; set one")
    frozen: set[str] = set()
    if freeze_vision_encoder:
        frozen.add("vision tower")
    if freeze_gen_expert:
        frozen.add("gen expert")
    if train_act_expert_only:
        frozen.update(_PALIGEMMA)
    if train_gen_expert_only:
        frozen.update((*_PALIGEMMA, "act expert", "action projections"))
    set_parts(policy, frozen)


def freeze_action_parts(policy: F1Policy) -> None:
    """Freezes what the world-model modes never reach (act expert, action projections): DDP must not wait for it."""
    for name, p in policy.named_parameters():
        if part_of(name) in ("act expert", "action projections"):
            p.requires_grad_(False)


def freeze_inputs(policy: F1Policy) -> None:
    """Freezes what feeds the understanding expert (vision tower, projector, text embedding): part of a shared base."""
    for name, p in policy.named_parameters():
        if part_of(name) in ("vision tower", "vision projector", "text embedding") and ".lora_" not in name:
            p.requires_grad_(False)


def trainable_table(policy: nn.Module) -> str:
    """Text table: part, trainable parameters, all parameters."""
    counts = {part: [0, 0] for part in PARTS}
    for name, p in policy.named_parameters():
        row = counts[part_of(name)]
        row[0] += p.numel() if p.requires_grad else 0
        row[1] += p.numel()
    rows = [(part, f"{t:,}", f"{n:,}") for part, (t, n) in counts.items() if n]
    rows.append(("total", f"{sum(t for t, _ in counts.values()):,}", f"{sum(n for _, n in counts.values()):,}"))
    rows.insert(0, ("part", "trainable", "parameters"))
    w = [max(len(r[i]) for r in rows) for i in range(3)]
    return "\n".join(f"{a:<{w[0]}}  {b:>{w[1]}}  {c:>{w[2]}}" for a, b, c in rows)


def memory_gate_parameters(policy: F1Policy) -> list[nn.Parameter]:
    """What decides how much the memory acts (gate and zero-initialised read projection); gets its own learning rate."""
    if policy.memory is None:
        return []
    names = ("memory.memory_gate", "memory.out_proj.weight")
    return [policy.get_parameter(n) for n in names]
