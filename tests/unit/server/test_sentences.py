import time

import pytest

from dragoman_server.text.sentences import sentence_spans


def sentences(line: str) -> list[str]:
    return [line[begin:end] for begin, end in sentence_spans(line)]


@pytest.mark.parametrize(
    "line",
    [
        "It works.|Does it?|It does!",
        "Wait...|What?!|No way…|Really.",
        'He said "Stop."|She did not.',
        "“Why?” he asked.|Nobody knew.",
        "(It was late.)|We left.",
        "« Bonjour ! »|Il partit.",
        "« Bonjour ! » dit-il.|Il partit.",
        "Er ging. »Hallo!« rief er.|Sie kam.".replace(". »", ".|»"),
        "„Kommst du?“|Sie nickte.",
        "¡Hola!|¿Qué tal?|Bien.",
        "No sé.|¿qué dices?",
        "Mr. Smith met Dr. Jones.|They talked.",
        "M. Dupont et Mme. Leroy sont là.|Ils parlent.",
        "J. R. R. Tolkien wrote it.|I read it.",
        "The U.S. Army came, e.g. by sea.|It left.",
        "Das gilt z.B. Ende Mai.|Gut.",
        "Am 3. Oktober feiern wir.|Alle kommen.",
        "1. First point",
        "See No. 5 and fig. 3 there.|Good.",
        "I said no.|Then I left.",
        "It costs 3.14 euros.|See example.com for more.",
        "Version 2.0.1 is out.|Get it.",
        "It is 1990.|The wall is gone.",
        "今日は晴れです。|明日は雨？|そうですか！",
        "「行こう。」|彼は言った。",
        "यह एक वाक्य है।|यह दूसरा है॥",
        "كيف حالك؟|أنا بخير.",
        "یہ ایک جملہ ہے۔|یہ دوسرا ہے۔",
        "no end mark",
        "...",
        "!",
    ],
)
def test_a_line_is_split_where_the_bars_stand(line: str) -> None:
    glue = "" if any(mark in line for mark in "。।؟۔") and " " not in line else None
    parts = line.split("|")
    assert sentences((glue if glue is not None else " ").join(parts)) == parts


def test_white_space_around_sentences_is_in_none() -> None:
    assert sentences("  One.\t\u00a0 Two.  ") == ["One.", "Two."]
    assert sentences(" \t ") == []


@pytest.mark.parametrize("unit", [".", ". ", "1. ", "a. ", "A. ", "a.b. ", '"', "。", ".»", ". »", "? ", "x"])
def test_no_text_takes_long(unit: str) -> None:
    started = time.thread_time()
    list(sentence_spans(unit * (20_000 // len(unit))))
    assert time.thread_time() - started < 1.0
