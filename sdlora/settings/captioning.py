"""Settings of captioning by a model; no torch."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from sdlora.settings.base import Settings

NEEDS_ONNX = (
    "taggers need onnxruntime: run `pip install onnxruntime` in the environment of this program, "
    ".venv beside launch.py"
)


class DescribeSettings(Settings):
    """Let a model write captions. Without --write it only shows them."""

    data: str = Field(min_length=1, description="Folder of pictures, or the name of a set")
    by: Literal["blip", "florence2", "qwen_vl", "wd14"] = Field(
        "blip",
        title="Captioning model",
        description="Kind of captioning model: blip, florence2 and qwen_vl write sentences, "
        "wd14 writes tags",
    )
    model: str = Field(
        "", description="Folder or Hugging Face id of the model; empty: the default one"
    )
    every: bool = Field(False, description="Caption pictures that already have a caption as well")
    prefix: str = Field("", description="Text before every caption, such as the trigger word")
    question: str = Field(
        "Describe this picture in one sentence. Name what is to be seen, not its style.",
        description="Question for a model that takes one (qwen_vl)",
    )
    threshold: float = Field(
        0.35, gt=0, lt=1, title="Tag threshold", description="Lowest confidence of a tag (wd14)"
    )
    most_tokens: int = Field(
        75, ge=1, le=500, title="Max tokens", description="Maximum length of a caption in tokens"
    )
    batch_size: int = Field(4, ge=1, le=64, description="Pictures captioned at once")
    write: bool = Field(
        False, description="Write the captions; dataset captions --undo restores the old ones"
    )
