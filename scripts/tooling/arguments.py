# SPDX-License-Identifier: GPL-2.0
"""Command lines of the tools: commands, and values of options."""

import argparse
import contextlib
import math
from collections.abc import Callable

# These, as the first word, are commands too.
ALSO = {"--metrics": "metrics"}


class Commands:
    """A parser of commands, each of which has a function and options of its own."""

    def __init__(self, name: str, text: str, epilog: str, *common: argparse.ArgumentParser):
        """`common` are options that all commands have."""
        self._options = {
            "epilog": epilog,
            "formatter_class": argparse.RawDescriptionHelpFormatter,
        }
        self._common = common
        self.parser = argparse.ArgumentParser(prog=name, description=text, **self._options)
        self._commands = self.parser.add_subparsers(required=True, metavar="COMMAND")

    def add(
        self, name: str, function: Callable, text: str, *parents: argparse.ArgumentParser
    ) -> argparse.ArgumentParser:
        """A command. No option may be abbreviated: with the next version it may be another's."""
        added = self._commands.add_parser(
            name,
            parents=[*self._common, *parents],
            help=text,
            description=text[0].upper() + text[1:] + ".",
            allow_abbrev=False,
            **self._options,
        )
        added.set_defaults(function=function)
        return added

    def parse(self, words: list[str]) -> argparse.Namespace:
        """A command line; what is wrong with it ends the program."""
        return self.parser.parse_args([ALSO.get(word, word) for word in words[:1]] + words[1:])


def seconds(text: str) -> float:
    """A number of seconds."""
    with contextlib.suppress(ValueError):
        if 0 < float(text) < math.inf:
            return float(text)
    raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds")


def count(text: str) -> int:
    """How often, 1 at least."""
    if not (text.isascii() and text.isdecimal() and int(text) >= 1):
        raise argparse.ArgumentTypeError(f"{text!r} is not how often: 1 or more")
    return int(text)


def port(text: str) -> int:
    """A number that a port can have."""
    if not (text.isdecimal() and 1 <= int(text) <= 65535):
        raise argparse.ArgumentTypeError(f"{text!r} is no port: 1 to 65535")
    return int(text)


def named_value(text: str) -> tuple[str, str]:
    """The sides of NAME=VALUE."""
    name, equals, value = text.partition("=")
    if not (name and equals and value):
        raise argparse.ArgumentTypeError(f"{text!r}: should be NAME=VALUE")
    return name, value
