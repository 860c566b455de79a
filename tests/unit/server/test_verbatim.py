import pytest

from dragoman_server.text.verbatim import has_words, is_copied
from support.patience import ends_soon


@pytest.mark.parametrize(
    "text",
    [
        "",
        "12:30",
        "1,234.56 €",
        "½ ² ③ Ⅳ",
        "•",
        "---",
        "🙂 👍🏽",
        "!?…",
        "https://example.com/path?a=b#c",
        "www.example.com",
        "jane.doe+x@example.co.uk",
        "{name}: {0}, {{ user.name }}, ${value}",
        "%s %d %1$s %(count)d %.2f %5d",
        "<b>{name}</b> <br/> &nbsp;",
        "`ls -la | grep x`",
        "https://a.example, jane@example.com; 5.",
    ],
)
def test_what_has_no_words(text: str) -> None:
    assert not has_words(text)


@pytest.mark.parametrize(
    "text",
    [
        "a",
        "日本",
        "नमस्ते",
        "5 km",
        "21st",
        "See https://example.com.",
        "<b>Hello</b>",
        "Hello {name}",
        "{Hello you}",
        "100% sure",
        "a < b and c > d",
        "`open",
        "a@b",
    ],
)
def test_what_has_words(text: str) -> None:
    assert has_words(text)


@pytest.mark.parametrize(
    ("source", "target"),
    [
        ("It costs 1,234.56 euros.", "Es kostet 1.234,56 Euro."),
        ("It costs 1,234.56 euros.", "Cela coûte 1 234,56 euros."),
        ("It costs 1,234.56 euros.", "Cela coûte 1\u202f234,56 euros."),
        ("On 12/25/2019 we met.", "Wir trafen uns am 25.12.2019."),
        ("In 2019 100 people came.", "En 2019, 100 personnes sont venues."),
        ("I have 2 cats.", "J'ai deux chats."),
        ("We met at 2:30 p.m.", "Nous nous sommes vus à 14 h 30."),
        ("The 21st floor.", "Le 21e étage."),
        ("In ２０１９ it rained.", "Il a plu en 2019."),
        ("See https://example.com/a_b.", "Voir https://example.com/a_b."),
        ("Write to jane@example.com!", "Écrivez à jane@example.com !"),
        ("Hello {name}, %d of <b>%s</b>", "Bonjour {name}, %d sur <b>%s</b>"),
        ("Run `make test` now.", "Lancez `make test` maintenant."),
        ("Nothing to copy.", "Rien."),
    ],
)
def test_what_is_copied(source: str, target: str) -> None:
    assert is_copied(source, target)


@pytest.mark.parametrize(
    ("source", "target"),
    [
        ("It costs 1,234.56 euros.", "Es kostet 1.234,65 Euro."),
        ("There are 215 votes.", "Il y a des votes."),
        ("In 1990 and 1991.", "En 1990."),
        ("See https://example.com/a_b.", "Voir http://exemple.com."),
        ("Write to jane@example.com!", "Écrivez à Jane !"),
        ("Hello {name}", "Bonjour {nom}"),
        ("%d of %s", "%d sur"),
        ("Some <b>text</b>", "Du <b>texte"),
        ("Run `make test` now.", "Lancez « faire un essai » maintenant."),
    ],
)
def test_what_is_not_copied(source: str, target: str) -> None:
    assert not is_copied(source, target)


@pytest.mark.parametrize(
    "unit",
    [
        "a",
        "a.",
        "a@",
        "a@b.",
        "www.",
        "https://",
        "`",
        "`a",
        "{",
        "{a",
        "${",
        "%",
        "%(a",
        "<",
        "<a",
        "&a",
        "1",
        "1.",
        "1 ",
    ],
)
def test_no_text_takes_long(unit: str) -> None:
    text = (unit * 60_000)[:60_000]
    with ends_soon():
        has_words(text)
        is_copied(text, text)
