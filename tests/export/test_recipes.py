"""Recipes: those that come with sdfast, which checkpoint takes which, what a file may not say."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from sdfast import networks, samplers, schedules, store
from sdfast.errors import RecipeError
from sdfast.export import random_checkpoint, recipes, sources
from sdfast.export.components import Checkpoint
from sdfast.export.settings import Settings

ASKED_FOR = {
    *("sd15", "sd21", "sdxl", "sdxl-refiner", "sdxl-turbo", "sd-turbo", "lcm", "sd15-inpaint"),
    *("instruct-pix2pix", "sd15-controlnet", "sdxl-controlnet", "demo"),
    *("sd15-t2i-adapter", "sdxl-t2i-adapter"),
}


@pytest.fixture
def written(tmp_path: Path) -> Path:
    """A recipe of one's own, as sd15."""
    file = tmp_path / "mine.toml"
    file.write_text((store.packaged() / "sd15.toml").read_text())
    return file


@pytest.mark.parametrize("backend", recipes.BACKENDS)
@pytest.mark.parametrize("name", recipes.names())
def test_a_recipe_says_all_that_an_export_needs(name: str, backend: str) -> None:
    recipe = recipes.load(name, backend)
    assert (recipe.name, recipe.purpose != "") == (name, True)
    assert tuple(recipe.precision) == recipe.networks
    assert list(recipe.networks) == [n for n in networks.NETWORKS if n in recipe.networks]
    hoisted = recipe.options.hoisted_time and "unet" in recipe.networks
    assert ("time_projection" in recipe.networks) == hoisted
    assert set(recipe.profiles) == {"batch", "height", "width"}
    if recipe.defaults is None:
        assert recipe.networks in (("controlnet",), ("t2i_adapter",))
    else:
        assert recipe.defaults.sampler in samplers.names()
        assert recipe.defaults.schedule in schedules.names()


def test_every_published_model_has_one() -> None:
    assert set(recipes.names()) >= ASKED_FOR


@pytest.mark.parametrize("name", ["sd-turbo", "sdxl-turbo", "sdxl-lightning"])
def test_few_step_models_go_without_guidance_on_trailing_timesteps(name: str) -> None:
    defaults = recipes.load(name).defaults
    assert defaults is not None
    assert (defaults.guidance, defaults.schedule) == (1.0, "trailing")
    assert defaults.steps <= 4


def test_a_backend_has_its_way_and_the_others_theirs() -> None:
    plain, tensorrt = (recipes.load("sdxl", backend) for backend in ("onnxruntime", "tensorrt"))
    assert set(plain.precision.values()) == {"fp32"}
    assert tensorrt.precision["unet"] == tensorrt.precision["context_projection"] == "fp16"
    assert tensorrt.precision["vae_decoder"] == "bf16"  # it overflows fp16
    assert tensorrt.profiles == plain.profiles


def test_a_file_of_ones_own_is_read(written: Path) -> None:
    assert replace(recipes.load(written), name="sd15") == recipes.load("sd15")
    assert recipes.load(str(written)).name == "mine"


def test_a_table_of_a_backend_changes_what_it_names_alone(written: Path) -> None:
    text, end, _ = written.read_text().partition("[backend.openvino")
    table = "]\nlayout = 'checkpoint'\ngraph = { hoisted_time = false }\n"
    written.write_text(f"{text}{end}{table}precision = {{ unet = 'bf16' }}\n")
    base, changed = recipes.load(written), recipes.load(written, "openvino")
    assert changed.layout == "checkpoint"
    assert changed.options == replace(base.options, hoisted_time=False)
    assert set(base.networks) - set(changed.networks) == {"time_projection"}
    halves = {name for name, precision in changed.precision.items() if precision == "bf16"}
    assert halves == {"unet", "context_projection"}  # a projection goes with its U-Net


def test_sides_of_one_size_are_fixed_in_the_graphs(written: Path) -> None:
    ranged = "height = { minimum = 256, optimum = 512, maximum = 1024 }"
    fixed = "height = { minimum = 640, optimum = 640, maximum = 640 }"
    written.write_text(written.read_text().replace(ranged, fixed))
    options = recipes.load(written).options
    assert (options.height, options.width) == (80, None)


