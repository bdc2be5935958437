"""Tiny, randomly drawn SmolVLM, Idefics 3 and X-CLIP in the hub's own file format, and references.

References are what transformers computes with the model's own processor and tokenizer.
"""

from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tests.encoders.clip_models import SENTENCES, Picture, pil_class, train_bpe

# Untyped: which classes there are differs between the versions of transformers.
transformers: Any = import_module("transformers")

VLM_KINDS = ("smolvlm", "idefics3")
CLASSES = {"smolvlm": "SmolVLM", "idefics3": "Idefics3"}
LAYERS = 5
SIDE, PATCH, SCALE = 48, 8, 2
IMAGE_TOKENS = (SIDE // PATCH // SCALE) ** 2
SPECIAL = (
    "<|im_start|>",
    "<end_of_utterance>",
    "<fake_token_around_image>",
    "<image>",
    "<global-img>",
)


def train_byte_bpe(folder: Path) -> Any:
    """A tokenizer.json as SmolLM 2 has it, with the tokens that images need."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    tokenizer: Any = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(False)]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=340,
        special_tokens=list(SPECIAL),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(SENTENCES * 3, trainer)
    made = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=SPECIAL[0],
        eos_token=SPECIAL[1],
        pad_token=SPECIAL[1],
        additional_special_tokens=list(SPECIAL[2:]),
    )
    made.save_pretrained(folder)
    return made


def build_vlm(folder: Path, kind: str) -> Path:
    """Write a tiny model of a kind, whole: weights, tokenizer, preprocessor."""
    folder.mkdir(parents=True)
    torch.manual_seed(VLM_KINDS.index(kind))
    tokenizer = train_byte_bpe(folder)
    text = {
        "model_type": "llama",
        "vocab_size": len(tokenizer),
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "pad_token_id": tokenizer.pad_token_id,
    }
    vision = {
        "hidden_size": 40,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": SIDE,
        "patch_size": PATCH,
    }
    config = getattr(transformers, f"{CLASSES[kind]}Config")(
        text_config=text,
        vision_config=vision,
        scale_factor=SCALE,
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
    )
    model = getattr(transformers, f"{CLASSES[kind]}ForConditionalGeneration")(config)
    _spread(model)
    model.eval().save_pretrained(folder)
    vlm_processor(kind).save_pretrained(folder)
    return folder


def vlm_processor(kind: str) -> Any:
    """The model's own image processor, on Pillow; stored as the hub has it, with tiles."""
    made = pil_class(f"{CLASSES[kind]}ImageProcessor")
    return made(size={"longest_edge": 4 * SIDE}, max_image_size={"longest_edge": SIDE})


def build_xclip(folder: Path) -> Path:
    """Write a tiny X-CLIP, whole: weights, tokenizer, preprocessor."""
    folder.mkdir(parents=True)
    torch.manual_seed(7)
    small = {"intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
    size = train_bpe(folder)
    config = transformers.XCLIPConfig(
        text_config={**small, "hidden_size": 32, "vocab_size": size},
        vision_config={
            **small,
            "hidden_size": 40,
            "image_size": SIDE,
            "patch_size": PATCH,
            "num_frames": 4,
            "mit_hidden_size": 24,
            "mit_intermediate_size": 48,
            "mit_num_attention_heads": 2,
        },
        projection_dim=24,
        prompt_num_attention_heads=2,
    )
    model = transformers.XCLIPModel(config)
    _spread(model)
    model.eval().save_pretrained(folder)
    xclip_processor().save_pretrained(folder)
    return folder


def xclip_processor() -> Any:
    """The processor that the published model names, on Pillow."""
    return pil_class("VideoMAEImageProcessor")(
        size={"shortest_edge": SIDE},
        crop_size={"height": SIDE, "width": SIDE},
        image_mean=[0.485, 0.456, 0.406],
        image_std=[0.229, 0.224, 0.225],
    )


def reference_vlm(
    folder: Path, kind: str, layer: int, prompt: str, pictures: list[Picture]
) -> NDArray[np.float32]:
    """Mean state of the image tokens, from the whole model with its own processor.

    The prompt holds ``<image>`` once, where the image stands.
    """
    tokenizer = transformers.PreTrainedTokenizerFast.from_pretrained(folder)
    # SmolVLM's own needs torchvision for its videos; for a picture both write the same text.
    processor = transformers.Idefics3Processor(
        vlm_processor(kind), tokenizer, image_seq_len=IMAGE_TOKENS
    )
    model = _whole_vlm(folder, kind)
    rows = []
    for picture in pictures:
        inputs = processor(
            text=[prompt],
            images=[[picture]],
            do_image_splitting=False,
            input_data_format="channels_last",
            return_tensors="pt",
        )
        with torch.no_grad():
            states = model(**inputs, output_hidden_states=True).hidden_states[layer]
        image = inputs["input_ids"][0] == model.config.image_token_id
        assert int(image.sum()) == IMAGE_TOKENS
        rows.append(states[0, image].mean(dim=0).numpy())
    return np.stack(rows)


def reference_turn(folder: Path, kind: str, layer: int, text: str) -> NDArray[np.float32]:
    """States of all tokens of a text, from the whole model."""
    tokenizer = transformers.PreTrainedTokenizerFast.from_pretrained(folder)
    inputs = tokenizer(text, return_tensors="pt", add_special_tokens=False)
    with torch.no_grad():
        output = _whole_vlm(folder, kind)(input_ids=inputs["input_ids"], output_hidden_states=True)
    states: NDArray[np.float32] = output.hidden_states[layer][0].numpy()
    return states


def reference_xclip(folder: Path, clips: list[list[Picture]]) -> NDArray[np.float32]:
    """Embeddings of clips, with the model's own preprocessing."""
    model = transformers.XCLIPModel.from_pretrained(folder).eval()
    rows = []
    for frames in clips:
        inputs = xclip_processor()([frames], return_tensors="pt", input_data_format="channels_last")
        with torch.no_grad():
            found = model.get_video_features(**inputs)
        rows.append(getattr(found, "pooler_output", found)[0].numpy())
    return np.stack(rows)


def _whole_vlm(folder: Path, kind: str) -> Any:
    name = f"{CLASSES[kind]}ForConditionalGeneration"
    return getattr(transformers, name).from_pretrained(folder).eval()


def _spread(model: Any) -> None:
    # As drawn, everything is so small that all pictures look alike.
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(0, 0.2)
