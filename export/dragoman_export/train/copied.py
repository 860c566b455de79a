"""Invented text that a translation copies: names, numbers, placeholders, addresses, paths, code."""

import random
import string
import tomllib
from collections.abc import Callable, Mapping
from pathlib import Path

_LISTS: Mapping[str, str] = tomllib.loads(Path(__file__).with_suffix(".toml").read_text(encoding="utf-8"))
MALE_NAMES, FEMALE_NAMES, SURNAMES = (_LISTS[name].split() for name in ("male_names", "female_names", "surnames"))
_WORDS, _SYLLABLES = _LISTS["words"].split(), _LISTS["syllables"].split()
_DOMAINS, _EXTENSIONS, _PROGRAMS = (_LISTS[name].split() for name in ("domains", "extensions", "programs"))

Rng = random.Random


def invented_name(rng: Rng) -> str:
    """A capitalised word that no corpus has, such as the name of a product."""
    word = "".join(rng.choices(_SYLLABLES, k=rng.randint(2, 4))) + rng.choice(["", "", "n", "r", "x", "l"])
    return word.capitalize() if rng.random() < 0.85 else word[:3].upper() + rng.choice(["", "-2", "3000", " X"])


def person(rng: Rng, female: bool) -> str:
    """A first name, at times with a surname."""
    first = rng.choice(FEMALE_NAMES if female else MALE_NAMES)
    return f"{first} {rng.choice(SURNAMES)}" if rng.random() < 0.3 else first


def number(rng: Rng, num_digits: int | None = None) -> str:
    """A whole number above 1 without a leading zero; of one to seven digits unless their number is given."""
    num_digits = num_digits or rng.choices(range(1, 8), weights=(3, 6, 5, 5, 3, 2, 1))[0]
    return str(rng.randint(2 if num_digits == 1 else 10 ** (num_digits - 1), 10**num_digits - 1))


def placeholder(rng: Rng) -> str:
    """A placeholder that a program fills in: `{0}`, `{name}`, `%s`, `%1$d`, `${HOME}`, `{{ value }}`."""
    word = _identifier(rng)
    return rng.choice(
        [
            f"{{{rng.randint(0, 9)}}}",
            f"{{{rng.randint(0, 9)}}}",
            f"{{{word}}}",
            f"{{{word}}}",
            "%s",
            "%s",
            "%d",
            f"%{rng.randint(1, 5)}${rng.choice('sd')}",
            f"%{rng.randint(1, 9)}",
            f"%({word})s",
            f"${{{word.upper()}}}",
            f"${word}",
            f"{{{{ {word} }}}}",
            f"<{word}>",
        ]
    )


def count_placeholder(rng: Rng) -> str:
    """A placeholder for a number."""
    return rng.choice(["%d", "%d", "%i", "{0}", "{1}", "{n}", "{count}", "{num_files}", "{total}", "%1$d"])


def index(rng: Rng) -> str:
    """The number of an item of a list."""
    return str(rng.randint(1, 99))


def url(rng: Rng) -> str:
    """An address on the web."""
    host = rng.choice(["", "", "", "www."]) + _host(rng)
    if rng.random() < 0.1:
        host = f"localhost:{rng.randint(1000, 9999)}"
    path = "".join(f"/{_slug(rng)}" for _ in range(rng.choices(range(5), weights=(3, 4, 3, 2, 1))[0]))
    query = f"?{_word(rng)}={rng.choice([_word(rng), str(rng.randint(1, 9999))])}" if rng.random() < 0.2 else ""
    anchor = f"#{_slug(rng)}" if rng.random() < 0.1 else ""
    scheme = "" if host.startswith("www.") and rng.random() < 0.5 else rng.choice(["https://", "https://", "http://"])
    return scheme + host + path + query + anchor


def email(rng: Rng) -> str:
    """An e-mail address."""
    first = rng.choice([*MALE_NAMES, *FEMALE_NAMES]).lower()
    first = "".join(c for c in first if c in string.ascii_lowercase) or "info"
    local = rng.choice(
        [
            first,
            _word(rng),
            f"{first}.{_syllables(rng)}",
            f"{first[0]}.{_syllables(rng)}",
            f"{first}{rng.randint(1, 99)}",
        ]
    )
    return f"{local}@{_host(rng)}"


def path(rng: Rng) -> str:
    """A path of a file or folder."""
    parts = [_slug(rng) for _ in range(rng.randint(1, 3))]
    name = f"{_slug(rng)}.{rng.choice(_EXTENSIONS)}"
    return rng.choice(
        [
            "/" + "/".join([rng.choice(["etc", "home", "usr", "var", "opt", "tmp"]), *parts, name]),
            "/".join([*parts, name]),
            "./" + name,
            "~/" + "/".join([*parts, name]),
            "C:\\" + "\\".join([part.capitalize() for part in parts]),
            name,
            name,
        ]
    )