WRONG = {
    "unknown key": ("layout =", "layouts =", "unknown key layouts; did you mean 'layout'?; known:"),
    "missing key": ('family = "sd1"', "", "lacks the key family"),
    "unknown family": ('"sd1"', '"xl"', "family is 'xl'; did you mean 'sdxl'?; it must be one of"),
    "unknown network": ('"unet",', '"unett",', "networks is 'unett'; did you mean 'unet'?"),
    "derived network": ('"unet",', '"unet", "time_projection",', "networks is 'time_projection'"),
    "network twice": ('"unet",', '"unet", "unet",', "networks names a network twice"),
    "network left out": ('"vae_encoder",', "", "networks lacks vae_encoder, which a bundle of sd1"),
    "another's network": ('"unet",', '"unet", "text_encoder_2",', "which sd1 does not have"),
    "controlnet beside": ('"unet",', '"unet", "controlnet",', "a bundle of its own"),
    "unknown precision": ('"fp32"', '"fp8"', "precision is 'fp8'; did you mean 'fp"),
    "precision left out": ('"fp32"', '{ unet = "fp16" }', "lacks the key precision.text_encoder"),
    "precision of another": ('"fp16"', '{ unit = "fp16" }', "precision.unit; did you mean 'unet'"),
    "unknown layout": ('"graph"', '"graphs"', "layout is 'graphs'; did you mean 'graph'?"),
    "unknown option": ("fused_norms", "fused_norm", "graph.fused_norm; did you mean 'fused_norms'"),
    "option left out": ("fused_norms = true", "", "graph lacks the key graph.fused_norms"),
    "option of words": ("fused_norms = true", 'fused_norms = "yes"', "must be true or false"),
    "unknown axis": ("width =", "widht =", "profiles.widht; did you mean 'width'?"),
    "size left out": (
        "batch = { minimum = 1,",
        "batch = {",
        "lacks the key profiles.batch.minimum",
    ),
    "size of words": (
        "minimum = 1,",
        "minimum = 'one',",
        "profiles.batch.minimum is 'one'; it must",
    ),
    "size of half": ("minimum = 1,", "minimum = 0.5,", "a whole number from 1"),
    "size of nothing": ("minimum = 1,", "minimum = 0,", "a whole number from 1"),
    "minimum above": ("minimum = 256", "minimum = 1088", "minimum ≤ optimum ≤ maximum"),
    "odd side": ("optimum = 512", "optimum = 520", "optimum is 520; it must be a multiple of 64"),
    "unknown sampler": ("dpmpp_2m", "dpmpp_2n", "did you mean 'dpmpp_2m'"),
    "unknown schedule": ("karras", "karas", "did you mean 'karras'"),
    "sampler of a number": ('"dpmpp_2m"', "2", "must be text in quotes"),
    "no steps": (
        "steps = 20",
        "steps = 0",
        "defaults.steps is 0; it must be a whole number from 1",
    ),
    "no guidance": ("guidance = 7.5", "guidance = nan", "a number from 0 to 100"),
    "defaults left out": (
        "[defaults]",
        "[default]",
        "unknown key default; did you mean 'defaults'",
    ),
    "unknown backend": ("backend.tensorrt", "backend.cuda", "unknown key backend.cuda"),
    "key of a backend": ('precision = "fp16"', "steps = 1", "unknown key backend.tensorrt.steps"),
    "no purpose": ("text to pictures of 512×512", " ", "purpose is ' '; it must be text"),
    "no table": ("[defaults]", "[[defaults]]", "it must be a table of sampler, schedule, steps"),
    "no list": ("networks = [", "networks.all = [", "it must be a list of text_encoder, text_"),
    "no TOML": ("[graph]", "[graph", "cannot be read as TOML"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_mistake_names_the_file_the_key_and_what_is_allowed(name: str, written: Path) -> None:
    old, new, expected = WRONG[name]
    text = written.read_text()
    assert old in text
    written.write_text(text.replace(old, new, 1))
    with pytest.raises(RecipeError) as caught:
        recipes.load(written)  # a table is checked for whichever backend
    assert str(written) in str(caught.value)
    assert expected in str(caught.value)


def test_a_recipe_that_is_not_there_is_told_with_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="no recipe 'sdlx'; did you mean 'sdxl'"):
        recipes.load("sdlx")
    with pytest.raises(RecipeError, match=r"give the path of a \.toml file"):
        recipes.load(tmp_path / "gone.toml")
    with pytest.raises(RecipeError, match="backend 'openvno' is unknown; did you mean 'openvino'"):
        recipes.load("sd15", "openvno")


def test_a_controlnet_has_no_defaults(tmp_path: Path) -> None:
    text = (store.packaged() / "sd15-controlnet.toml").read_text()
    drawn = "[defaults]\nsampler = 'euler'\nschedule = 'karras'\nsteps = 1\nguidance = 1\n"
    (tmp_path / "mine.toml").write_text(text + drawn)
    with pytest.raises(RecipeError, match="defaults must not be there"):
        recipes.load(tmp_path / "mine.toml")
    whole = (store.packaged() / "sd15.toml").read_text()
    (tmp_path / "mine.toml").write_text(whole.partition("[defaults]")[0])
    with pytest.raises(RecipeError, match="lacks the key defaults"):
        recipes.load(tmp_path / "mine.toml")


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Checkpoint]:
    """A small checkpoint for each published kind that a recipe is for."""
    place = tmp_path_factory.mktemp("checkpoints")
    return {
        name: sources.read(random_checkpoint(f"tiny-{name}", place / name))
        for name in ASKED_FOR - {"demo"}
    }


