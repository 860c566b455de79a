import pytest

from dragoman_server.text.sentences import sentence_spans
from support.patience import ends_soon


def sentences(line: str, language: str = "en") -> list[str]:
    return [line[begin:end] for begin, end in sentence_spans(line, language)]


@pytest.mark.parametrize(
    ("language", "line"),
    [
        ("en", "It works.|Does it?|It does!"),
        ("en", "Wait...|What?!|No way…|Really."),
        ("en", 'He said "Stop."|She did not.'),
        ("en", "“Why?” he asked.|Nobody knew."),
        ("en", "“Go away.|I am tired,” he said.|She left."),
        ("en", "(It was late.)|We left."),
        ("en", "Mr. Smith met Dr. Jones.|They talked."),
        ("en", "J. R. R. Tolkien wrote it.|I read it."),
        ("en", "The U.S. Army came, e.g. by sea.|It left."),
        ("en", "1. First point"),
        ("en", "It is 13.|Time travel is impossible."),
        ("en", "See No. 5 and fig. 3 there.|Good."),
        ("en", "I said no.|Then I left."),
        ("en", "It was for me.|And so was I.|He can't.|She is Tom's."),
        ("en", "We met at 5 p.m.|Then it rained."),
        ("en", "It costs 3.14 euros.|See example.com for more."),
        ("en", "Version 2.0.1 is out.|Get it."),
        ("en", "It is 1990.|The wall is gone."),
        ("en", "England vs. Germany was a good game.|It was."),
        ("en", "Smith et al. Found it in Mt. Vernon.|Really?"),
        ("en", "Gov. Brown spoke.|He left."),
        ("en-GB", "Gov. Brown spoke.|He left."),
        ("en", "no end mark"),
        ("en", "..."),
        ("en", ". . ."),
        ("en", "Wait . . . what did you say?|Nothing."),
        ("en", "!"),
        ("es", "¡Hola!|¿Qué tal?|Bien."),
        ("es", "No sé.|¿qué dices?"),
        ("es", "Nació en 50 a. C. en Roma.|Vive.|Los JJ. OO. de Londres."),
        ("de", "Die Hauptstr. 5 ist lang.|Gut."),
        ("es", "Los EE. UU. Ganaron, p. ej. Italia no.|Fin."),
        ("es", "Muy bien.|Se fue al mar.|Dijo que no.|Vale."),
        ("es", "La Sra. García y D. Juan viven en la Av. Juárez.|Bien."),
        ("de", "Er ging.|»Hallo!« rief er.|Sie kam."),
        ("de", "„Kommst du?“|Sie nickte."),
        ("de", "Das gilt z.B. Ende Mai.|Gut."),
        ("de", "Das gilt z. B. Ende Mai, d. h. Bald.|Gut."),
        ("de", "Am 3. Oktober feiern wir.|Alle kommen."),
        ("de", "Im 19. Jahrhundert war es so.|Heute nicht."),
        ("de", "Es kostet 3 Mio. Euro.|Das ist viel."),
        ("de", "Rom fiel 44 v. Chr. Nicht.|So war es."),
        ("de", "Die Müller GmbH & Co. KG zahlt.|Ich mag dich.|Frag mich.|Jetzt."),
        ("fr", "« Bonjour ! »|Il partit."),
        ("fr", "« Bonjour ! » dit-il.|Il partit."),
        ("fr", "M. Dupont et Mme. Leroy sont là.|Ils parlent."),
        ("fr", "En 44 av. J.-C. César mourut, p. ex. Rome pleurait.|C'est tout ce qu'il y a.|Fin."),
        ("nl", "Dhr. Jansen is hier.|Hij is blij."),
        ("it", "Il sig. Rossi è qui.|Va bene."),
        ("pt-BR", "O Sr. Silva chegou.|Tudo bem."),
        ("ru", "Он живёт на ул. Ленина.|Там хорошо."),
        ("nb", "Vi ses kl. Ti på fredag den 3. Mai.|Ha det."),
        ("sw", "Dr. Juma alikuja.|Alikaa."),  # as in English
        ("el", "Τι κάνεις;|Καλά."),
        ("am", "ሰላም።|እንዴት ነህ፧"),
        ("hy", "Բարեւ։|Ինչպես ես։"),
        ("my", "မင်္ဂလာပါ။|နေကောင်းလား။"),
        ("hi", "यह एक वाक्य है।|यह दूसरा है॥"),
        ("ar", "كيف حالك؟|أنا بخير."),
        ("ur", "یہ ایک جملہ ہے۔|یہ دوسرا ہے۔"),
    ],
)
def test_a_line_is_split_where_the_bars_stand(language: str, line: str) -> None:
    parts = line.split("|")
    assert sentences(" ".join(parts), language) == parts


@pytest.mark.parametrize(
    "line", ["今日は晴れです。|明日は雨？|そうですか！", "「行こう。」|彼は言った。", "“走吧。”|他说。"]
)
def test_where_sentences_have_no_space_between_them_they_are_split(line: str) -> None:
    parts = line.split("|")
    assert sentences("".join(parts), "ja") == parts


def test_white_space_around_sentences_is_in_none() -> None:
    assert sentences("  One.\t\u00a0 Two.  ") == ["One.", "Two."]
    assert sentences(" \t ") == []


@pytest.mark.parametrize(
    "unit",
    [
        *(".", ". ", "...  ", "… ", "? ", "1. ", "a. ", "A. ", "a.b. ", "Mr. ", "e.g. A", '"', "“", "“A. ", "« A. "),
        *(".»", ". »", "(", ") ", "(A. ", "[]", "。", "x", " ", "Mr. “(A… 。 ? ", "A sentence. "),
    ],
)
@pytest.mark.parametrize("language", ["en", "de", "el"])
def test_no_text_takes_long(unit: str, language: str) -> None:
    text = (unit * 60_000)[:60_000]
    with ends_soon():
        list(sentence_spans(text, language))
