"""The released models behind `rl.models.gr00t_backend`: N1.7 through LeRobot 0.6, N1.5 through LeRobot 0.5.

LeRobot's pins fit neither this project's environment nor Isaac Lab's: N1.7 has its own (`bash setup.sh gr00t`). N1.5
needs flash-attn and a GPU besides; its code follows LeRobot 0.5.1 and HAS NOT BEEN RUN.
"""

import importlib.util
import logging
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from rl.models import gr00t_prompt
from rl.models.gr00t_backend import Context, Gr00tModel
from rl.models.gr00t_prompt import Prompt
from rl.models.gr00t_weights import check_config, refuse_missing

log = logging.getLogger(__name__)
SIDE = 224  # of a picture of N1.5
INSTALL = {
    "n1.7": "`bash setup.sh gr00t`; train.sh then starts the run with .venv-gr00t",
    "n1.5": "`bash setup.sh gr00t`, then lerobot==0.5.1 and flash-attn in .venv-gr00t (Python 3.12, CUDA)",
}
MODULES = {"n1.7": "groot_n1_7.py", "n1.5": "groot_n1.py"}  # in lerobot/policies/groot; no release has both
# A reduced N1.7 with random weights, for tests of the real code: sizes of transformers' Qwen3-VL and of the head.
REDUCED_TEXT = {
    "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 1, "head_dim": 16, "vocab_size": 64, "max_position_embeddings": 512,
    "rope_scaling": {"mrope_interleaved": True, "mrope_section": [4, 2, 2], "rope_type": "default"},
}  # fmt: skip
REDUCED_VISION = {
    "depth": 1, "hidden_size": 32, "intermediate_size": 64, "num_heads": 2, "out_hidden_size": 32,
    "num_position_embeddings": 64, "deepstack_visual_indexes": [0], "patch_size": 16, "spatial_merge_size": 2,
    "temporal_patch_size": 2,
}  # fmt: skip
REDUCED_HEAD: dict[str, Any] = {
    "backbone_embedding_dim": 32, "select_layer": 2, "max_state_dim": 48, "max_action_dim": 16, "action_horizon": 4,
    "hidden_size": 64, "input_embedding_dim": 64, "max_num_embodiments": 4, "backbone_model_type": "qwen",
    "diffusion_model_cfg": {
        "positional_embeddings": None, "num_layers": 2, "num_attention_heads": 2, "attention_head_dim": 32,
        "norm_type": "ada_norm", "dropout": 0.2, "final_dropout": True, "output_dim": 64,
        "interleave_self_attention": True,
    },
    "vl_self_attention_cfg": {
        "positional_embeddings": None, "num_layers": 1, "num_attention_heads": 2, "attention_head_dim": 16,
        "dropout": 0.2, "final_dropout": True,
    },
}  # fmt: skip


class BackendMissingError(ValueError):
    """What a backend needs is not installed here."""


def require(version: str) -> None:
    """Raises BackendMissingError with the way to get it where LeRobot, or its release with `version`, is missing."""
    spec = importlib.util.find_spec("lerobot")
    places = [] if spec is None else spec.submodule_search_locations or []
    if any((Path(place) / "policies" / "groot" / MODULES[version]).is_file() for place in places):
        return
    what = "LeRobot, which is not" if spec is None else f"a LeRobot with {MODULES[version]}, which is not the one"
    raise BackendMissingError(
        f"gr00t.backend={version} needs {what} installed here: {INSTALL[version]}; or choose gr00t.backend=stub "
        "(random weights), or gr00t.mlp_fallback=true for a small network instead"
    )


def load(version: str, checkpoint: Path | None, size: str, instruction: str | None = None) -> Gr00tModel:
    """The model of a checkpoint, told `instruction`, or of random weights (n1.7 only).

    Raises ValueError where it cannot be had, or the instruction cannot be read.
    """
    require(version)
    if checkpoint is None:
        if version == "n1.5":
            raise ValueError("gr00t.backend=n1.5 needs gr00t.checkpoint; random weights exist for stub and n1.7")
        return _n17_random(size)
    check_config(checkpoint)
    formal = version == "n1.7" and gr00t_prompt.is_formal(checkpoint)
    words = None if instruction is None else gr00t_prompt.instructed(checkpoint, instruction, formal=formal)
    log.info("GR00T is told: %s", instruction or "perform the task (gr00t.instruction is null)")
    if version == "n1.5":
        return _n15(checkpoint, words or gr00t_prompt.UNTOLD[formal])
    return _n17(checkpoint, words, formal)


