"""The page in a real browser, before the real service."""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
from PIL import Image, ImageChops
from playwright.sync_api import Browser, Locator, Page, expect, sync_playwright

from sdfast import Request, images
from sdfast.service.http.settings import Settings

CHROMIUM = Path("/usr/bin/chromium")
pytestmark = pytest.mark.skipif(
    not CHROMIUM.exists(), reason=f"there is no Chromium as {CHROMIUM} to show the page in"
)
SIDE = 128  # of the pictures that the demo model draws
REFUSED = "Failed to load resource: the server responded with a status of 4"  # as Chromium says it

Opened = Callable[..., Page]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        made = playwright.chromium.launch(
            executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"]
        )
        yield made
        made.close()


@pytest.fixture
def opened(browser: Browser, url: str) -> Iterator[Opened]:
    """opened(**context) → the page, of a browser that knows nothing yet. Afterwards: it has asked
    no other host, and its console has no error but answers that the test expects."""
    contexts: list[Any] = []
    errors: list[str] = []
    asked: list[str] = []

    def show(at: str = url, ready: bool = True, **more: Any) -> Page:
        context = browser.new_context(**{"viewport": {"width": 1280, "height": 860}, **more})
        context.set_default_timeout(10_000)
        contexts.append(context)
        page = context.new_page()
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on("console", lambda said: errors.append(said.text) if said.type == "error" else None)
        page.on("request", lambda request: asked.append(request.url))
        page.goto(at)
        if ready:
            page.locator("#presets label").first.wait_for(state="attached")
        return page

    yield show
    for context in contexts:
        context.close()
    own = {urlsplit(one).netloc for one in asked if urlsplit(one).scheme not in ("data", "blob")}
    assert len(own) <= len(contexts)
    assert all(one.startswith("127.0.0.1:") for one in own)
    assert [one for one in errors if not one.startswith(REFUSED)] == []


def draw(page: Page, prompt: str, **settings: object) -> None:
    """What a person does; returns when the picture is there."""
    before = page.locator("#history [role=option]").count()
    for name, value in settings.items():
        choose = page.locator(f"#{name}")
        if name in ("sampler", "schedule"):
            choose.select_option(str(value))
        else:
            choose.fill(str(value))
    page.get_by_label("Prompt", exact=True).fill(prompt)
    page.get_by_role("button", name="Draw", exact=True).click()
    expect(page.locator("#history [role=option]")).to_have_count(before + 1, timeout=15_000)


def facts(page: Page) -> dict[str, str]:
    names, values = (page.locator(f".facts {tag}").all_inner_texts() for tag in ("dt", "dd"))
    return dict(zip(names, values, strict=True))


def downloaded(page: Page) -> Path:
    with page.expect_download() as coming:
        page.get_by_role("link", name="Download").click()
    return Path(coming.value.path()).rename(Path(coming.value.path()).with_suffix(".png"))


def picture(data_url: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(data_url.partition(",")[2])))


def within(page: Page, width: int) -> None:
    """Nothing is beside the screen."""
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    outside = page.evaluate(
        """width => [...document.querySelectorAll("button, a, input, select, textarea, img, p")]
            .filter(node => node.checkVisibility() && !node.closest(".unseen, .strip"))
            .filter(node => node.getBoundingClientRect().right > width + 0.5)
            .map(node => node.outerHTML.slice(0, 80))""",
        width,
    )
    assert outside == []


def test_a_person_gets_from_a_prompt_to_a_picture_to_variations(opened: Opened) -> None:
    page = opened()
    draw(page, "a large red circle on a white background")
    shown = page.locator(".frame.done img")
    expect(shown).to_have_attribute("alt", "a large red circle on a white background")
    assert shown.evaluate("image => [image.naturalWidth, image.naturalHeight]") == [SIDE, SIDE]
    first = int(facts(page)["Seed"])
    page.get_by_role("button", name="Variations").click()
    expect(page.locator("#history [role=option]")).to_have_count(2, timeout=15_000)
    frames = page.locator(".frame.done")
    seeds = []
    for frame in frames.all():
        frame.click()
        seeds.append(int(facts(page)["Seed"]))
    assert seeds == [first + 1, first + 2, first + 3, first + 4]
    expect(page.get_by_role("status")).to_have_text("4 pictures are done.")


