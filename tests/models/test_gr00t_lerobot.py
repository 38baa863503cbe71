"""N1.7's prompt and weights against LeRobot itself: `bash tests/run.sh gr00t`, in whose environment it is installed."""

import types
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("lerobot", reason="LeRobot is in an environment of its own: bash tests/run.sh gr00t")

from safetensors.torch import load_file, save_file

from rl.models import gr00t_real
from rl.models.gr00t_backend import Gr00tModel, patchify

# The turn of a user in the chat template of Qwen3-VL: what LeRobot fills with pictures and instruction.
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% for c in m.content %}"
    "{% if c.type == 'image' %}<|vision_start|><|image_pad|><|vision_end|>{% else %}{{ c.text }}{% endif %}"
    "{% endfor %}<|im_end|>\n{% endfor %}"
)
SPECIAL = {
    "<|im_start|>": 151_644, "<|im_end|>": 151_645, "<|vision_start|>": 151_652, "<|vision_end|>": 151_653,
    "<|image_pad|>": 151_655, "<|video_pad|>": 151_656,
}  # fmt: skip
WORDS = {"user": 872, "\n": 198, "perform": 28_488, " the": 279, " task": 3383}


def lerobot_processor() -> Any:
    """Qwen3-VL's processor with the tokens that are needed here."""
    from tokenizers import Regex, Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Split
    from transformers import PreTrainedTokenizerFast, Qwen2VLImageProcessor, Qwen3VLProcessor, Qwen3VLVideoProcessor

    words: Any = Tokenizer(WordLevel(SPECIAL | WORDS | {"?": 0}, unk_token="?"))
    words.pre_tokenizer = Split(Regex(r" ?\w+|\n"), "isolated")
    words.add_special_tokens(list(SPECIAL))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, pad_token="?", padding_side="left")
    sizes: dict[str, Any] = {"patch_size": 16, "merge_size": 2, "temporal_patch_size": 2}
    half = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    pictures = Qwen2VLImageProcessor(**sizes, **half, size={"shortest_edge": 32 * 32, "longest_edge": 1 << 24})
    return Qwen3VLProcessor(pictures, tokenizer, Qwen3VLVideoProcessor(**sizes, **half), chat_template=TEMPLATE)


def test_prompt_and_pictures_are_those_that_lerobot_gives_the_backbone() -> None:
    from lerobot.lerobot_types import TransitionKey
    from lerobot.policies.groot.processor_groot import GrootN17VLMEncodeStep

    g = torch.Generator().manual_seed(0)
    cameras = [torch.randint(256, (2, 3, 64, 96), generator=g).to(torch.uint8) for _ in range(3)]
    step = GrootN17VLMEncodeStep()
    step._proc = lerobot_processor()
    video = torch.stack(cameras, 1)[:, None].permute(0, 1, 2, 4, 5, 3)  # (B, T, V, H, W, C)
    spoken = {"language": ["perform the task"] * 2}
    out: Any = step({TransitionKey.OBSERVATION: {"video": video}, TransitionKey.COMPLEMENTARY_DATA: spoken})
    expected = out[TransitionKey.COMPLEMENTARY_DATA]
    given: dict[str, Tensor] = {}

    def backbone(inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        given.update(inputs)
        blank = torch.zeros(1)
        return {"backbone_features": blank, "backbone_attention_mask": blank, "image_mask": blank}

    reduced = gr00t_real.load("n1.7", None, "tiny")
    known = types.SimpleNamespace(vision_start_token_id=151_652, vision_end_token_id=151_653, image_token_id=151_655,
                                  text_config=types.SimpleNamespace(vocab_size=151_936))  # fmt: skip
    head = types.SimpleNamespace(config=reduced.model.config, action_head=reduced.head,
                                 backbone=types.SimpleNamespace(model=types.SimpleNamespace(config=known)))  # fmt: skip
    told: Gr00tModel = gr00t_real._told(head)
    head.backbone = backbone
    told.encode(cameras, torch.device("cpu"))
    assert given["input_ids"].tolist() == expected["input_ids"].tolist()
    assert given["attention_mask"].tolist() == expected["attention_mask"].tolist()
    assert given["image_grid_thw"].tolist() == expected["image_grid_thw"].tolist()
    assert torch.allclose(given["pixel_values"], expected["pixel_values"], atol=1e-5)
    assert patchify(cameras[0])[1] == [1, 4, 6]


# --- weights ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """A reduced N1.7 in one file, without an index, saved by the library."""
    from lerobot.policies.groot.groot_n1_7 import GR00TN17, GR00TN17Config

    gr00t_real._reduced_backbone(str(tmp_path / "backbone"))
    config = GR00TN17Config(**gr00t_real.REDUCED_HEAD, model_name=str(tmp_path / "backbone"))
    torch.manual_seed(0)
    GR00TN17(config, load_backbone_weights=False).save_pretrained(tmp_path / "released")
    return tmp_path / "released"


def without(folder: Path, *names: str) -> int:
    """Takes weights out of the file; returns how many were there before."""
    weights = load_file(folder / "model.safetensors")
    save_file({k: v for k, v in weights.items() if k not in names}, folder / "model.safetensors", {"format": "pt"})
    return len(weights)


def test_a_checkpoint_as_the_library_saves_it_is_whole_without_its_tied_head(checkpoint: Path) -> None:
    assert not (checkpoint / "model.safetensors.index.json").exists()
    saved = load_file(checkpoint / "model.safetensors")
    model = gr00t_real.load("n1.7", checkpoint, "tiny").model
    own = model.state_dict()
    assert own.keys() - saved.keys() == {"backbone.model.lm_head.weight"}
    assert model.backbone.model.lm_head.weight is model.backbone.language_model.embed_tokens.weight
    assert all(torch.equal(own[name].float(), weight.float()) for name, weight in saved.items())


def test_a_single_missing_weight_is_refused_by_name(checkpoint: Path) -> None:
    without(checkpoint, "action_head.vlln.weight")
    with pytest.raises(ValueError, match=r"lack 1 weights of the model .*: action_head\.vlln\.weight; take the"):
        gr00t_real.load("n1.7", checkpoint, "tiny")


def test_of_many_missing_weights_the_first_and_their_number_are_named(checkpoint: Path) -> None:
    layer = "backbone.model.model.language_model.layers.0.mlp."
    names = [f"{layer}{n}.weight" for n in ("down_proj", "gate_proj", "up_proj")]
    without(checkpoint, *names, "action_head.vlln.bias", "action_head.vlln.weight")
    said = rf"lack 5 weights .*: action_head\.vlln\.bias, action_head\.vlln\.weight, {names[0]}, \.\.\.; take"
    with pytest.raises(ValueError, match=said.replace(layer, layer.replace(".", r"\."))):
        gr00t_real.load("n1.7", checkpoint, "tiny")


def test_missing_embeddings_are_missed_though_the_head_is_tied_to_them(checkpoint: Path) -> None:
    without(checkpoint, "backbone.model.model.language_model.embed_tokens.weight")
    with pytest.raises(ValueError, match=r"language_model\.embed_tokens\.weight"):
        gr00t_real.load("n1.7", checkpoint, "tiny")
