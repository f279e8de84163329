"""That any prompt is read, and in linear time: `python -m benchmarks.prompts`.

Draws prompts from the signs and words of the prompt language, takes each through every stage and
back from a picture's text, and counts what was raised. Then times texts of nested, unclosed and
repeated signs at growing lengths.
"""

from __future__ import annotations

import gc
import random
import time
from collections.abc import Callable
from functools import cache

from benchmarks.report import asked, show
from sdlora.image_metadata.infotext import infotext
from sdlora.image_metadata.reader import parse_infotext
from sdlora.prompt import expand, parse_prompt, preview_prompt
from sdlora.prompt.chunks import Unit

PIECES = (
    *("a cat", "house", "1girl", "猫", "🐈", " ", ", ", "\n", "\r", "\t", "\0", "é", "\u202e"),
    *("<lora:", "<lora:neon:0.8>", "<lyco:a b:te=1:unet=0>", "lora:neon", "lora:", "<LORA:", ">"),
    *(":0.8>", ":0@0,1@0.5>", ":hr=1>", ":nan>", "<hypernet:x:1>", "<", "@", "=", "te=", "dyn="),
    *("(", ")", "[", "]", "{", "}", "|", ":", "\\", "#", "$$", "::", "__", "__pet__", "2$$"),
    *(":1.2)", ":0.5]", "::5]", ":1e999]", ":1..2)", "0.5", "1", "-", "+", ".", "1e9", "9" * 40),
    *("__a b__", "__*__", "{2-$$", "{-2$$", "${x=", "<lora:neon:{0.5|1}>", "<lora:__pet__:1>"),
    *("embedding:bad", ")1.3", "++", "(lora:a:0.8:1.2)"),
    *("BREAK", " BREAK ", "AND", " AND ", "Negative prompt:", "Steps: 1, Seed: 2, Size: 8x8", '"'),
)  # fmt: skip
LISTS = {"pet": ["cat", "{dog|__pet__}", "2::<lora:neon:1>"]}
# for linear time: text that opens, closes, repeats or never ends
UNITS = (
    *("(", "[", "{", "<", "\\", "#", "|", ":", ")", "]", "}", "__", "__a", "[a:", "{a|", "((a:1"),
    *(
        "<lora:",
        "<lora:a:1>, ",
        "lora:a ",
        "lora:a....",
        "[<lora:a:1>:",
        ":0.5]",
        "a:1.2)",
        "[a|b]",
    ),
    *("BREAK ", "a AND ", "a cat, ", "{2$$", "{3::", "Steps: 1, ", 'a: "', "a: [", "\n"),
)
# 100,000 letters of all that a prompt may hold; to be read within a second
LONG = "a cat, <lora:a:{0.5|0.7}>, (red:1.2) __pet__ [a:b:0.5] embedding:x AND " * 1400
FIELDS = {"Steps": 20, "Sampler": "Euler", "Seed": 1, "Size": "64x64"}


def letters(text: str) -> list[Unit]:
    """A tokenizer that costs nothing: a token per letter."""
    return [_letter(letter) for letter in text]


@cache
def _letter(letter: str) -> Unit:
    return Unit((ord(letter),), letter)


def every_stage(text: str, seed: int = 0, steps: int = 4) -> None:
    """A prompt's whole way: expanded, read, scheduled, composed, weighed, cut into chunks, written
    and recalled."""
    expanded = expand(text, seed, ["{prompt}, oil"], LISTS.get)
    prompt = parse_prompt(expanded.text)
    for lora in prompt.loras:
        lora.at(steps - 1, steps)
    preview_prompt(expanded.text, steps, letters)
    parse_infotext(infotext(text, prompt.text, FIELDS))


def fuzzed(count: int, seed: int = 0) -> list[str]:
    """The prompts of `count` that raised, shortest first; none, if all is well."""
    dice = random.Random(seed)
    raised = []
    for number in range(count):
        text = "".join(dice.choices(PIECES, k=dice.randrange(1, 16)))
        try:
            every_stage(text, number)
        except (ArithmeticError, LookupError, RuntimeError, TypeError, ValueError) as error:
            raised.append(f"{text!r}: {error!r}")
    return sorted(raised, key=len)


def seconds(work: Callable[[str], None], text: str) -> float:
    """The shortest of three runs, in processor time; without the garbage collector, as `timeit`
    does it, for that looks at everything alive again and again."""
    times = []
    gc.disable()
    try:
        for _ in range(3):
            began = time.process_time()
            work(text)
            times.append(time.process_time() - began)
    finally:
        gc.enable()
    return min(times)


def growth(unit: str, letters: int) -> float:
    """How many times longer twice the text takes, from a text and one that is eight times as long:
    over three doublings a busy machine's unevenness counts less."""
    text = unit * (letters // len(unit))
    return (seconds(every_stage, text * 8) / seconds(every_stage, text)) ** (1 / 3)


def main() -> None:
    """Fuzz and time; both printed as JSON."""
    options = asked(__doc__, prompts=1_000_000, letters=10_000)
    began = time.monotonic()
    raised = fuzzed(options.prompts)
    show(
        {
            "prompts": options.prompts,
            "raised": len(raised),
            "shortest": raised[:5],
            "seconds": round(time.monotonic() - began),
            "hundred_kb_s": round(seconds(every_stage, LONG[:100_000]), 2),
            "letters": options.letters,
            "twice_takes_times": {unit: round(growth(unit, options.letters), 2) for unit in UNITS},
        }
    )


if __name__ == "__main__":
    main()