@pytest.mark.parametrize("name", sorted(ASKED_FOR - {"demo"}))
def test_a_checkpoint_takes_the_recipe_of_its_kind(
    name: str, checkpoints: dict[str, Checkpoint]
) -> None:
    recipe = recipes.for_checkpoint(checkpoints[name], "tensorrt")
    assert recipe == recipes.load(name, "tensorrt")
    recipes.require_fit(recipe, checkpoints[name])


def test_kinds_without_a_recipe_take_their_familys(checkpoints: dict[str, Checkpoint]) -> None:
    inpaint = replace(checkpoints["sd21"], task="inpaint")
    assert recipes.for_checkpoint(inpaint).name == "sd21"
    control = replace(checkpoints["sd15-controlnet"], family="sd2")
    assert recipes.for_checkpoint(control).name == "sd21-controlnet"


def test_an_lcm_of_another_family_samples_as_an_lcm(checkpoints: dict[str, Checkpoint]) -> None:
    parts = checkpoints["sdxl"].components
    embeds = replace(parts["unet"], config={**parts["unet"].config, "time_cond_proj_dim": 256})
    distilled = replace(checkpoints["sdxl"], components={**parts, "unet": embeds})
    recipe = recipes.for_checkpoint(distilled)
    assert recipe == replace(recipes.load("sdxl"), defaults=recipes.load("lcm").defaults)


def test_trailing_timesteps_alone_make_no_few_step_model(
    checkpoints: dict[str, Checkpoint],
) -> None:
    turbo = checkpoints["sd-turbo"]
    for more in ({"rescale_betas_zero_snr": True}, {"prediction_type": "v_prediction"}):
        other = replace(turbo, scheduler={**turbo.scheduler, **more})
        assert recipes.for_checkpoint(other).name == "sd21"
    lightning = {**checkpoints["sdxl"].scheduler, "timestep_spacing": "trailing"}
    distilled = replace(checkpoints["sdxl"], scheduler=lightning)
    assert recipes.for_checkpoint(distilled).name == "sdxl-lightning"


def test_a_recipe_of_another_kind_is_refused(checkpoints: dict[str, Checkpoint]) -> None:
    for recipe, checkpoint, problem in (
        ("sdxl", "sd15", "recipe sdxl is for sdxl, the checkpoint is sd1: leave --recipe out"),
        ("sd15", "sd15-controlnet", "is for a whole model, the checkpoint is a ControlNet"),
        ("sd15-controlnet", "sd15", "is for a ControlNet, the checkpoint is a whole model"),
        ("sd15-t2i-adapter", "sd15-controlnet", "is for a T2I-Adapter, the checkpoint is a Contr"),
    ):
        with pytest.raises(RecipeError, match=problem):
            Settings(recipe=recipes.load(recipe)).recipe_for(checkpoints[checkpoint])


def test_settings_choose_recipe_backend_and_precision(checkpoints: dict[str, Checkpoint]) -> None:
    sdxl = checkpoints["sdxl"]
    assert Settings(backend="tensorrt").recipe_for(sdxl) == recipes.load("sdxl", "tensorrt")
    halved = Settings(recipe=recipes.load("sdxl-turbo"), precision="bf16").recipe_for(sdxl)
    assert (halved.name, set(halved.precision.values())) == ("sdxl-turbo", {"bf16"})
    assert tuple(halved.precision) == halved.networks
    with pytest.raises(RecipeError, match="precision 'fp61' is unknown; did you mean 'fp16'"):
        Settings(precision="fp61")
    with pytest.raises(RecipeError, match="backend 'cuda' is unknown; known: onnxruntime, "):
        Settings(backend="cuda")


def test_recipes_are_listed_without_torch() -> None:
    code = (
        "import sys; from sdfast.export import recipes; recipes.load('sdxl');"
        "print([m for m in ('torch', 'diffusers', 'transformers', 'onnx') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
