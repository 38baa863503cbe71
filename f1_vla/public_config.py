"""The configuration file of the public F1-VLA code (`config.json`) <-> ours."""

from typing import Any

from f1_vla.config import ExpertConfig, F1Config, TokenizerConfig, TrunkConfig, VisionConfig, WorldModelConfig

CHANNEL_MULTIPLIERS = [1, 1, 2, 2, 4]  # constants of the public tokenizer, absent from its configuration
ENCODER_BLOCKS, DECODER_BLOCKS, NORM_GROUPS = 2, 3, 32
_SHARED = ("num_hidden_layers", "num_attention_heads", "num_key_value_heads", "head_dim")


def from_public(public: dict[str, Any]) -> F1Config:
    """Our configuration of a public one; what the public model lacks keeps its default.

    ValueError naming the key that is missing or that this model cannot represent.
    """
    try:
        cfg = _convert(public)
    except KeyError as e:
        raise ValueError(f"the public configuration has no key {e}") from e
    text = public["und_expert_config"]["text_config"]
    for name in ("gen", "act"):
        expert = public[f"{name}_expert_config"]
        for key in _SHARED:
            if expert.get(key, text[key]) != text[key]:
                raise ValueError(f"{name}_expert_config.{key} is {expert[key]}, that of und is {text[key]}: must agree")
    target = public["resize_imgs_with_padding"]
    if target is not None and list(target) != [cfg.vision.image_size] * 2:
        raise ValueError(
            f"resize_imgs_with_padding {target} differs from the vision tower's {cfg.vision.image_size} px"
        )
    cfg.validate()
    return cfg


def _convert(public: dict[str, Any]) -> F1Config:
    und, gen, act = public["und_expert_config"], public["gen_expert_config"], public["act_expert_config"]
    text, vision, vae = und["text_config"], und["vision_config"], gen["vae"]
    scales = [int(p) for p in str(gen["pn"]).split("_")]
    return F1Config(
        trunk=TrunkConfig(
            num_layers=text["num_hidden_layers"],
            num_heads=text["num_attention_heads"],
            num_kv_heads=text["num_key_value_heads"],
            head_dim=text["head_dim"],
            und=ExpertConfig(text["hidden_size"], text["intermediate_size"]),
            gen=ExpertConfig(gen["hidden_size"], gen["intermediate_size"]),
            act=ExpertConfig(act["hidden_size"], act["intermediate_size"]),
            text_vocab_size=text["vocab_size"],
        ),
        vision=VisionConfig(
            image_size=vision["image_size"],
            patch_size=vision["patch_size"],
            hidden_size=vision["hidden_size"],
            intermediate_size=vision["intermediate_size"],
            num_layers=vision["num_hidden_layers"],
            num_heads=vision["num_attention_heads"],
        ),
        tokenizer=TokenizerConfig(
            image_size=16 * scales[-1],
            scales=scales,
            vocab_size=vae["vocab_size"],
            z_channels=vae["z_channels"],
            channels=vae["ch"],
            channel_multipliers=CHANNEL_MULTIPLIERS,
            encoder_blocks=ENCODER_BLOCKS,
            decoder_blocks=DECODER_BLOCKS,
            norm_groups=NORM_GROUPS,
            num_phi=vae["share_quant_resi"],
        ),
        world_model=WorldModelConfig(
            num_resolutions=gen["num_resolutions"],
            foresight_scales=gen["num_resolutions"],
            temporal_conv_kernel_size=gen["temporal_conv_kernel_size"],
            temporal_conv_stride=gen["temporal_conv_stride"],
        ),
        max_action_dim=public["max_action_dim"],
        max_state_dim=public["max_state_dim"],
        chunk_size=public["chunk_size"],
        num_denoise_steps=public["num_steps"],
        tokenizer_max_length=public["tokenizer_max_length"],
        n_obs_img_steps=gen["temporal_conv_kernel_size"],
        vision_resize_with_padding=public["resize_imgs_with_padding"] is not None,
    )


def to_public(cfg: F1Config) -> dict[str, Any]:
    """The public configuration of ours: what `from_public` reads and the public loader expects beside the weights.

    ValueError when the tokenizer has constants the public code cannot express.
    """
    t, v, k = cfg.trunk, cfg.vision, cfg.tokenizer
    constants = (list(k.channel_multipliers), k.encoder_blocks, k.decoder_blocks, k.norm_groups, k.phi_ratio)
    if constants != (CHANNEL_MULTIPLIERS, ENCODER_BLOCKS, DECODER_BLOCKS, NORM_GROUPS, 0.5):
        raise ValueError(
            "the public code has a fixed tokenizer (channel_multipliers, encoder_blocks, decoder_blocks, norm_groups, "
            f"phi_ratio = {CHANNEL_MULTIPLIERS}, 2, 3, 32, 0.5); this one has {constants}"
        )
    shared = {
        "num_hidden_layers": t.num_layers,
        "num_attention_heads": t.num_heads,
        "num_key_value_heads": t.num_kv_heads,
        "head_dim": t.head_dim,
        "vocab_size": t.text_vocab_size,
        "hidden_activation": "gelu_pytorch_tanh",
        "model_type": "gemma",
    }
    gemma = shared | {"hidden_act": "gelu_pytorch_tanh", "rms_norm_eps": 1e-6, "rope_theta": 10000.0}
    tokens = v.num_patches
    vision = {
        "model_type": "siglip_vision_model",
        "image_size": v.image_size,
        "patch_size": v.patch_size,
        "hidden_size": v.hidden_size,
        "intermediate_size": v.intermediate_size,
        "num_hidden_layers": v.num_layers,
        "num_attention_heads": v.num_heads,
        "num_image_tokens": tokens,
        "projection_dim": t.und.hidden_size,
        "vision_use_head": False,
    }
    text = shared | {"num_image_tokens": tokens} | vars(t.und)
    vae = {"vocab_size": k.vocab_size, "z_channels": k.z_channels, "ch": k.channels, "share_quant_resi": k.num_phi}
    gen = gemma | vars(t.gen) | {"pn": "_".join(map(str, k.scales)), "vae": vae | {"test_mode": True, "vae_ckpt": ""}}
    w = cfg.world_model
    gen |= {"num_resolutions": w.num_resolutions}
    gen |= {n: getattr(w, n) for n in ("temporal_conv_kernel_size", "temporal_conv_stride")}
    return {
        "type": "f1_vla",
        "und_expert_config": {
            "model_type": "paligemma",
            "hidden_size": t.und.hidden_size,
            "projection_dim": t.und.hidden_size,
            "_vocab_size": t.text_vocab_size,
            "image_token_index": t.text_vocab_size,
            "text_config": text,
            "vision_config": vision,
        },
        "gen_expert_config": gen,
        "act_expert_config": gemma | vars(t.act),
        "use_world_model": True,
        "chunk_size": cfg.chunk_size,
        "max_action_dim": cfg.max_action_dim,
        "max_state_dim": cfg.max_state_dim,
        "tokenizer_max_length": cfg.tokenizer_max_length,
        "resize_imgs_with_padding": [v.image_size] * 2 if cfg.vision_resize_with_padding else None,
        "proj_width": t.act.hidden_size,
        "num_steps": cfg.num_denoise_steps,
        "use_cache": True,
        "attention_implementation": "eager",
    }