def test_previews_are_shown_while_it_is_drawn(opened: Opened) -> None:
    page = opened()
    page.evaluate(
        """() => {
            window.seen = [];
            new MutationObserver(() => {
                const image = document.querySelector(".frame.early img");
                if (image && window.seen.at(-1) !== image.src) window.seen.push(image.src);
            }).observe(frames, {subtree: true, attributes: true, childList: true});
        }"""
    )
    draw(page, "a green star", steps=20)
    seen = page.evaluate("window.seen")
    assert len(seen) >= 4
    assert all(picture(one).size == (SIDE // 8, SIDE // 8) for one in seen)


@pytest.mark.parametrize("how", ["Escape", "Cancel"])
def test_it_is_cancelled_within_a_step(opened: Opened, serving: Any, how: str) -> None:
    page = opened()
    draw(page, "a blue ring", steps=2)
    page.locator("#steps").fill("200")
    page.locator("#count").fill("4")
    page.locator("#prompt").fill("a blue square")
    page.keyboard.press("Control+Enter")
    page.locator(".frame.early").first.wait_for()
    drawn = serving.service.metrics.text()
    if how == "Escape":
        page.keyboard.press("Escape")
    else:
        page.get_by_role("button", name="Cancel").click()
    expect(page.get_by_role("status")).to_have_text("Cancelled.")
    serving.settled()
    expect(page.locator(".running")).to_be_hidden()
    expect(page.locator("#history [role=option]")).to_have_count(1)
    expect(page.locator(".frame.done img")).to_have_attribute("alt", "a blue ring")  # as before
    assert pictures_of(serving.service.metrics.text()) == pictures_of(drawn)


def pictures_of(metrics: bytes) -> list[str]:
    found = re.findall(r"^sdfast_images_total.* (\S+)$", metrics.decode(), re.MULTILINE)
    assert found
    return found


def test_a_reload_keeps_the_history_whose_settings_draw_the_same_again(opened: Opened) -> None:
    page = opened()
    asked = {"steps": 3, "guidance": 5.5, "sampler": "euler_ancestral", "schedule": "normal"}
    seed = 2**63 + 11  # more than a number of JavaScript holds
    draw(page, "a small yellow cross", seed=seed, negative_prompt="blue", **asked)
    first = downloaded(page)
    page.reload()
    expect(page.locator("#history [role=option]")).to_have_count(1)
    assert page.locator("#prompt").input_value() == ""
    page.get_by_role("button", name="Use settings").click()
    expect(page.locator("#prompt")).to_have_value("a small yellow cross")
    page.get_by_role("button", name="Draw", exact=True).click()
    expect(page.locator("#history [role=option]")).to_have_count(2)
    request, model = images.read_request(downloaded(page))
    assert model == "demo"
    assert (request.seed, request.negative_prompt) == (seed, "blue")
    assert {name: getattr(request, name) for name in asked} == asked
    again = downloaded(page)
    assert Image.open(first).tobytes() == Image.open(again).tobytes()
    assert images.read_request(first) == images.read_request(again)


def test_the_picture_outside_of_a_painted_mask_stays(opened: Opened) -> None:
    page = opened()
    draw(page, "a large red circle on a white background", steps=8)
    before = Image.open(downloaded(page)).convert("RGB")
    page.get_by_role("button", name="Use as start").click()
    page.get_by_role("button", name="Paint a mask").click()
    paint(page, 0.2, 0.2, 0.8, 0.2)
    paint(page, 0.2, 0.5, 0.8, 0.5)
    page.get_by_role("radio", name="Erase").check()
    paint(page, 0.6, 0.5, 0.9, 0.5)
    page.get_by_role("radio", name="Paint").check()
    paint(page, 0.2, 0.9, 0.8, 0.9)
    page.get_by_role("button", name="Undo").click()
    page.get_by_role("button", name="Use mask").click()
    expect(page.locator("output[for=strength]")).to_have_text("100 %")
    with page.expect_request("**/v1/generate") as sent:
        draw(page, "a large green square on a black background", steps=8)
    body = sent.value.post_data_json
    mask = picture(body["mask"]).convert("L").point(lambda v: 255 * (v > 127))
    assert mask.size == before.size
    painted = [mask.getpixel((round(SIDE * x), round(SIDE * y))) for x, y in MARKS]
    assert painted == [255, 255, 0, 0, 0]  # two strokes, what was erased, what was undone, a corner
    changed = ImageChops.difference(Image.open(downloaded(page)).convert("RGB"), before)
    kept = ImageChops.multiply(changed.convert("L"), ImageChops.invert(mask))
    assert kept.getbbox() is None
    assert changed.getbbox() is not None


MARKS = ((0.5, 0.2), (0.3, 0.5), (0.7, 0.5), (0.5, 0.9), (0.02, 0.02))


def paint(page: Page, *ends: float) -> None:
    box = page.locator("#masking canvas").bounding_box()
    assert box is not None
    x, y, to_x, to_y = (
        box["xy"[k % 2]] + part * box[("width", "height")[k % 2]] for k, part in enumerate(ends)
    )
    page.mouse.move(x, y)
    page.mouse.down()
    page.mouse.move(to_x, to_y, steps=4)
    page.mouse.up()


def test_a_picture_of_the_persons_own_is_made_to_fit(opened: Opened, tmp_path: Path) -> None:
    page = opened()
    Image.linear_gradient("L").resize((400, 300)).save(tmp_path / "own.bmp")
    page.locator("#image").set_input_files(tmp_path / "own.bmp")
    expect(page.locator("#width")).to_have_value("128")
    expect(page.locator("#height")).to_have_value("96")
    page.locator("#strength").fill("0.3")
    draw(page, "a grey square", steps=4)
    assert facts(page)["Start"] == "a picture, 30 % changed"
    large = Image.linear_gradient("L").resize((1600, 800))
    large.save(tmp_path / "large.jpg")  # of more pixels than the service reads
    page.locator("#image").set_input_files(tmp_path / "large.jpg")
    expect(page.locator("#height")).to_have_value("64")
    draw(page, "a grey circle", steps=4)
    (tmp_path / "none.png").write_bytes(b"no picture")
    page.locator("#image").set_input_files(tmp_path / "none.png")
    expect(page.locator("#image-wrong")).to_contain_text("no picture")


def test_what_is_removed_can_be_brought_back(opened: Opened) -> None:
    page = opened()
    draw(page, "a ring", steps=2, width="", height="")
    assert facts(page)["Size"] == f"{SIDE} × {SIDE}"  # of what is left empty the model's own
    draw(page, "a cross", steps=2)
    entries = page.locator("#history [role=option]")
    page.get_by_role("button", name="Remove from history").click()
    expect(entries).to_have_count(1)
    expect(page.locator(".caption")).to_have_text("a ring")
    page.get_by_role("button", name="Clear").click()
    expect(entries).to_have_count(0)
    expect(page.locator(".empty")).to_be_visible()
    page.get_by_role("button", name="Undo").click()
    expect(page.locator(".caption")).to_have_text("a ring")
    expect(page.locator(".frame.done img")).to_have_js_property("naturalWidth", SIDE)
    page.reload()
    expect(entries).to_have_count(1)


def test_samplers_are_compared_in_a_labelled_grid(opened: Opened) -> None:
    page = opened()
    page.locator("#steps").fill("4")
    page.locator("#prompt").fill("a purple triangle")
    page.get_by_role("button", name="Compare samplers").click()
    ticks = page.locator("#compared input")
    for tick in ticks.all():
        tick.set_checked(tick.input_value() in ("euler", "heun", "dpmpp_2m"))
    expect(page.locator("#comparing .count")).to_have_text("3 chosen")
    page.locator("#compare").click()
    expect(page.locator("#history [role=option]")).to_have_count(1)
    labels = page.locator(".frame .label")
    assert sorted(labels.all_inner_texts()) == ["dpmpp_2m", "euler", "heun"]
    seeds = set()
    for label in labels.all():
        expect(label).to_be_in_viewport(ratio=1)
        label.click()
        seeds.add(facts(page)["Seed"])
        assert facts(page)["Sampler"].startswith(label.inner_text() + ",")
    assert len(seeds) == 1
    drawn = {page.evaluate("at => kept[0].pictures[at].blob.size", at) for at in range(3)}
    assert len(drawn) > 1  # of other bytes


def test_a_keyboard_is_enough(opened: Opened) -> None:
    page = opened()
    tab_to(page, "#prompt")
    page.keyboard.type("a white star")
    tab_to(page, "#steps")
    page.keyboard.press("Control+A")
    page.keyboard.type("2")
    for count in (1, 2):
        page.keyboard.press("Control+Enter")
        expect(page.locator("#history [role=option]")).to_have_count(count)
    tab_to(page, "#history [role=option][aria-selected=true]")
    newest = facts(page)["Seed"]
    page.keyboard.press("ArrowRight")
    assert facts(page)["Seed"] != newest
    page.keyboard.press("Home")
    assert facts(page)["Seed"] == newest
    tab_to(page, "#start-from", back=True)
    page.keyboard.press("Enter")
    expect(page.locator("#paint")).to_be_focused()
    page.keyboard.press("Enter")
    page.keyboard.press("Space")
    for _ in range(4):
        page.keyboard.press("Shift+ArrowRight")
    page.keyboard.press("Control+z")
    tab_to(page, "#masked")
    page.keyboard.press("Enter")
    expect(page.locator("#masking")).to_be_hidden()
    assert page.evaluate("start.mask !== null")
    page.keyboard.press("Control+Enter")
    expect(page.locator("#history [role=option]")).to_have_count(3)
    assert "a mask" in facts(page)["Start"]


def tab_to(page: Page, selector: str, back: bool = False) -> None:
    """Goes there by Tab, past nothing that does not show that it has the focus."""
    for _ in range(60):
        page.keyboard.press("Shift+Tab" if back else "Tab")
        found, ring, tag = page.evaluate(
            """selector => {
                const node = document.activeElement;
                const shows = [node, node.nextElementSibling ?? node];
                const ring = shows.some(one => getComputedStyle(one).outlineStyle !== "none");
                return [node.matches(selector), ring, node.tagName];
            }""",
            selector,
        )
        assert ring or tag == "BODY"
        if found:
            return
    raise AssertionError(f"Tab does not reach {selector}")


def test_everything_that_can_be_used_has_a_name(opened: Opened) -> None:
    page = opened()
    draw(page, "a ring", steps=2)
    nameless = page.evaluate(
        """() => [...document.querySelectorAll("button, a, input, select, textarea, [role]")]
            .filter(node => !(node.ariaLabel || node.labels?.length || node.textContent.trim()
                || node.getAttribute("aria-labelledby") || node.getAttribute("role") === "status"
                || node.getAttribute("role") === "alert"))
            .map(node => node.outerHTML.slice(0, 80))"""
    )
    assert nameless == []


def test_it_fits_a_phone(opened: Opened) -> None:
    size = {"width": 360, "height": 740}
    page = opened(viewport=size, is_mobile=True, has_touch=True)
    within(page, 360)
    page.locator("#settings summary").tap()
    within(page, 360)
    page.locator("#count").fill("2")
    page.locator("#steps").fill("2")
    page.locator("#prompt").fill("a " + "very" * 40 + " large circle")
    page.get_by_role("button", name="Draw", exact=True).tap()
    expect(page.locator(".frame.done")).to_have_count(2)
    expect(page.locator(".frame").first).to_be_in_viewport()
    within(page, 360)
    page.get_by_role("button", name="Use as start").tap()
    page.get_by_role("button", name="Paint a mask").tap()
    within(page, 360)
    for name in ("Undo", "Wipe", "Use mask"):
        expect(page.get_by_role("button", name=name)).to_be_in_viewport(ratio=1)
    page.locator("#masking [data-close]").tap()
    page.get_by_role("button", name="Compare samplers").tap()
    within(page, 360)
    expect(page.locator("#compare")).to_be_in_viewport(ratio=1)


def test_it_is_dark_where_the_system_is_until_its_switch_says_else(opened: Opened) -> None:
    page = opened(color_scheme="dark")
    switch = page.get_by_role("button", name="Dark colours")
    assert luminance(page) < 40
    expect(switch).to_have_attribute("aria-pressed", "true")
    switch.click()
    expect(switch).to_have_attribute("aria-pressed", "false")
    assert luminance(page) > 220
    page.reload()
    assert luminance(page) > 220
    light = opened(color_scheme="light")
    assert luminance(light) > 220
    for one in (page, light):
        assert contrast(one) > 4.5


def luminance(page: Page) -> float:
    return sum(colours(page)[0]) / 3


def colours(page: Page) -> list[list[int]]:
    found: list[list[int]] = page.evaluate(
        """() => {
            const style = getComputedStyle(document.body);
            const soft = getComputedStyle(document.querySelector(".empty"));
            return [style.backgroundColor, soft.color].map(c => c.match(/\\d+/g).map(Number));
        }"""
    )
    return found


def contrast(page: Page) -> float:
    """Of the weakest text with its ground, https://www.w3.org/TR/WCAG22/#dfn-contrast-ratio."""

    def relative(rgb: list[int]) -> float:
        linear = [v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4 for v in unit(rgb)]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    def unit(rgb: list[int]) -> list[float]:
        return [v / 255 for v in rgb]

    low, high = sorted(map(relative, colours(page)))
    return (high + 0.05) / (low + 0.05)


def test_what_is_wrong_is_said_beside_its_field(opened: Opened) -> None:
    page = opened()
    page.locator("#prompt").fill("a circle")
    for name, value, says, right in (
        ("steps", "0", "must be", "2"),
        ("steps", "1000", "200", "2"),
        ("width", "70", "32", "64"),
        ("guidance", "-1", "must be", "2"),
        ("seed", "soon", "whole number", "2"),
        ("seed", str(2**64), "seed", "2"),
        ("count", "5", "4", "1"),
        ("count", "1000000000", "4", "1"),
        ("count", "0", "must be", "1"),
        ("prompt", "  ", "what to draw", "a circle"),
    ):
        wrong = page.locator(f"#{name}")
        wrong.fill(value)
        page.keyboard.press("Control+Enter")
        note = page.locator(f".field:has(> #{name}) .wrong")
        expect(note).to_contain_text(re.compile(says, re.IGNORECASE))
        expect(wrong).to_have_attribute("aria-invalid", "true")
        expect(wrong).to_have_attribute("aria-describedby", str(note.get_attribute("id")))
        expect(wrong).to_be_focused()
        expect(page.locator(".wrong")).to_have_count(1)
        wrong.fill(right)
        expect(note).to_have_count(0)
    expect(page.locator("#history [role=option]")).to_have_count(0)


def test_it_asks_for_the_key_where_the_service_wants_one(opened: Opened, serving: Any) -> None:
    at = serving.over(Settings(api_keys=("right",)))
    page = opened(at, ready=False)
    field: Locator = page.get_by_label("API key")
    field.fill("wrong")
    page.keyboard.press("Enter")
    expect(page.locator("#access .wrong")).to_be_visible()
    field.fill("right")
    page.get_by_role("button", name="Use", exact=True).click()
    expect(field).to_be_hidden()
    page.reload()
    draw(page, "a circle", steps=2)
    assert page.evaluate("Object.values(localStorage).concat(document.cookie)").count("right") == 0


def test_it_asks_again_where_the_service_is_busy(opened: Opened, serving: Any) -> None:
    page = opened()
    page.locator("#steps").fill("2")
    page.locator("#prompt").fill("a circle")
    limits = serving.service.limits

    async def fill() -> None:
        for seed in range(limits.running + limits.queue):
            many = Request("a star", steps=8, width=64, height=64, seed=seed, count=2)
            await serving.service.submit(many, owner="others")

    serving.call(fill())
    page.keyboard.press("Control+Enter")
    expect(page.locator(".pace")).to_contain_text("Asking again in")
    expect(page.locator("#history [role=option]")).to_have_count(1, timeout=20_000)
    serving.settled()


def test_its_policy_lets_nothing_run_but_its_own(browser: Browser, url: str) -> None:
    page = browser.new_page()  # whose console is to have errors
    page.goto(url)
    refused = page.evaluate(
        """() => new Promise(resolve => {
            const seen = [];
            document.addEventListener("securitypolicyviolation", event => {
                seen.push(event.effectiveDirective);
                if (seen.length === 3) resolve(seen.sort());
            });
            const script = document.createElement("script");
            script.textContent = "window.ran = true";
            document.head.append(script);
            document.body.insertAdjacentHTML("beforeend", "<img src='http://127.0.0.2/a.png'>");
            fetch("http://127.0.0.2/").catch(() => null);
        })"""
    )
    assert refused == ["connect-src", "img-src", "script-src-elem"]
    assert page.evaluate("window.ran") is None
    page.close()


def test_it_is_sent_once(url: str) -> None:
    first = httpx.get(url)
    assert first.headers["content-type"] == "text/html; charset=utf-8"
    assert not re.search(r"(src|href)=\"(?!data:|#)", first.text)
    again = httpx.get(url, headers={"if-none-match": first.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")