def _n17(checkpoint: Path, words: tuple[int, ...] | None, formal: bool) -> Gr00tModel:
    """Raises ValueError where the checkpoint lacks weights, which the library would draw at random."""
    from lerobot.policies.groot.groot_n1_7 import GR00TN17

    # LeRobot's own `from_pretrained` may fetch from the hub and does not pass on what transformers missed.
    model, found = super(GR00TN17, GR00TN17).from_pretrained(
        str(checkpoint), load_backbone_weights=False, local_files_only=True, output_loading_info=True,
        transformers_loading_kwargs={"local_files_only": True},
    )  # fmt: skip
    unused = "backbone.model.lm_head.weight"  # tied to the embeddings, so that no checkpoint holds it
    refuse_missing(checkpoint, set(found["missing_keys"]) - {unused})
    model.backbone.model.lm_head.weight = model.backbone.language_model.embed_tokens.weight
    return _told(model, words, formal)


def _n17_random(size: str) -> Gr00tModel:
    from lerobot.policies.groot.groot_n1_7 import GR00TN17, GR00TN17Config

    if size != "tiny":
        return _told(GR00TN17(GR00TN17Config(), load_backbone_weights=False))
    with tempfile.TemporaryDirectory(prefix="qwen3vl-") as folder:
        _reduced_backbone(folder)
        return _told(GR00TN17(GR00TN17Config(**REDUCED_HEAD, model_name=folder), load_backbone_weights=False))


def _told(model: Any, words: tuple[int, ...] | None = None, formal: bool = True) -> Gr00tModel:
    config = model.backbone.model.config
    vision = config.vision_start_token_id, config.vision_end_token_id
    prompt = gr00t_prompt.of_backbone(config.text_config.vocab_size, vision, words, formal=formal)
    return Gr00tModel(model, prompt, int(config.image_token_id))


def _reduced_backbone(folder: str) -> None:
    """Makes `folder` describe a small Qwen3-VL, as the checkpoint's `model_name`."""
    from transformers import Qwen3VLConfig

    text, vision = REDUCED_TEXT | {"rope_theta": 5e6}, REDUCED_VISION
    Qwen3VLConfig(
        text_config=text, vision_config=vision, image_token_id=1, video_token_id=62, vision_start_token_id=60,
        vision_end_token_id=61, tie_word_embeddings=True,
    ).save_pretrained(folder)  # fmt: skip


class Gr00tN15(Gr00tModel):
    """N1.5: learned tokens between state and actions, another backbone, no masks in the transformer. NOT RUN."""

    version = "n1.5"

    def _sizes(self) -> tuple[int, int]:
        return int(self.model.config.action_horizon), int(self.head.num_timestep_buckets)

    def encode(self, pictures: list[Tensor], device: torch.device) -> Context:
        pictures = pictures or [torch.zeros(1, 3, SIDE, SIDE, dtype=torch.uint8, device=device)]
        batch = len(pictures[0])
        words = torch.tensor(self.prompt.words, device=device).expand(batch, -1)
        count = self.model.backbone.eagle_model.num_image_token
        slots = torch.full((batch, count * len(pictures)), self.image_token, device=device)
        ids = torch.cat([slots, words], 1)
        scaled = [nn.functional.interpolate(p.float() / 127.5 - 1, (SIDE, SIDE)) for p in pictures]
        values = torch.stack(scaled, 1).flatten(0, 1)
        inputs = {
            "eagle_input_ids": ids, "eagle_attention_mask": torch.ones_like(ids), "eagle_pixel_values": values,
            # Taken out again by the backbone, which fails without it.
            "eagle_image_sizes": torch.full((len(values), 2), SIDE, device=device),
        }  # fmt: skip
        out = self.model.backbone(inputs)
        return Context(out["backbone_features"], out["backbone_attention_mask"] == 1, ids == self.image_token)

    def velocity(
        self, context: Context, state_B1W: Tensor, x_BQA: Tensor, time_B: Tensor, embodiment_B: Tensor
    ) -> Tensor:
        step = self._step(time_B)
        future = self.head.future_tokens.weight[None].expand(len(x_BQA), -1, -1)
        out = self.head.model(
            hidden_states=torch.cat([state_B1W, future, self._chunk(x_BQA, step, embodiment_B)], 1),
            encoder_hidden_states=context.tokens, timestep=step,
        )  # fmt: skip
        return -self.head.action_decoder(out, embodiment_B)[:, -x_BQA.shape[1] :].float()


def _n15(checkpoint: Path, words: tuple[int, ...]) -> Gr00tModel:
    from lerobot.policies.groot.groot_n1 import GR00TN15  # type: ignore[import-not-found,unused-ignore]

    model = GR00TN15.from_pretrained(str(checkpoint), tune_visual=False, tune_llm=False, local_files_only=True)
    return Gr00tN15(model, Prompt(words), int(model.backbone.eagle_model.image_token_index))
