"""What is typed on command lines: sizes, and context modules with arguments."""

import ast
import re


def parse_size(text):
    """(height, width) of "HEIGHTxWIDTH", or of one number for both.

    Raises:
        ValueError: for anything else.
    """
    match = re.fullmatch(r"(\d+)(?:x(\d+))?", text.strip())
    if not match or int(match[1]) == 0 or match[2] == "0":
        raise ValueError(f"A size is HEIGHTxWIDTH, such as 97x97, or one number, not {text!r}")
    return int(match[1]), int(match[2] or match[1])


def parse_module(text):
    """(name, arguments) of a module as it is typed: "isa:partition=4:order=long".

    Raises:
        ValueError: for an unknown name, or an argument that the module does not take.
    """
    from isa_tf.layers import create_context

    name, *pairs = text.split(":")
    arguments = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals:
            raise ValueError(f"{text}: an argument is NAME=VALUE, not {pair!r}")
        try:
            arguments[key] = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            arguments[key] = value  # a word, such as long_short
    try:
        create_context(name, **arguments)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{text}: {error}") from error
    return name, arguments
