from __future__ import annotations

import pytest

from sdfast.backends.tensorrt_plans import (
    Form,
    Host,
    Pictures,
    Plan,
    Profile,
    Range,
    profiles,
    serving,
)
from sdfast.errors import BackendUnavailable
from sdfast.graph_tensors import Port

SD15 = Pictures(Range(1, 1, 4), Range(256, 512, 1024), Range(256, 512, 1024), 8, 77, (1, 2))
UNET = {
    "latent": Port("f32", ("rows", 4, "height", "width")),
    "time": Port("f32", ("rows", 20160)),
    "keys_values": Port("f32", ("rows", "tokens", 24960)),
}
DECODER = {"latent": Port("f32", ("batch", 4, "height", "width"))}
HERE = Host("11.4.0.106", "NVIDIA H200", "sm_90")


def test_a_range_is_doubled_up_to_its_maximum() -> None:
    assert Range(1, 1, 4).bucket == (1, 2, 4)
    assert Range(1, 2, 6).bucket == (1, 2, 4, 6)
    assert Range(3, 3, 3).bucket == (3,)


def test_a_unet_has_rows_for_guidance_and_without_and_a_dynamic_engine() -> None:
    made = profiles("unet", UNET, SD15)
    assert [p.best["latent"] for p in made[:-1]] == [(n, 4, 64, 64) for n in (1, 2, 4, 8)]
    assert all(p.static for p in made[:-1])
    assert made[1].best["keys_values"] == (2, 77, 24960)
    dynamic = made[-1]
    assert (dynamic.least["latent"], dynamic.largest["latent"]) == (
        (1, 4, 32, 32),
        (8, 4, 128, 128),
    )
    assert dynamic.best == {
        "latent": (2, 4, 64, 64),
        "time": (2, 20160),
        "keys_values": (2, 77, 24960),
    }
    assert str(made[0]) == "latent 1×4×64×64, time 1×20160, keys_values 1×77×24960"
    assert "latent 1×4×32×32 … 2×4×64×64 … 8×4×128×128" in str(dynamic)


def test_a_model_without_guidance_has_one_row_for_each_picture() -> None:
    alone = Pictures(SD15.batch, SD15.height, SD15.width, 8, 77, (1,))
    assert [p.best["time"][0] for p in profiles("unet", UNET, alone)] == [1, 2, 4, 1]


def test_a_decoder_has_a_row_for_each_picture() -> None:
    made = profiles("vae_decoder", DECODER, SD15)
    assert [p.best["latent"][0] for p in made] == [1, 2, 4, 1]
    assert made[-1].largest == {"latent": (4, 4, 128, 128)}
    pixels = {"image": Port("u8", ("batch", "image_height", "image_width", 3))}
    assert profiles("vae_encoder", pixels, SD15)[0].best == {"image": (1, 512, 512, 3)}


def test_what_runs_for_one_text_at_a_time_has_one_engine() -> None:
    tokens = {"tokens": Port("i32", ("batch", 77))}
    context = {"context": Port("f32", ("rows", "tokens", 768))}
    for network, inputs in (("text_encoder_2", tokens), ("context_projection", context)):
        (only,) = profiles(network, inputs, SD15)
        assert only.static
        assert next(iter(only.best.values()))[:2] == (1, 77)


def test_a_time_table_has_any_number_of_rows() -> None:
    (only,) = profiles("time_projection", {"timestep": Port("f32", ("rows",))}, SD15)
    assert (only.least["timestep"], only.largest["timestep"]) == ((1,), (4096,))


def test_fixed_sizes_need_no_dynamic_engine_beside_the_bucket() -> None:
    fixed = {"latent": Port("f32", ("batch", 4, 64, 64))}
    two = Pictures(Range(1, 1, 2), SD15.height, SD15.width, 8, 77, (1, 2))
    assert [p.static for p in profiles("vae_decoder", fixed, two)] == [True, True]
    three = Pictures(Range(1, 1, 3), SD15.height, SD15.width, 8, 77, (1, 2))
    assert [p.static for p in profiles("vae_decoder", fixed, three)] == [True, True, True]
    four = [p.static for p in profiles("vae_decoder", fixed, SD15)]
    assert four == [True, True, True, False]  # 3 is not in the bucket
    constant = {"latent": Port("f32", (1, 4, 64, 64))}
    assert [p.static for p in profiles("vae_decoder", constant, SD15)] == [True]


