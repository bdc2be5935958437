"""Tiny, randomly drawn models of the CLIP family in the hub's own file format, and references.

References are what transformers computes with the model's own processor and tokenizer.
"""

import json
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

# Untyped: which classes there are differs between the versions of transformers.
transformers: Any = import_module("transformers")

Picture = NDArray[np.uint8]

# Tokens that the tiny SigLIPs read.
LIMIT = 48
SENTENCES = [
    "a red circle bounces up and down",
    "the dog's ball doesn't roll away",
    "someone opens the refrigerator door and smiles",
    "two people are dancing in the kitchen",
]
KINDS = ("clip", "siglip", "siglip2", "naflex")


def train_bpe(folder: Path) -> int:
    """CLIP's tokenizer with a vocabulary of its own; returns its size."""
    from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers

    tokenizer: Any = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    tokenizer.normalizer = normalizers.Lowercase()
    words = Regex(r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(words, "removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=340, end_of_word_suffix="</w>", initial_alphabet=letters, show_progress=False
    )
    tokenizer.train_from_iterator(SENTENCES * 3, trainer)
    model = json.loads(tokenizer.to_str())["model"]
    pieces = [*model["vocab"], *(letter + "</w>" for letter in letters)]
    special = ["<|startoftext|>", "<|endoftext|>"]
    vocab = {piece: n for n, piece in enumerate([*dict.fromkeys(pieces), *special])}
    merges = "\n".join(" ".join(pair) for pair in model["merges"])
    (folder / "vocab.json").write_text(json.dumps(vocab), encoding="utf-8")
    (folder / "merges.txt").write_text(f"#version: 0.2\n{merges}\n", encoding="utf-8")
    settings = {
        "tokenizer_class": "CLIPTokenizer",
        "model_max_length": 77,
        "bos_token": special[0],
        **dict.fromkeys(("eos_token", "unk_token", "pad_token"), special[1]),
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    return len(vocab)


def train_sentencepiece(folder: Path, kind: str) -> int:
    """A tokenizer.json as SigLIP (unigram) or SigLIP 2 (BPE of Gemma) has it."""
    from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers
    from tokenizers.processors import TemplateProcessing

    special, letters = ["<pad>", "<eos>", "<unk>"], list("abcdefghijklmnopqrstuvwxyz0123456789'▁")
    tokenizer: Any
    if kind == "siglip":
        tokenizer = Tokenizer(models.Unigram())
        tokenizer.normalizer = normalizers.Sequence(
            [
                normalizers.Lowercase(),
                normalizers.Replace(Regex(r"[!-/:-@\[-`{-~]"), ""),
                normalizers.Replace(Regex(r"\s+"), " "),
                normalizers.Strip(),
            ]
        )
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
        trainer: Any = trainers.UnigramTrainer(
            vocab_size=150,
            special_tokens=special,
            unk_token=special[2],
            initial_alphabet=letters,
            show_progress=False,
        )
    else:
        tokenizer = Tokenizer(models.BPE(unk_token=special[2], fuse_unk=True))
        tokenizer.normalizer = normalizers.Replace(" ", "▁")
        # Real merges do not cross words; with so few sentences they would.
        tokenizer.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_next")
        trainer = trainers.BpeTrainer(
            vocab_size=150, special_tokens=special, initial_alphabet=letters, show_progress=False
        )
    tokenizer.train_from_iterator(SENTENCES * 3, trainer)
    tokenizer.post_processor = TemplateProcessing(
        single="$A <eos>", special_tokens=[("<eos>", tokenizer.token_to_id("<eos>"))]
    )
    if kind != "siglip":
        tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    tokenizer.save(str(folder / "tokenizer.json"))
    # The class that the hub's SigLIP names needs sentencepiece; ours must do without.
    settings = {
        "tokenizer_class": "SiglipTokenizer" if kind == "siglip" else "GemmaTokenizer",
        "pad_token": "<pad>",
        "eos_token": "<eos>",
        "unk_token": "<unk>",
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    return int(tokenizer.get_vocab_size())


def build_model(folder: Path, kind: str, *, text_dim: int = 32, dims: int = 24) -> Path:
    """Write a tiny model of a kind, whole: weights, tokenizer, preprocessor.

    The widths of a token and of an embedding are CLIP's alone.
    """
    folder.mkdir(parents=True)
    torch.manual_seed(KINDS.index(kind))
    small = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    text: dict[str, Any] = {**small, "num_attention_heads": 2}
    vision: dict[str, Any] = {**text, "hidden_size": 40, "patch_size": 8}
    if kind == "clip":
        size = train_bpe(folder)
        text |= {
            "hidden_size": text_dim,
            "vocab_size": size,
            "bos_token_id": size - 2,
            "eos_token_id": size - 1,
        }
        config = transformers.CLIPConfig(
            text_config=text, vision_config={**vision, "image_size": 48}, projection_dim=dims
        )
        model = transformers.CLIPModel(config)
    else:
        text |= {"vocab_size": train_sentencepiece(folder, kind), "max_position_embeddings": LIMIT}
        text |= {"projection_size": 40, "pad_token_id": 0, "eos_token_id": 1, "bos_token_id": 2}
        if kind == "naflex":
            vision |= {"num_patches": 36}
            config = transformers.Siglip2Config(text_config=text, vision_config=vision)
            model = transformers.Siglip2Model(config)
        else:
            vision |= {"image_size": 48}
            config = transformers.SiglipConfig(text_config=text, vision_config=vision)
            model = transformers.SiglipModel(config)
    # As drawn, everything is so small that all pictures look alike.
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(0, 0.2)
    model.eval().save_pretrained(folder)
    own_processor(kind).save_pretrained(folder)
    return folder


def own_processor(kind: str) -> Any:
    """The model's own image processor, on Pillow."""
    if kind == "clip":
        made = pil_class("CLIPImageProcessor")
        return made(size={"shortest_edge": 48}, crop_size={"height": 48, "width": 48})
    if kind == "naflex":
        return pil_class("Siglip2ImageProcessor")(patch_size=8, max_num_patches=64)
    return pil_class("SiglipImageProcessor")(
        size={"height": 48, "width": 48}, resample=2 if kind == "siglip2" else 3
    )


def pil_class(name: str) -> Any:
    return getattr(transformers, f"{name}Pil", None) or getattr(transformers, name)


def photo(height: int, width: int) -> Picture:
    """Smooth shading, fine texture, a hard edge and sensor noise."""
    rng = np.random.default_rng(height * width)
    y, x = np.mgrid[:height, :width]
    waves = [np.sin(x / 17 + y / 31), np.cos(x * y / 900), 2 * y / height - 1]
    picture = 127 + 100 * np.stack(waves, axis=-1)
    picture[height // 4 : height // 2, width // 3 : width // 2] = (250, 10, 30)
    return np.clip(picture + rng.normal(0, 8, picture.shape), 0, 255).astype(np.uint8)


def noise(height: int, width: int) -> Picture:
    rng = np.random.default_rng(height + width)
    return rng.integers(0, 256, (height, width, 3), dtype=np.uint8)


def cosine(a: NDArray[Any], b: NDArray[Any]) -> float:
    """The smallest cosine of rows that belong together."""
    lengths = np.linalg.norm(a, axis=-1) * np.linalg.norm(b, axis=-1)
    return float(((a * b).sum(axis=-1) / lengths).min())


def reference_embedding(folder: Path, kind: str, pictures: list[Picture]) -> NDArray[np.float32]:
    """Image embeddings as transformers computes them, with the model's own preprocessing."""
    name = {"clip": "CLIPModel", "naflex": "Siglip2Model"}.get(kind, "SiglipModel")
    model = getattr(transformers, name).from_pretrained(folder).eval()
    rows = []
    for picture in pictures:
        inputs = own_processor(kind)(
            picture, return_tensors="pt", input_data_format="channels_last"
        )
        with torch.no_grad():
            found = model.get_image_features(**inputs)
        rows.append(getattr(found, "pooler_output", found)[0].numpy())
    return np.stack(rows)


def reference_text(folder: Path, kind: str, query: str) -> tuple[NDArray[np.float32], ...]:
    """Last hidden state and embedding of one query, as transformers computes them."""
    name = {"clip": "CLIPModel", "naflex": "Siglip2Model"}.get(kind, "SiglipModel")
    model = getattr(transformers, name).from_pretrained(folder).eval()
    reader = transformers.AutoTokenizer if kind == "clip" else transformers.PreTrainedTokenizerFast
    tokenizer = reader.from_pretrained(folder)
    padding = {} if kind == "clip" else {"padding": "max_length", "max_length": LIMIT}
    inputs = tokenizer([query.lower()], return_tensors="pt", return_attention_mask=True, **padding)
    count = int(inputs["attention_mask"].sum())
    with torch.no_grad():
        output = model.text_model(input_ids=inputs["input_ids"])
        pooled = model.get_text_features(input_ids=inputs["input_ids"])
    pooled = getattr(pooled, "pooler_output", pooled)
    return output.last_hidden_state[0, :count].numpy(), pooled[0].numpy()
