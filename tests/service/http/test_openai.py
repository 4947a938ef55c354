"""OpenAI's Images API, by the openai package as it is."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator
from typing import Any

import httpx
import openai
import pytest
from PIL import Image, ImageChops

from sdfast.images import read_request

PROMPT = "a small red circle on a blue background"
OURS = {"steps": 3, "seed": 7}


@pytest.fixture
def real(url: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{url}/v1", api_key="unused", max_retries=0) as made:
        yield made


def picture(text: str | None) -> Image.Image:
    assert text is not None
    return Image.open(io.BytesIO(base64.b64decode(text)))


def file_of(image: Image.Image, form: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form)
    return buffer.getvalue()


def test_a_prompt_alone_brings_a_picture_that_tells_how_it_was_made(
    real: openai.OpenAI, tmp_path: Any
) -> None:
    answer = real.images.generate(prompt=PROMPT)
    assert answer.data is not None
    assert answer.data[0].b64_json is not None
    file = tmp_path / "drawn.png"
    file.write_bytes(base64.b64decode(answer.data[0].b64_json))
    request, model = read_request(file)
    assert (request.prompt, model) == (PROMPT, "demo")
    assert request.seed == answer.data[0].model_extra["seed"]  # type: ignore[index]
    assert answer.size == "{}x{}".format(*Image.open(file).size)


def test_n_pictures_are_of_following_seeds_each_as_if_alone(real: openai.OpenAI) -> None:
    several = real.images.generate(prompt=PROMPT, n=2, size="64x64", extra_body=OURS).data
    second = real.images.generate(prompt=PROMPT, size="64x64", extra_body={**OURS, "seed": 8}).data
    assert several is not None
    assert second is not None
    one, two = picture(several[1].b64_json), picture(second[0].b64_json)
    assert one.size == (64, 64)
    assert ImageChops.difference(one, two).getbbox() is None


@pytest.mark.parametrize(("form", "name"), [("png", "PNG"), ("jpeg", "JPEG"), ("webp", "WEBP")])
def test_a_picture_has_the_format_that_was_asked_for(
    real: openai.OpenAI, form: Any, name: str
) -> None:
    answer = real.images.generate(
        prompt=PROMPT, output_format=form, output_compression=80, extra_body=OURS
    )
    assert answer.data is not None
    assert picture(answer.data[0].b64_json).format == name
    assert answer.output_format == form


def test_a_url_is_a_data_url(real: openai.OpenAI) -> None:
    answer = real.images.generate(prompt=PROMPT, response_format="url", extra_body=OURS)
    assert answer.data is not None
    head, _, text = str(answer.data[0].url).partition(",")
    assert head == "data:image/png;base64"
    assert picture(text).format == "PNG"
    assert answer.data[0].b64_json is None


def test_diffusers_names_and_nvext_mean_the_same_as_ours(client: httpx.Client) -> None:
    asked = {"prompt": PROMPT, "size": "64x64"}
    forms: list[dict[str, Any]] = [
        {"steps": 3, "guidance": 4.0, "seed": 7},
        {"num_inference_steps": 3, "guidance_scale": 4.0, "seed": 7},
        {"nvext": {"steps": 3, "guidance_scale": 4.0, "seed": 7, "annotations": ["x"]}},
    ]
    answers = [client.post("/v1/images/generations", json={**asked, **form}) for form in forms]
    texts = {answer.json()["data"][0]["b64_json"] for answer in answers}
    assert len(texts) == 1
    assert answers[2].headers["x-sdfast-ignored"] == "nvext.annotations"


def test_what_means_nothing_here_is_named_and_not_refused(client: httpx.Client) -> None:
    asked = {"quality": "hd", "style": "vivid", "user": "u", "moderation": "low", "steps": 1}
    answer = client.post("/v1/images/generations", json={"prompt": PROMPT, **asked})
    assert answer.status_code == 200
    assert answer.headers["x-sdfast-ignored"] == "quality, style, moderation, user"


def test_an_unknown_field_is_refused_by_its_name(real: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        real.images.generate(prompt=PROMPT, extra_body={"perf_dump_path": "/tmp/x"})
    assert refused.value.param == "perf_dump_path"
    assert "unknown field" in refused.value.message


def test_errors_are_the_exceptions_of_the_package(real: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as unknown:
        real.images.generate(prompt=PROMPT, model="dmo")
    assert unknown.value.code == "model_not_found"
    assert "demo" in unknown.value.message
    with pytest.raises(openai.BadRequestError) as wrong:
        real.images.generate(prompt=PROMPT, extra_body={"sampler": "eulr"})
    assert "did you mean 'euler'" in wrong.value.message
    assert wrong.value.request_id
    with pytest.raises(openai.BadRequestError) as size:
        real.images.generate(prompt=PROMPT, size="64x")
    assert size.value.param == "size"
    with pytest.raises(openai.BadRequestError) as clear:
        real.images.generate(prompt=PROMPT, background="transparent")
    assert clear.value.param == "background"


def test_models_are_the_bundles(real: openai.OpenAI) -> None:
    assert [model.id for model in real.models.list()] == ["demo"]
    assert real.models.retrieve("demo").owned_by == "sdfast"
    with pytest.raises(openai.NotFoundError):
        real.models.retrieve("other")


def test_a_stream_shows_partial_images_and_ends_with_the_same_picture(
    real: openai.OpenAI,
) -> None:
    ours = {"steps": 40, "seed": 7}
    plain = real.images.generate(prompt=PROMPT, size="64x64", extra_body=ours).data
    stream = real.images.generate(
        prompt=PROMPT, size="64x64", stream=True, partial_images=2, extra_body=ours
    )
    events = list(stream)
    partial = [e for e in events if e.type == "image_generation.partial_image"]
    assert [e.partial_image_index for e in partial] == list(range(len(partial)))
    assert 1 <= len(partial) <= 2
    assert all(picture(e.b64_json).size == (64, 64) for e in partial)
    last = events[-1]
    assert last.type == "image_generation.completed"
    assert last.size == "64x64"
    assert last.usage.total_tokens == 0
    assert plain is not None
    assert last.b64_json == plain[0].b64_json


def test_a_stream_without_partial_images_is_one_event(real: openai.OpenAI) -> None:
    stream = real.images.generate(prompt=PROMPT, stream=True, partial_images=0, extra_body=OURS)
    assert [event.type for event in stream] == ["image_generation.completed"]


def test_an_error_in_a_stream_is_raised_by_the_package(
    real: openai.OpenAI, client: httpx.Client
) -> None:
    stream = real.images.generate(
        prompt=PROMPT,
        stream=True,
        partial_images=3,
        extra_body={"steps": 200},
        extra_headers={"x-request-id": "to-be-cancelled"},
    )
    events = iter(stream)
    assert next(events).type == "image_generation.partial_image"
    assert client.delete("/v1/requests/to-be-cancelled").json()["cancelled"]
    with pytest.raises(openai.APIError, match="the request was cancelled"):
        list(events)


def test_an_edit_draws_a_picture_anew(real: openai.OpenAI) -> None:
    blue = file_of(Image.new("RGB", (64, 64), "blue"))
    ours = {"steps": 4, "seed": 7, "strength": 0.5}
    answer = real.images.edit(image=blue, prompt=PROMPT, extra_body=ours)
    assert answer.data is not None
    drawn = picture(answer.data[0].b64_json)
    assert drawn.size == (64, 64)
    assert ImageChops.difference(drawn.convert("RGB"), Image.new("RGB", (64, 64), "blue")).getbbox()


@pytest.mark.parametrize("of_its_own", [True, False], ids=["its own alpha", "a mask"])
def test_an_edit_keeps_what_the_mask_does_not_clear(real: openai.OpenAI, of_its_own: bool) -> None:
    clear = Image.new("RGBA", (64, 64), (0, 0, 255, 255))
    clear.paste((0, 0, 0, 0), (0, 0, 32, 64))
    blue = Image.new("RGB", (64, 64), (0, 0, 255))
    given: dict[str, Any] = (
        {"image": file_of(clear)}
        if of_its_own
        else {"image": file_of(blue), "mask": file_of(clear)}
    )
    answer = real.images.edit(prompt=PROMPT, extra_body=OURS, **given)
    assert answer.data is not None
    drawn = picture(answer.data[0].b64_json).convert("RGB")
    right, left = (32, 0, 64, 64), (0, 0, 32, 64)
    assert ImageChops.difference(drawn.crop(right), blue.crop(right)).getbbox() is None
    assert ImageChops.difference(drawn.crop(left), blue.crop(left)).getbbox() is not None


def test_an_edit_streams_under_its_own_names(real: openai.OpenAI) -> None:
    blue = file_of(Image.new("RGB", (64, 64), "blue"))
    events = list(real.images.edit(image=[blue], prompt=PROMPT, stream=True, extra_body=OURS))
    assert [event.type for event in events] == ["image_edit.completed"]


def test_an_edit_of_several_pictures_or_none_is_refused(
    real: openai.OpenAI, client: httpx.Client
) -> None:
    blue = file_of(Image.new("RGB", (64, 64), "blue"))
    with pytest.raises(openai.BadRequestError) as several:
        real.images.edit(image=[blue, blue], prompt=PROMPT)
    assert several.value.param == "image"
    none = client.post("/v1/images/edits", data={"prompt": PROMPT})
    assert none.status_code == 400
    assert none.json()["error"]["param"] == "image"
