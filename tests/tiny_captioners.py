"""Tiny models that describe pictures: stock classes, random weights, made offline, saved as folders
as the hub has them."""

from collections.abc import Callable
from pathlib import Path

import torch
import transformers
from transformers import (
    BartTokenizer,
    BertTokenizerFast,
    BlipConfig,
    BlipForConditionalGeneration,
    BlipImageProcessorPil,
    BlipProcessor,
    CLIPImageProcessorPil,
    Florence2Config,
    Florence2ForConditionalGeneration,
    Florence2Processor,
    GenerationConfig,
    Qwen2Tokenizer,
    Qwen2VLImageProcessorPil,
)

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "a", "red", "ball", "sea", "night"]
LETTERS = [chr(number) for number in range(33, 127)] + ["Ġ", "Ċ"]  # GPT-2's blank and new line
MARKS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>"]
MARKS += ["<|image_pad|>", "<|video_pad|>"]
CHAT = """{% for one in messages %}<|im_start|>{{ one['role'] }}
{% for part in one['content'] %}{% if part['type'] == 'image' %}\
<|vision_start|><|image_pad|><|vision_end|>{% else %}{{ part['text'] }}{% endif %}{% endfor %}\
<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""
PIXELS = 32


def blip(folder: Path) -> None:
    """A BLIP that knows eleven words."""
    (folder / "vocab.txt").write_text("\n".join(WORDS))
    tokenizer = BertTokenizerFast(vocab=str(folder / "vocab.txt"))
    text = {
        "vocab_size": len(WORDS) + 1, "hidden_size": 16, "encoder_hidden_size": 16,
        "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2,
        "bos_token_id": len(WORDS), "pad_token_id": 0, "eos_token_id": 2, "sep_token_id": 3,
        "projection_dim": 16,
    }  # fmt: skip
    eyes = {
        "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "image_size": PIXELS,
        "num_attention_heads": 2, "patch_size": 8, "projection_dim": 16,
    }  # fmt: skip
    model = BlipForConditionalGeneration(
        BlipConfig(text_config=text, vision_config=eyes, projection_dim=16)
    )
    _save(model, folder, spread=2)
    images = BlipImageProcessorPil(size={"height": PIXELS, "width": PIXELS})
    BlipProcessor(images, tokenizer).save_pretrained(folder)


def florence2(folder: Path) -> None:
    """A Florence-2 that writes letter by letter."""
    words = ["<s>", "<pad>", "</s>", "<unk>", *LETTERS, "<mask>"]
    tokenizer = BartTokenizer(
        vocab={word: number for number, word in enumerate(words)},
        merges=[],
        extra_special_tokens={"image_token": "<image>"},
    )
    ends = {"bos_token_id": 0, "pad_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 2}
    forced = {"forced_bos_token_id": 0, "forced_eos_token_id": 2}
    text = {
        "model_type": "bart", "vocab_size": len(tokenizer), "d_model": 16, "encoder_layers": 1,
        "decoder_layers": 1, "encoder_attention_heads": 2, "decoder_attention_heads": 2,
        "encoder_ffn_dim": 32, "decoder_ffn_dim": 32, "max_position_embeddings": 256,
        **ends, **forced,
    }  # fmt: skip
    eyes = {
        "depths": (1, 1), "patch_size": (7, 3), "patch_stride": (4, 2), "patch_padding": (3, 1),
        "patch_prenorm": (False, True), "embed_dim": (8, 16), "num_heads": (2, 2),
        "num_groups": (2, 2), "window_size": 4, "projection_dim": 16, "max_position_embeddings": 20,
    }  # fmt: skip
    config = Florence2Config(
        text_config=text, vision_config=eyes, image_token_id=tokenizer.image_token_id
    )
    model = Florence2ForConditionalGeneration(config)
    model.generation_config = GenerationConfig(
        **ends, **forced, num_beams=3, no_repeat_ngram_size=3, early_stopping=True
    )
    _save(model, folder, spread=2, seed=4)
    images = CLIPImageProcessorPil(size={"height": PIXELS, "width": PIXELS}, do_center_crop=False)
    images.image_seq_length = (PIXELS // 8) ** 2 + 1
    Florence2Processor(images, tokenizer, post_processor_config={"pure_text": {}}).save_pretrained(
        folder
    )


def qwen(kind: str) -> Callable[[Path], None]:
    """A Qwen-VL that writes letter by letter; `kind` is what its classes begin with."""

    def make(folder: Path) -> None:
        tokenizer = Qwen2Tokenizer(
            vocab={letter: number for number, letter in enumerate(LETTERS)},
            merges=[],
            eos_token="<|im_end|>",
            pad_token="<|endoftext|>",
            additional_special_tokens=MARKS,
            chat_template=CHAT,
        )
        ids = dict(zip(MARKS, tokenizer.convert_tokens_to_ids(MARKS), strict=True))
        ends = {"eos_token_id": ids["<|im_end|>"], "pad_token_id": ids["<|endoftext|>"]}
        text = {
            "vocab_size": len(tokenizer), "hidden_size": 32, "intermediate_size": 32,
            "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1,
            "rope_parameters": {
                "rope_type": "default", "mrope_section": [2, 3, 3], "rope_theta": 1e4,
            },
            "max_position_embeddings": 4096, **ends,
        }  # fmt: skip
        patch = 16 if kind == "Qwen3VL" else 14
        config = getattr(transformers, f"{kind}Config")(
            text_config=text | ({"head_dim": 16} if kind == "Qwen3VL" else {}),
            vision_config=_QWEN_EYES[kind] | {"patch_size": patch, "num_heads": 2},
            image_token_id=ids["<|image_pad|>"], video_token_id=ids["<|video_pad|>"],
            vision_start_token_id=ids["<|vision_start|>"],
            vision_end_token_id=ids["<|vision_end|>"],
        )  # fmt: skip
        model = getattr(transformers, f"{kind}ForConditionalGeneration")(config)
        both = [ids["<|im_end|>"], ids["<|endoftext|>"]]
        model.generation_config = GenerationConfig(
            **(ends | {"eos_token_id": both}), do_sample=True, temperature=1e-6, top_k=1,
            repetition_penalty=1.05,
        )  # fmt: skip
        _save(model, folder)
        tokenizer.save_pretrained(folder)
        size = {"shortest_edge": 56 * 56, "longest_edge": 112 * 112}
        Qwen2VLImageProcessorPil(patch_size=patch, size=size).save_pretrained(folder)

    return make


_QWEN_EYES = {
    "Qwen2VL": {"depth": 1, "embed_dim": 16, "hidden_size": 32, "mlp_ratio": 2},
    "Qwen2_5_VL": {
        "depth": 1, "hidden_size": 16, "intermediate_size": 32, "out_hidden_size": 32,
        "fullatt_block_indexes": [0],
    },
    "Qwen3VL": {
        "depth": 2, "hidden_size": 16, "intermediate_size": 32, "out_hidden_size": 32,
        "num_position_embeddings": 64, "deepstack_visual_indexes": [0],
    },
}  # fmt: skip


def _save(model: torch.nn.Module, folder: Path, spread: float = 1, seed: int = 0) -> None:
    """With weights so large that it says something, and another thing of another picture."""
    rng = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in model.parameters():
            weight.normal_(0, spread, generator=rng)
    model.save_pretrained(folder)  # type: ignore[operator]