def test_a_side_that_pictures_do_not_tell_is_named() -> None:
    odd = UNET | {"image_keys_values": Port("f32", ("rows", "image_tokens", 10))}
    with pytest.raises(BackendUnavailable, match=r"unet_adapters .* how long image_tokens may be"):
        profiles("unet_adapters", odd, SD15)


def test_a_profile_takes_the_shapes_between_its_ends() -> None:
    dynamic = profiles("vae_decoder", DECODER, SD15)[-1]
    for shape, taken in (
        ((1, 4, 32, 32), True),
        ((4, 4, 128, 128), True),
        ((3, 4, 100, 33), True),
        ((5, 4, 64, 64), False),
        ((1, 4, 31, 64), False),
        ((1, 3, 64, 64), False),
        ((1, 4, 64), False),
    ):
        assert dynamic.takes({"latent": shape}) == taken
    assert not dynamic.takes({"image": (1, 4, 64, 64)})
    assert not dynamic.takes({})


def plan(host: Host = HERE, shape: tuple[int, ...] = (1,), **form: bool | str) -> Plan:
    least = {"x": (1,) * len(shape)} if form.pop("dynamic", False) else {"x": shape}
    return Plan(Profile(least, {"x": shape}, {"x": shape}), Form(**form), host)  # type: ignore[arg-type]


def test_keys_name_all_that_shapes_a_plan() -> None:
    plans = [
        plan(),
        plan(shape=(2,)),
        plan(shape=(2,), dynamic=True),
        plan(refittable=True),
        plan(stripped=True),
        plan(version_compatible=True),
        plan(hardware="same-capability"),
        plan(Host("11.3.0.1", HERE.gpu, HERE.architecture)),
        plan(Host(HERE.version, "NVIDIA A100", HERE.architecture)),
        plan(Host(HERE.version, HERE.gpu, "sm_80")),
    ]
    assert len({tuple(sorted(p.key.items())) for p in plans}) == len(plans)
    assert plan().key == plan().key


@pytest.mark.parametrize(
    ("there", "form", "runs"),
    [
        (HERE, {}, True),
        (Host("11.3.0.1", "NVIDIA H200", "sm_90"), {}, False),
        (Host("11.3.0.1", "NVIDIA H200", "sm_90"), {"version_compatible": True}, True),
        (Host("11.5.0.1", "NVIDIA H200", "sm_90"), {"version_compatible": True}, False),
        (Host("10.9.0.1", "NVIDIA H200", "sm_90"), {"version_compatible": True}, False),
        (Host("11.4.0.106", "NVIDIA H100", "sm_90"), {}, False),
        (Host("11.4.0.106", "NVIDIA H100", "sm_90"), {"hardware": "same-capability"}, True),
        (Host("11.4.0.106", "NVIDIA A100", "sm_80"), {"hardware": "same-capability"}, False),
        (Host("11.4.0.106", "NVIDIA A100", "sm_80"), {"hardware": "ampere-or-later"}, True),
    ],
)
def test_a_plan_runs_where_it_was_built_or_as_its_form_allows(
    there: Host, form: dict[str, bool | str], runs: bool
) -> None:
    assert HERE.runs(plan(there, **form)) == runs


def test_a_gpu_before_ampere_runs_no_plan_for_later_ones() -> None:
    old = Host(HERE.version, "Tesla T4", "sm_75")
    assert not old.runs(plan(hardware="ampere-or-later"))


def test_static_engines_come_first_then_those_for_this_machine_alone() -> None:
    dynamic = plan(shape=(4,), dynamic=True)
    wide = plan(shape=(4,), hardware="ampere-or-later")
    own, other = plan(shape=(4,)), plan(shape=(3,))
    refittable = plan(shape=(4,), refittable=True)
    order = serving([dynamic, wide, other, refittable, own], {"x": (4,)}, HERE)
    assert order == [own, wide, refittable, dynamic]
