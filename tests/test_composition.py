from __future__ import annotations

import pytest

from sdfast.composition import LONGEST, MOST, Script, script
from sdfast.errors import InvalidRequest
from sdfast.prompts import Lora, plain


def words(said: Script) -> list[str | None]:
    return [None if text is None else plain(text) for text in said.texts]


def test_one_prompt_is_two_texts_for_all_steps() -> None:
    said = script("a cat", "blurry", 3)
    assert words(said) == ["a cat", "blurry"]
    assert said.prompts == ((0,), (0,), (0,))
    assert said.negatives == (1, 1, 1)
    assert (said.weights, said.loras, said.constant, said.plain) == ((1.0,), (), True, True)
    assert [said.rows(step) for step in range(3)] == [(1, 0)] * 3
    alone = script("a cat", None, 2)
    assert (alone.negatives, alone.rows(1)) == (None, (0,))


def test_contexts_switch_at_steps_and_each_text_is_encoded_once() -> None:
    said = script("a [cat:dog:0.5] AND [red|blue]:0.5", "[blurry::2]", 6)
    found = [tuple(words(said)[k] for k in said.rows(step)) for step in range(6)]
    assert found == [
        ("blurry", "a cat ", " red"),
        ("blurry", "a cat ", " blue"),
        ("", "a cat ", " red"),
        ("", "a dog ", " blue"),
        ("", "a dog ", " red"),
        ("", "a dog ", " blue"),
    ]
    assert len(said.texts) == len(set(words(said))) == 6
    assert (said.weights, said.constant, said.plain) == ((1.0, 0.5), False, False)


def test_what_changes_in_no_step_is_constant() -> None:
    assert script("[a:b:30]", "", 20).constant
    assert not script("[a:b:30]", "", 40).constant
    assert script("a", "", 4).plain
    assert not script("a:1.5", "", 4).plain
    assert not script("a AND b", "", 4).plain


def test_equal_texts_are_one_and_weights_tell_them_apart() -> None:
    assert len(script("a cat", "a cat", 2).texts) == 1
    assert len(script("a (cat:1.2)", "a cat", 2).texts) == 2
    said = script("a AND a", "", 2)
    assert said.prompts == ((0, 1), (0, 1))  # "a " and " a", as many at every step


def test_a_negative_prompt_that_says_nothing_is_zeros_where_the_model_was_trained_so() -> None:
    for negative, zeros in (("", True), (" ", False), ("green", False)):
        said = script("", negative, 2, zeros_for_empty=True)
        assert (said.texts[said.rows(0)[0]] is None) == zeros
        assert said.texts[said.rows(0)[1]] is not None
    said = script("a", "[b:1]", 2, zeros_for_empty=True)
    assert said.texts[said.rows(0)[0]] is None
    assert said.texts[said.rows(1)[0]] is not None


def test_and_is_a_word_of_a_negative_prompt() -> None:
    assert words(script("a", "b AND c", 1)) == ["a", "b AND c"]


def test_loras_are_named_in_the_prompt_alone() -> None:
    assert script("a <lora:ink:0.5>", "", 1).loras == (Lora("ink", 0.5, 3),)
    with pytest.raises(InvalidRequest, match="the negative prompt, column 3: a LoRA changes"):
        script("a", "b <lora:ink>", 1)


def test_mistakes_say_which_prompt() -> None:
    with pytest.raises(InvalidRequest, match="the negative prompt, column 4: the weight"):
        script("a", "(b:1.2.3)", 1)


def test_too_much_is_refused() -> None:
    script("a" * LONGEST, "", 1)
    with pytest.raises(InvalidRequest, match="20001 characters; 20000 are allowed"):
        script("a" * (LONGEST + 1), "", 1)
    turns = "[a|b][a|b|c][a|b|c|d|e][a|b|c|d|e|f|g]"
    assert len(script(turns, None, MOST).texts) == MOST
    with pytest.raises(InvalidRequest, match="more than 64 different things over 1000 steps"):
        script(turns, None, 1000)
