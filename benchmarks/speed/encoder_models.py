"""Models of the published sizes with random weights, in the form that encoders load.

Speed and memory do not depend on what the weights are, and the published ones need a network.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from demr.encoders.slowfast.network import SlowFastNetwork


def build_clip(folder: Path) -> None:
    """OpenAI's ViT-B/32."""
    import transformers

    config = transformers.CLIPConfig(projection_dim=512)
    _save(transformers.CLIPModel(config), folder)
    _processor("CLIPImageProcessor")().save_pretrained(folder)


def build_siglip(folder: Path) -> None:
    """SigLIP 2 base, patches of 16, 224 pixels."""
    import transformers

    config = transformers.SiglipConfig(text_config={"vocab_size": 256_000})
    _save(transformers.SiglipModel(config), folder)
    size = {"height": 224, "width": 224}
    _processor("SiglipImageProcessor")(size=size, resample=2).save_pretrained(folder)


def build_xclip(folder: Path) -> None:
    """Microsoft's X-CLIP base, patches of 32, 8 frames."""
    import transformers

    config = transformers.XCLIPConfig(text_config={}, vision_config={}, projection_dim=512)
    _save(transformers.XCLIPModel(config), folder)
    mean, std = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
    made = _processor("VideoMAEImageProcessor")(image_mean=mean, image_std=std)
    made.save_pretrained(folder)


def build_vlm(folder: Path) -> None:
    """SmolVLM 2 with 500 M parameters, in bfloat16 as published."""
    import transformers
    from tests.vlm_models import train_byte_bpe

    tokenizer = train_byte_bpe(folder)
    text = {
        "model_type": "llama",
        "vocab_size": 49_280,
        "hidden_size": 960,
        "intermediate_size": 2560,
        "num_hidden_layers": 32,
        "num_attention_heads": 15,
        "num_key_value_heads": 5,
        "rms_norm_eps": 1e-5,
        "rope_theta": 100_000,
        "max_position_embeddings": 8192,
    }
    vision = {
        "hidden_size": 768,
        "intermediate_size": 3072,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "image_size": 512,
        "patch_size": 16,
    }
    config = transformers.SmolVLMConfig(
        text_config=text,
        vision_config=vision,
        scale_factor=4,
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        tie_word_embeddings=False,
    )
    model = transformers.SmolVLMForConditionalGeneration(config)
    _save(model.to(torch.bfloat16), folder)
    _processor("SmolVLMImageProcessor")(
        size={"longest_edge": 2048}, max_image_size={"longest_edge": 512}
    ).save_pretrained(folder)


def build_slowfast(folder: Path) -> None:
    """SlowFast R50 8x8 by PyTorchVideo's names."""
    save_file(SlowFastNetwork().state_dict(), folder / "slowfast.safetensors")


BUILDERS: Mapping[str, Callable[[Path], None]] = {
    "clip": build_clip,
    "siglip": build_siglip,
    "slowfast": build_slowfast,
    "xclip": build_xclip,
    "vlm": build_vlm,
}


def build(root: Path, name: str) -> Path:
    """Folder of a model, built if it is not there."""
    folder = root / name
    if not (folder / "done").exists():
        folder.mkdir(parents=True, exist_ok=True)
        torch.manual_seed(0)
        BUILDERS[name](folder)
        (folder / "done").touch()
    return folder


def _save(model: Any, folder: Path) -> None:
    model.eval().save_pretrained(folder)


def _processor(name: str) -> Any:
    import transformers

    return getattr(transformers, f"{name}Pil", None) or getattr(transformers, name)
