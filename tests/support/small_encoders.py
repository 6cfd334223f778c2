"""Small encoders with random weights, saved to directories as the libraries save theirs."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from dreamprvr_ray.video.encoders.torchvision_operators import make_torchvision_importable

WORDS = ["a", "the", "red", "blue", "square", "circle", "moves", "appears", "leaves", "and", "then", "dog"]
LIMIT = 16  # tokens of a sentence


def save_open_clip(directory: Path) -> Path:
    """A CLIP of open_clip with 24 values."""
    make_torchvision_importable()
    import open_clip
    from safetensors.torch import save_file

    vision = {"image_size": 32, "layers": 2, "width": 64, "patch_size": 16}
    text = {"context_length": LIMIT, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2}
    model = {"embed_dim": 24, "vision_cfg": vision, "text_cfg": text}
    images = {"mean": [0.5, 0.4, 0.3], "std": [0.3, 0.2, 0.25], "interpolation": "bicubic", "resize_mode": "shortest"}
    directory.mkdir(parents=True)
    config = {"model_cfg": model, "preprocess_cfg": images}
    (directory / "open_clip_config.json").write_text(json.dumps(config))
    torch.manual_seed(0)
    save_file(open_clip.CLIP(**model).state_dict(), directory / "open_clip_model.safetensors")  # type: ignore[arg-type]
    return directory


def save_clip(directory: Path) -> Path:
    """A CLIP of transformers with 24 values."""
    make_torchvision_importable()
    from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel

    tokenizer = _tokenizer(pad="<end>", left=False)
    text = {
        "vocab_size": len(tokenizer), "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
        "num_attention_heads": 2, "max_position_embeddings": LIMIT, "eos_token_id": tokenizer.eos_token_id,
        "bos_token_id": tokenizer.bos_token_id, "pad_token_id": tokenizer.pad_token_id,
    }  # fmt: skip
    torch.manual_seed(0)
    config = CLIPConfig(text_config=text, vision_config=_vision(), projection_dim=24)
    CLIPModel(config).save_pretrained(directory)
    size = {"shortest_edge": 32}
    CLIPImageProcessor(size=size, crop_size={"height": 32, "width": 32}).save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory


def save_siglip(directory: Path) -> Path:
    """A SigLIP of transformers with 32 values, whose tokenizer pads on the left and gives the model no mask."""
    make_torchvision_importable()
    from transformers import SiglipConfig, SiglipImageProcessor, SiglipModel

    tokenizer = _tokenizer(pad="<pad>", left=True)
    tokenizer.model_input_names = ["input_ids"]
    text = {
        "vocab_size": len(tokenizer), "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
        "num_attention_heads": 2, "max_position_embeddings": LIMIT, "projection_size": 32,
        "pad_token_id": tokenizer.pad_token_id, "eos_token_id": tokenizer.eos_token_id,
        "bos_token_id": tokenizer.bos_token_id,
    }  # fmt: skip
    torch.manual_seed(0)
    SiglipModel(SiglipConfig(text_config=text, vision_config=_vision())).save_pretrained(directory)
    SiglipImageProcessor(size={"height": 32, "width": 32}).save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory


def _vision() -> dict[str, int]:
    return {
        "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2,
        "image_size": 32, "patch_size": 16,
    }  # fmt: skip


def _tokenizer(pad: str, left: bool):  # type: ignore[no-untyped-def]
    """A tokenizer that splits at blanks and puts a token in front of and behind each sentence."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    vocabulary = {word: number for number, word in enumerate(["<pad>", "<unknown>", "<begin>", "<end>", *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unknown>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    begin, end = ("<begin>", vocabulary["<begin>"]), ("<end>", vocabulary["<end>"])
    tokenizer.post_processor = processors.TemplateProcessing(single="<begin> $A <end>", special_tokens=[begin, end])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<begin>",
        eos_token="<end>",
        unk_token="<unknown>",
        pad_token=pad,
        padding_side="left" if left else "right",
    )
