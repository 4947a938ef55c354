"""The grammar of prompts. The examples that carry A1111's name are those of its wiki and of its
parser's own documentation: what it writes of them is what is expected here."""

from __future__ import annotations

import time
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sdfast import prompts
from sdfast.errors import InvalidRequest
from sdfast.prompts import LARGEST, Lora, Piece, Text, parse, plain


def said(text: str, step: int = 1, steps: int = 10) -> Text:
    """The text of a prompt of one part."""
    (part,) = parse(text, composed=False).parts
    return part.at(step, steps)


def pieces(text: str) -> list[tuple[str, float]]:
    (part,) = said(text).parts
    return [(piece.text, pytest.approx(piece.weight, rel=1e-8)) for piece in part]


A1111_WEIGHTS = {
    "normal text": [("normal text", 1.0)],
    "an (important) word": [("an ", 1.0), ("important", 1.1), (" word", 1.0)],
    "(unbalanced": [("unbalanced", 1.1)],
    r"\(literal\]": [("(literal]", 1.0)],
    "(unnecessary)(parens)": [("unnecessaryparens", 1.1)],
    "a (((house:1.3)) [on] a (hill:0.5), sun, (((sky))).": [
        ("a ", 1.0),
        ("house", 1.5730000000000004),
        (" ", 1.1),
        ("on", 1.0),
        (" a ", 1.1),
        ("hill", 0.55),
        (", sun, ", 1.1),
        ("sky", 1.4641000000000006),
        (".", 1.1),
    ],
    "a (word)": [("a ", 1.0), ("word", 1.1)],
    "a ((word))": [("a ", 1.0), ("word", 1.21)],
    "a [word]": [("a ", 1.0), ("word", 1 / 1.1)],
    "a (word:1.5)": [("a ", 1.0), ("word", 1.5)],
    "a (word:0.25)": [("a ", 1.0), ("word", 0.25)],
    r"a \(word\)": [("a (word)", 1.0)],
}


@pytest.mark.parametrize("text", A1111_WEIGHTS)
def test_words_have_the_weights_that_a1111_documents(text: str) -> None:
    assert pieces(text) == A1111_WEIGHTS[text]


FANTASY = (
    "fantasy landscape with a [mountain:lake:0.25] and [an oak:a christmas tree:0.75]"
    "[ in foreground::0.6][: in background:0.25] [shoddy:masterful:0.5]"
)
# What is said up to a step, by prompt and number of steps.
A1111_STEPS = {
    ("test", 10): {10: "test"},
    ("a [b:3]", 10): {3: "a ", 10: "a b"},
    ("a [b: 3]", 10): {3: "a ", 10: "a b"},
    ("a [[[b]]:2]", 10): {2: "a ", 10: "a [[b]]"},
    ("[(a:2):3]", 10): {3: "", 10: "(a:2)"},
    ("a [b : c : 1] d", 10): {1: "a b  d", 10: "a  c  d"},
    ("a[b:[c:d:2]:1]e", 10): {1: "abe", 2: "ace", 10: "ade"},
    ("a [unbalanced", 10): {10: "a [unbalanced"},
    ("a [b:.5] c", 10): {5: "a  c", 10: "a b c"},
    ("a [b:1.5] c", 10): {10: "a  c"},
    ("a [{b|d{:.5] c", 10): {5: "a  c", 10: "a {b|d{ c"},
    ("((a][:b:c [d:3]", 10): {3: "((a][:b:c ", 10: "((a][:b:c d"},
    ("[a|(b:1.1)]", 10): {k: "(b:1.1)" if k % 2 == 0 else "a" for k in range(1, 11)},
    ("[fe|]male", 10): {k: "male" if k % 2 == 0 else "female" for k in range(1, 11)},
    ("[fe|||]male", 10): {k: "female" if k % 4 == 1 else "male" for k in range(1, 11)},
    ("[cow|horse] in a field", 4): {
        1: "cow in a field",
        2: "horse in a field",
        3: "cow in a field",
        4: "horse in a field",
    },
    (FANTASY, 100): {
        25: "fantasy landscape with a mountain and an oak in foreground shoddy",
        50: "fantasy landscape with a lake and an oak in foreground in background shoddy",
        60: "fantasy landscape with a lake and an oak in foreground in background masterful",
        75: "fantasy landscape with a lake and an oak in background masterful",
        100: "fantasy landscape with a lake and a christmas tree in background masterful",
    },
}


