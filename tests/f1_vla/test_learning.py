"""What memory and action conditioning learn, on constructed sequences of token frames where the optimum is known."""

import math

import torch

from f1_vla.batch import F1Batch
from f1_vla.builders import build_policy
from f1_vla.config import ExpertConfig, F1Config, MemoryConfig, TokenizerConfig, TrunkConfig, VisionConfig
from f1_vla.config import WorldModelConfig as WorldModel
from f1_vla.policy import F1Policy
from f1_vla.trainable import freeze_action_parts, memory_gate_parameters, set_policy_requires_grad

NEUTRAL, SYMBOLS, GO = 0, (1, 2), 3  # token ids; a frame shows one id everywhere


def small_config(memory: bool) -> F1Config:
    return F1Config(
        trunk=TrunkConfig(
            num_layers=2, num_heads=2, head_dim=16, und=ExpertConfig(16, 32), gen=ExpertConfig(32, 48),
            act=ExpertConfig(32, 48),
        ),
        vision=VisionConfig(16, 16, 16, 16, 1, 1),
        tokenizer=TokenizerConfig(32, [1, 2], 16, 8, 8, [1, 1, 1, 1, 1], 1, 1, 8),
        memory=MemoryConfig(memory_enabled=memory, memory_hidden=32, memory_num_layers=1),
        world_model=WorldModel(num_resolutions=2, foresight_scales=2),
        chunk_size=2, tokenizer_max_length=2,
    )  # fmt: skip


def frames_to_batch(cfg: F1Config, shown: torch.Tensor, actions: torch.Tensor) -> F1Batch:
    """Frames that show one id each, (B, T + 1), and actions (B, T, A) -> a window of T steps."""
    B, T = shown.shape[0], shown.shape[1] - 1
    O, L = cfg.n_obs_img_steps, cfg.tokenizer.num_tokens  # noqa: E741
    slots = (torch.arange(T)[:, None] + torch.arange(1 - O, 1)).clamp_min(0)  # the first frame is repeated
    return F1Batch(
        lang_tokens=torch.ones(B, 2, dtype=torch.long),
        lang_masks=torch.ones(B, 2, dtype=torch.bool),
        camera_mask=torch.ones(B, T, 1, dtype=torch.bool),
        history_ids=shown[:, slots][..., None].expand(-1, -1, -1, L),
        history_mask=torch.ones(B, T, O, dtype=torch.bool),
        actions=actions[:, slots],
        action_known=torch.ones(B, T, O, dtype=torch.bool),
        state=torch.zeros(B, T, cfg.max_state_dim),
        vision=torch.zeros(B, T, 1, 1, cfg.vision.hidden_size),
        target_ids=shown[:, 1:, None].expand(-1, -1, L),
    )


def run(policy: F1Policy, batch: F1Batch) -> dict:
    return policy(batch, mode="world_model_window", initial_memory_state=policy.initial_memory_state(batch.size))


def train(policy: F1Policy, make, updates: int, learning_rate: float = 3e-3) -> None:
    """Adam on batches from `make(generator)`; the memory's gate learns ten times faster, as in the trainer."""
    set_policy_requires_grad(policy)
    freeze_action_parts(policy)
    gates = memory_gate_parameters(policy)
    others = [p for p in policy.parameters() if p.requires_grad and not any(p is g for g in gates)]
    optimizer = torch.optim.Adam([{"params": others}, {"params": gates, "lr": 10 * learning_rate}], lr=learning_rate)
    generator = torch.Generator().manual_seed(1)
    for _ in range(updates):
        loss = run(policy, make(generator))["loss"]
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(policy.parameters(), 1.0)
        optimizer.step()


UPDATES = 100
DELAY = 6  # steps from the cue to the last frame before it comes back; the picture history holds 4 frames


def cue_windows(cfg: F1Config, n: int, generator: torch.Generator) -> F1Batch:
    """Frame 0 shows one of two symbols, then nothing, then a sign that the symbol comes back, then the symbol."""
    symbol = torch.tensor(SYMBOLS)[torch.randint(2, (n,), generator=generator)]
    shown = torch.full((n, DELAY + 2), NEUTRAL)
    shown[:, 0] = shown[:, -1] = symbol
    shown[:, -2] = GO
    return frames_to_batch(cfg, shown, torch.zeros(n, DELAY + 1, cfg.max_action_dim))


def cue_nll(memory: bool, updates: int) -> float:
    """Held-out loss in nats of the first token of the frame in which the symbol returns."""
    torch.manual_seed(0)
    cfg = small_config(memory)
    policy = build_policy(cfg).eval()
    train(policy, lambda g: cue_windows(cfg, 16, g), updates)
    held_out = cue_windows(cfg, 256, torch.Generator().manual_seed(2))
    assert not torch.isin(
        held_out.history_ids[:, -1], torch.tensor(SYMBOLS)
    ).any()  # nothing of the cue is left in the picture history
    with torch.no_grad():
        return run(policy, held_out)["nll"][:, -1, 0].mean().item()


def test_memory_recalls_what_left_the_picture_history_and_without_it_the_loss_stays_at_chance():
    chance = math.log(2)
    assert cue_nll(memory=True, updates=UPDATES) < 0.1 * chance
    assert 0.97 * chance < cue_nll(memory=False, updates=UPDATES) < 1.2 * chance


def action_windows(cfg: F1Config, n: int, generator: torch.Generator) -> F1Batch:
    """The next frame shows which way the action went; everything before it is nothing."""
    way = torch.randint(2, (n,), generator=generator)
    shown = torch.full((n, 2), NEUTRAL)
    shown[:, 1] = torch.tensor(SYMBOLS)[way]
    actions = torch.randn(n, 1, cfg.max_action_dim, generator=generator)
    actions[:, 0, 0] = actions[:, 0, 0].abs() * (2 * way - 1)
    return frames_to_batch(cfg, shown, actions)


def test_loss_falls_with_true_actions_and_rises_when_they_are_shuffled():
    cfg = small_config(memory=False)
    policy = build_policy(cfg).eval()
    train(policy, lambda g: action_windows(cfg, 32, g), updates=120)
    held_out = action_windows(cfg, 256, torch.Generator().manual_seed(2))

    def first_token_nll() -> float:
        with torch.no_grad():
            return run(policy, held_out)["nll"][:, 0, 0].mean().item()

    true = first_token_nll()
    held_out.actions = held_out.actions[torch.randperm(256, generator=torch.Generator().manual_seed(3))]
    shuffled = first_token_nll()
    chance = math.log(2)
    assert true < 0.35 * chance and shuffled > chance
