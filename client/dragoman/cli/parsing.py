"""Commands whose arguments are texts, and texts may begin with a dash."""

import re
from difflib import get_close_matches
from typing import Any

from typer.core import TyperCommand, TyperOption

# Names of options begin with a letter. A line of dialogue, "- Good morning.", or a number does not.
_LIKE_AN_OPTION = re.compile(r"--?[A-Za-z]")


class TextCommand(TyperCommand):
    """Takes what begins with a dash for a text unless a letter follows, as in the name of an option.

    A name that is none is wrong usage, and so is an option given twice of which the first would
    not count.
    """

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Reads the command line.

        Raises:
            typer.BadParameter or another usage error: it cannot be read.
        """
        self._check_options(ctx, args)
        ctx.ignore_unknown_options = True  # those that are left are texts
        return super().parse_args(ctx, args)

    def _check_options(self, ctx: Any, args: list[str]) -> None:
        options = {name: param for param in self.get_params(ctx) for name in (*param.opts, *param.secondary_opts)}
        seen: set[str] = set()
        tokens = iter(args)
        for token in tokens:
            if token == "--":
                return
            name, has_value, _ = token.partition("=")
            option = options.get(name)
            if isinstance(option, TyperOption):
                if name in seen and not (option.multiple or option.is_flag):
                    ctx.fail(f"The option {name} is given twice.")
                seen.add(name)
                if not (has_value or option.is_flag):
                    next(tokens, None)
            elif _LIKE_AN_OPTION.match(token):
                similar = "".join(f" Did you mean {other}?" for other in get_close_matches(name, options, n=1))
                ctx.fail(f"There is no option '{name}'.{similar} Put -- before a text that begins with a dash.")