@pytest.mark.parametrize(("text", "steps"), A1111_STEPS)
def test_words_change_at_the_steps_that_a1111_documents(text: str, steps: int) -> None:
    expected = A1111_STEPS[text, steps]
    for step in range(1, steps + 1):
        until = min(last for last in expected if last >= step)
        assert said(text, step, steps) == said(expected[until]), step


def test_a_step_number_counts_steps_and_a_point_makes_it_a_part_of_them() -> None:
    lasts = {"0": 0, "1": 1, "-1": 0, "99": 40, "0.5": 20, ".26": 10, "0.": 0, "1.": 40}
    for when, last in lasts.items():
        texts = [plain(said(f"[a:b:{when}]", step, 40)) for step in range(1, 41)]
        assert texts == ["a"] * last + ["b"] * (40 - last), when


def composed(text: str) -> list[tuple[str, float]]:
    return [(plain(part.at(1, 1)), part.weight) for part in parse(text).parts]


def test_and_composes_prompts_with_weights_of_their_own() -> None:
    assert composed("a cat AND a dog") == [("a cat ", 1.0), (" a dog", 1.0)]
    expected = [("a cat ", 1.2), (" a dog ", 1.0), (" a penguin ", 2.2)]
    assert composed("a cat :1.2 AND a dog AND a penguin :2.2") == expected
    assert composed("left AND right:0.5") == [("left ", 1.0), (" right", 0.5)]
    assert composed("a AND b:-1") == [("a ", 1.0), (" b", -1.0)]
    assert composed("solo:1.5") == [("solo", 1.5)]
    assert composed("solo:1.5.2") == [("solo:1.5.2", 1.0)]
    assert composed("HAND ANDY and") == [("HAND ANDY and", 1.0)]
    (part,) = parse("cat AND dog:2", composed=False).parts
    assert (plain(part.at(1, 1)), part.weight) == ("cat AND dog:2", 1.0)


def test_break_begins_a_chunk_in_brackets_too() -> None:
    assert said("a BREAK b") == Text(((Piece("a ", 1.0),), (Piece(" b", 1.0),)))
    assert said("(a BREAK b:1.5)") == Text(((Piece("a ", 1.5),), (Piece(" b", 1.5),)))
    assert said("[a BREAK b|c]") == said("a BREAK b")
    assert said("[a BREAK b|c]", 2) == said("c")
    assert said("BREAKfast") == Text(((Piece("BREAKfast", 1.0),),))


def test_a_backslash_takes_the_meaning_from_what_follows() -> None:
    assert pieces(r"\\\(\)\[\]\:\|\a") == [("\\()[]:|a", 1.0)]
    assert pieces("end\\") == [("end", 1.0)]
    assert pieces(r"(a\:1.3)") == [("a:1.3", 1.1)]
    assert pieces(r"[a\|b]") == [("a|b", 1 / 1.1)]
    assert parse(r"\<lora:a:1>").loras == ()
    assert composed(r"solo\:1.5") == [("solo:1.5", 1.0)]


def test_brackets_that_do_not_pair_are_text_or_hold_to_the_end() -> None:
    assert pieces("a ) b ] c") == [("a ) b ] c", 1.0)]
    assert pieces("a (b [c") == [("a ", 1.0), ("b ", 1.1), ("c", 1.0)]
    assert pieces("(a [b) c]") == [("a ", 1.1), ("b", 1.0), (" c", 1 / 1.1)]
    assert pieces("a:1.3)") == [("a:1.3)", 1.0)]
    assert pieces("(a:b)") == [("a:b", 1.1)]
    assert pieces("[a:b:c:0.5]") == [("a:b:c:0.5", 1 / 1.1)]
    assert pieces("[a:b:soon]") == [("a:b:soon", 1 / 1.1)]
    assert pieces("(a: +1.3 )") == [("a", 1.3)]


def test_loras_are_taken_out_of_the_text() -> None:
    read = parse("a <lora:ink style:0.8>cat <lora:x>, (big <lora:y:-.5>:1.2) AND dog:0.5<lora:z:2>")
    assert read.loras == (
        Lora("ink style", 0.8, 3),
        Lora("x", 1.0, 27),
        Lora("y", -0.5, 42),
        Lora("z", 2.0, 71),
    )
    assert [(plain(part.at(1, 1)), part.weight) for part in read.parts] == [
        ("a cat , big  ", 1.0),
        (" dog", 0.5),
    ]
    assert pieces("a <toy> and <b> or <c:1>") == [("a <toy> and <b> or <c:1>", 1.0)]


