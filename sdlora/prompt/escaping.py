"""Escaping of any text for use as a prompt: all syntax of the prompt language is escaped."""

from __future__ import annotations

import re

# Signs, the beginnings of tags, the underscores around a wildcard, and the words BREAK and AND; the
# same as in scanner.py
_ACTIVE = re.compile(
    r"""
      (?= [\\()\[\]{}|$\#] )
    | (?= <[A-Za-z]\w*:[^<>]+> )
    | (?= _ ) (?: (?=__) | (?<=_) )
    | (?<![\w<:/\\.@\#-]) (?= (?i:lora|lyco):\w )
    | (?<![^\W_]) (?= (?:BREAK|AND)(?![^\W_]) )  # an underscore may be escaped itself
    """,
    re.VERBOSE,
)


def escape_prompt(text: str) -> str:
    r"""Return a prompt that is read as `text`, letter by letter.

    >>> escape_prompt("zibo (robot), c# key, <lora:other:1>")
    'zibo \\(robot\\), c\\# key, \\<lora:other:1>'
    """
    return _ACTIVE.sub(lambda _: "\\", text)
