"""Prompt syntax: LoRA tags, schedules, emphasis, wildcards and styles.

A prompt goes through these stages, each a function of its own, none of which needs the model:

    1. comments      strip_comments      # to the end of the line goes
    2. styles        apply_styles        a style's text comes around it
    3. wildcards     expand_wildcards    __name__ and {a|b} are drawn from the image's seed
    4. tags          parse_prompt        LoRA tags are taken out, with when they act
    5. schedules     schedule            [from:to:when] and [a|b]: which text at which steps
    6. composition   compose             texts joined by AND, and their weights
    7. emphasis      parse_emphasis      (word:1.2), [word], BREAK; escapes lose their backslash

    8. chunks        chunked             75 tokens at a time, as a text encoder reads them

`expand` runs the first three, `PromptResources.expand` the same with a workspace's resources;
`preview_prompt` runs all the others, for display. All stages treat a LoRA tag as one token, take
time linear in the length of the text and set no limit to nesting.
"""

from sdlora.prompt.chunks import Tokenize, chunked
from sdlora.prompt.emphasis import BREAK, compose, parse_emphasis
from sdlora.prompt.expansion import expand, strip_comments
from sdlora.prompt.preview import PromptPreview, preview_prompt
from sdlora.prompt.resources import PromptResources
from sdlora.prompt.schedules import schedule
from sdlora.prompt.styles import Style, apply_styles, read_styles
from sdlora.prompt.tags import LoraTag, Prompt, parse_prompt
from sdlora.prompt.timing import Point, StepRange, StepTime
from sdlora.prompt.tokenizer import open_tokenizer
from sdlora.prompt.wildcard_lists import WildcardFolder
from sdlora.prompt.wildcards import Expanded, Lists, expand_wildcards

__all__ = [
    "BREAK",
    "Expanded",
    "Lists",
    "LoraTag",
    "Point",
    "Prompt",
    "PromptPreview",
    "PromptResources",
    "StepRange",
    "StepTime",
    "Style",
    "Tokenize",
    "WildcardFolder",
    "apply_styles",
    "chunked",
    "compose",
    "expand",
    "expand_wildcards",
    "open_tokenizer",
    "parse_emphasis",
    "parse_prompt",
    "preview_prompt",
    "read_styles",
    "schedule",
    "strip_comments",
]
