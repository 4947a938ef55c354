"""Work as rows and pictures, and what it is predicted to take."""

import pytest

from sdfast import store
from sdfast.request import Request, resolve
from sdfast.service.costs import Costs, Work, work

DEMO = store.load("demo")


def of(**given: object) -> Work:
    return work("demo", resolve(Request("a red star", **given), DEMO))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("given", "rows", "pictures"),
    [
        ({"steps": 10}, {16384: 20}, {16384: 1}),
        ({"steps": 10, "guidance": 1.0}, {16384: 10}, {16384: 1}),
        ({"steps": 10, "count": 3}, {16384: 60}, {16384: 3}),
        ({"steps": 10, "sampler": "heun"}, {16384: 40}, {16384: 1}),
        ({"steps": 4, "width": 256}, {32768: 8}, {32768: 1}),
        ({"steps": 4, "guidance_interval": (1e6, 2e6)}, {16384: 4}, {16384: 1}),
    ],
)
def test_what_a_request_asks_for(given: dict[str, object], rows: object, pictures: object) -> None:
    found = of(**given)
    assert found.pictures == pictures
    assert found.rows.keys() == rows.keys()  # type: ignore[attr-defined]
    for pixels, count in rows.items():  # type: ignore[attr-defined]
        assert found.rows[pixels] == pytest.approx(count, rel=0.1)


def test_a_second_pass_is_counted_at_its_size() -> None:
    found = of(steps=10, hires={"scale": 2, "strength": 0.5})
    assert found.rows == {16384: 20, 65536: 10}
    assert found.pictures == {16384: 1, 65536: 1}


def test_parts_of_a_prompt_are_rows() -> None:
    asked = Request("a red star AND a circle AND blue", steps=4)
    assert work("demo", resolve(asked, DEMO)).rows == {16384: 16}


def test_predictions_are_what_was_seen_and_scaled_to_other_sizes() -> None:
    costs = Costs()
    assert costs.predict(of(steps=10)) == 0
    costs.saw_rows("demo", 16384, 8, 0.4)
    costs.saw_picture("demo", 16384, 0.5)
    assert costs.predict(of(steps=10)) == pytest.approx(20 * 0.05 + 0.5)
    assert costs.predict(of(steps=10, width=256)) == pytest.approx(2 * (20 * 0.05 + 0.5))
    assert costs.predict(Work("other", {16384: 1}, {16384: 1})) == 0


def test_what_is_less_than_believed_counts_more() -> None:
    costs, one = Costs(), Work("demo", {16384: 1}, {})
    costs.saw_rows("demo", 16384, 1, 10.0)  # compiled the network
    for _ in range(10):
        costs.saw_rows("demo", 16384, 1, 0.1)
    assert costs.predict(one) < 0.2
    costs.saw_rows("demo", 16384, 1, 1.0)
    assert costs.predict(one) < 0.3