def code(rng: Rng) -> str:
    """A piece of code or a command, without back quotes."""
    word, other = _identifier(rng), _identifier(rng)
    return rng.choice(
        [
            f"{word}()",
            f"{word}.{other}",
            f"{word}({other})",
            f"{word} = {rng.randint(0, 100)}",
            f"{_camel(rng)}",
            f"{word.upper()}",
            f"--{_slug(rng)}",
            f"-{rng.choice(string.ascii_letters)}",
            f"{rng.choice(_PROGRAMS)} {_word(rng)}",
            f"{rng.choice(_PROGRAMS)} {_word(rng)} --{_slug(rng)}",
            f"{rng.choice(_PROGRAMS)} {_word(rng)} {path(rng)}",
            f'{word}["{other}"]',
            f"{_camel(rng)}Error",
            f"import {word}",
        ]
    )


def version(rng: Rng) -> str:
    """The version of a program."""
    parts = ".".join(str(rng.randint(0, 20)) for _ in range(rng.randint(2, 3)))
    return rng.choice(["", "", "v"]) + parts + rng.choice(["", "", "", "-beta", "rc1"])


def time(rng: Rng) -> str:
    """A time of the day."""
    return f"{rng.randint(0, 23)}:{rng.randint(0, 59):02}"


def host(rng: Rng) -> str:
    """The name or address of a computer."""
    return rng.choice([_host(rng), ".".join(str(rng.randint(0, 255)) for _ in range(4))])


def ticket(rng: Rng) -> str:
    """The number of a ticket, an issue or a flight."""
    letters = "".join(rng.choices(string.ascii_uppercase, k=rng.randint(2, 4)))
    return rng.choice(
        [f"{letters}-{rng.randint(1, 9999)}", f"#{rng.randint(1, 9999)}", f"{letters}{rng.randint(2, 9999)}"]
    )


def technical(rng: Rng) -> str:
    """A version, time, date, host, ticket, hash, measure or account."""
    return rng.choice(
        [
            version(rng),
            time(rng),
            host(rng),
            ticket(rng),
            f"{rng.randint(1950, 2040)}-{rng.randint(1, 12):02}-{rng.randint(1, 28):02}",
            "".join(rng.choices("0123456789abcdef", k=rng.randint(7, 12))),
            f"{rng.randint(2, 64)} {rng.choice(['GB', 'MB', 'km', 'kg', 'cm', 'GHz', 'ms'])}",
            f"@{_syllables(rng)}{rng.choice(['', '', str(rng.randint(1, 99))])}",
            f"0x{rng.randint(0, 65535):04X}",
        ]
    )


def in_back_quotes(rng: Rng) -> str:
    """Code, a path or a placeholder between back quotes."""
    return f"`{rng.choice([code, code, path, placeholder, technical])(rng)}`"


def anything(rng: Rng) -> str:
    """Text of any kind but a number, which would change the words around it."""
    return rng.choice([placeholder, placeholder, url, email, path, in_back_quotes, in_back_quotes, technical])(rng)


KINDS: Mapping[str, Callable[[Rng], str]] = {
    "any": anything,
    "code": in_back_quotes,
    "email": email,
    "host": host,
    "index": index,
    "name": invented_name,
    "number": number,
    "path": path,
    "placeholder": placeholder,
    "ticket": ticket,
    "time": time,
    "url": url,
    "version": version,
}


def _word(rng: Rng) -> str:
    return rng.choice(_WORDS)


def _syllables(rng: Rng) -> str:
    return "".join(rng.choices(_SYLLABLES, k=rng.randint(2, 3)))


def _slug(rng: Rng) -> str:
    words = [
        rng.choice([_word(rng), _word(rng), _syllables(rng)])
        for _ in range(rng.choices((1, 2, 3), weights=(5, 3, 1))[0])
    ]
    return rng.choice("-_").join(words) + (str(rng.randint(0, 2030)) if rng.random() < 0.15 else "")


def _host(rng: Rng) -> str:
    name = rng.choice([_syllables(rng), _word(rng), f"{_word(rng)}-{_word(rng)}", "example"])
    return f"{_word(rng)}.{name}.{rng.choice(_DOMAINS)}" if rng.random() < 0.25 else f"{name}.{rng.choice(_DOMAINS)}"


def _identifier(rng: Rng) -> str:
    return "_".join(
        rng.choice([_word(rng), _word(rng), _syllables(rng)]) for _ in range(rng.choices((1, 2), weights=(3, 2))[0])
    )


def _camel(rng: Rng) -> str:
    words = [_word(rng).capitalize() for _ in range(rng.randint(2, 3))]
    return words[0].lower() + "".join(words[1:]) if rng.random() < 0.5 else "".join(words)