MISTAKES = {
    "a <lora:x:0.8": (3, "not closed"),
    "a <lora::0.8>": (9, "no name"),
    "<lora:>": (7, "no name"),
    "<lora:a/b:1>": (7, "no LoRA's name"),
    r"<lora:a\b:1>": (7, "no LoRA's name"),
    "<lora:..:1>": (7, "no LoRA's name"),
    "<lora:a\0b>": (7, "no LoRA's name"),
    "<lora:a:big>": (9, "'big' is no number"),
    "<lora:a:>": (9, "'' is no number"),
    "<lora:a:nan>": (9, "'nan' is no number"),
    "<lora:a:1:0.5>": (9, "one weight"),
    "<lora:a:2000000>": (9, "from -1000000 to 1000000"),
    "ab [c <lora:x:1>:0.5]": (7, "holds for all steps"),
    "a <hypernet:x:1>": (3, "<lora:name:weight> is"),
    "a <lyco:x:1>": (3, "<lora:name:weight> is"),
    "a (b:1.2.3) c": (6, "'1.2.3' is no number"),
    "a (b: .) c": (6, "'.' is no number"),
    "a (b:1000001)": (6, "from -1000000 to 1000000"),
    "a AND b:9999999": (9, "from -1000000 to 1000000"),
    "(" * 200 + "a": (201, "from -1000000 to 1000000"),
    "((a:1000) b:-2000)": (3, "is -2e+06"),
    "a" + "[b:" * 51 + ":1]" * 51: (152, "nested more than 50 deep"),
    "half \ud83d": (6, "surrogate"),
}


@pytest.mark.parametrize("text", MISTAKES)
def test_a_mistake_is_named_with_its_column(text: str) -> None:
    column, words = MISTAKES[text]
    with pytest.raises(InvalidRequest) as raised:
        parse(text)
    assert str(raised.value).startswith(f"the prompt, column {column}: "), raised.value
    assert words in str(raised.value)


@pytest.mark.parametrize(
    "text",
    [
        "(" * 100,
        "[" * 100_000 + "a",
        "[" * 100_000 + "a" + "]" * 100_000,
        "(" * 50_000 + "[" * 50_000 + ")" * 50_000 + "]" * 50_000,
        "[a:" * 50_000,
        "[a|b]" * 30_000,
        "[" + "a|" * 80_000 + "b]",
        "[" + ":" * 100_000 + "1]",
        "A" * 100_000,
        "<lora" * 30_000,
        "<lora:x:1>" * 10_000,
        "BREAK " * 20_000,
        " " * 200_000 + "AND" + " " * 200_000,
        "\\" * 100_001,
        "a red cat, " * 90_000,
    ],
    ids=lambda text: f"{text[:8]}×{len(text)}",
)
def test_time_is_in_proportion_to_length(text: str) -> None:
    """What takes a square of it is minutes here; this takes up to a second."""
    started = time.perf_counter()
    for part in parse(text).parts:
        part.at(3, 20)
    assert time.perf_counter() - started < 20


WORDS = "AND BREAK (a:1.3) [a:b:0.4] [a|b] <lora:x:0.5> <lora: <lora:../x> :1.2) :0.5] :3] :1..2)"
FRAGMENTS = st.sampled_from([*"()[]:|\\<>., ab19\n\ud800", *WORDS.split(), "é🙂", "((((", "]]]]"])


@settings(max_examples=1500, deadline=2000)
@given(text=st.one_of(st.lists(FRAGMENTS, max_size=40).map("".join), st.text(max_size=60)))
def test_whatever_is_written_is_read_or_pointed_at(text: str) -> None:
    try:
        read = parse(text)
    except InvalidRequest as error:
        start, sentence = str(error).split(": ", 1)
        column = int(start.removeprefix("the prompt, column "))
        assert 1 <= column <= len(text)
        assert sentence
        return
    for part in read.parts:
        assert abs(part.weight) <= LARGEST
        for step in (1, 2, 7, 20):
            for pieces_ in part.at(step, 20).parts:
                assert all(piece.text and abs(piece.weight) <= LARGEST for piece in pieces_)
                weights = [piece.weight for piece in pieces_]
                assert all(a != b for a, b in pairwise(weights))
    assert all(lora.name and not set(lora.name) & set("/\\:<>") for lora in read.loras)


@given(text=st.text(st.characters(exclude_categories=["Cs"]), max_size=40))
def test_escaped_text_is_said_as_it_stands(text: str) -> None:
    escaped = "".join(f"\\{letter}" for letter in text)
    assert plain(said(escaped)) == text
    assert prompts.parse(escaped).parts[0].weight == 1.0
