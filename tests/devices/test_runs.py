"""Programs as a GPU runs them, table, graphs and all, against the CPU's loop: the GPU's kernels and
the host's part are the real ones, and what is enqueued runs on the CPU (gpu_on_cpu.py)."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import pytest
from devices.gpu_on_cpu import OnCpu, Recorded, kernels
from numpy.typing import NDArray

from sdfast import noise, program, samplers, schedules
from sdfast.caching import Cache, cached
from sdfast.devices.cpu import Denoiser, HostRun, Loop, Progress, TimeTable, start
from sdfast.devices.cuda import Run
from sdfast.devices.graphs import Graphs
from sdfast.devices.runs import Networks, Plan
from sdfast.devices.steps import table
from sdfast.errors import Cancelled
from sdfast.guidance import Guidance
from sdfast.program import Program
from sdfast.redrawing import Redrawn, masked
from sdfast.schedules import NoiseSchedule
from sdfast.tensors import Tensor

SD = NoiseSchedule.from_betas("scaled_linear", 0.00085, 0.012, 1000)
SHAPE = (2, 4, 8, 6)
ROWS = 2 * SHAPE[0]
STEPS = 5
SIGMAS = schedules.sigmas("karras", STEPS, SD)
GUIDED = Guidance(4.5)
STATIC = [name for name in samplers.names() if samplers.get(name).static]
SEEDS = (3, 2**64 - 1)


class Unet:
    """features = tanh(latent) · context + time; noise = 0.4 · latent + 0.5 · features."""

    inner = True

    def __init__(self) -> None:
        self.rows: list[int] = []

    def bind(self, tensors: Mapping[str, Tensor], /) -> None:
        self._bound = {name: np.asarray(tensor) for name, tensor in tensors.items()}

    def run(self) -> None:
        bound = self._bound
        latent, features = bound["latent"], bound["features"]
        if self.inner:
            time = bound["time"].mean(1) if "time" in bound else bound["timestep"] / 2e4
            context = bound["context"][:, None, None, None]
            features[:] = np.tanh(latent) * context + time[:, None, None, None]
        bound["noise"][:] = 0.4 * latent + 0.5 * features
        self.rows.append(len(latent))


class Outermost(Unet):
    inner = False


class Time:
    """time [rows, 3] of timestep and pooled."""

    def bind(self, tensors: Mapping[str, Tensor], /) -> None:
        self._bound = {name: np.asarray(tensor) for name, tensor in tensors.items()}

    def run(self) -> None:
        bound = self._bound
        bound["time"][:] = np.sin(bound["timestep"])[:, None] + bound["pooled"] * [1, 2, 3]


class Decoder:
    def bind(self, tensors: Mapping[str, Tensor], /) -> None:
        self._latent, self._image = (np.asarray(tensors[n]) for n in ("latent", "image"))

    def run(self) -> None:
        pixels = np.clip(self._latent[:, :3] * 100 + 128, 0, 255).astype(np.uint8)
        self._image[:] = pixels.transpose(0, 2, 3, 1)


SHAPES: dict[str, tuple[tuple[int, ...], str]] = {
    "latent": ((ROWS, *SHAPE[1:]), "f32"),
    "timestep": ((ROWS,), "f32"),
    "context": ((ROWS,), "f32"),
    "features": ((ROWS, *SHAPE[1:]), "f32"),
    "noise": ((ROWS, *SHAPE[1:]), "f32"),
}
TIMED = {n: s for n, s in SHAPES.items() if n != "timestep"} | {"time": ((ROWS, 3), "f32")}
TIME: dict[str, tuple[tuple[int, ...], str]] = {
    "timestep": ((1,), "f32"),
    "pooled": ((1, 3), "f32"),
    "time": ((1, 3), "f32"),
}
PIXELS = (SHAPE[0], *SHAPE[2:], 3)
CONTEXT = np.linspace(0.3, 0.9, ROWS, dtype=np.float32)
POOLED = np.linspace(-0.1, 0.1, 2, dtype=np.float32)  # one for each half


class Drawn:
    """A plan on a stand-in for a GPU."""

    def __init__(
        self,
        form: str = "program",
        prediction: str = "epsilon",
        timed: bool = False,
        capturable: bool = True,
        limit: int = 1 << 30,
    ) -> None:
        self.gpu = OnCpu()
        self.unet, self.shallow = Unet(), Outermost()
        self.graphs = Graphs(self.gpu, limit)
        networks = Networks(
            Recorded(self.unet, self.gpu, capturable),
            Recorded(self.shallow, self.gpu),
            Recorded(Time(), self.gpu) if timed else None,
            Recorded(Decoder(), self.gpu),
        )
        shapes, time = (TIMED, TIME) if timed else (SHAPES, {})
        self.plan = Plan(
            self.gpu, self.graphs, networks, SHAPE, shapes, time, PIXELS, prediction, form
        )

    def __call__(
        self,
        traced: Program,
        guidance: Guidance = GUIDED,
        rng: str = "philox",
        progress: Progress | None = None,
        seeds: tuple[int, ...] = SEEDS,
        redrawn: Redrawn | None = None,
    ) -> NDArray[np.float32]:
        """The latents that the pictures were decoded from."""
        from_picture = redrawn is not None and not redrawn.fresh
        steps = table(traced, SD.timestep, guidance, rng, from_picture)
        self.plan.prepare(steps)
        np.asarray(self.plan.conditions["context"])[:] = CONTEXT
        for name, tensor in self.plan.time_conditions.items():
            if name == "pooled":
                np.asarray(tensor)[:] = POOLED.repeat(self.plan.evaluations)[:, None]
        self.plan.condition()
        self.plan.redraw(redrawn)
        picture = self.plan.draw(steps, traced.noise, rng, seeds, guidance, progress)
        latent = np.array(self.plan._result)
        expected = np.clip(latent[:, :3] * 100 + 128, 0, 255).astype(np.uint8)
        np.testing.assert_array_equal(np.asarray(picture), expected.transpose(0, 2, 3, 1))
        return latent


def on_the_cpu(
    traced: Program,
    guidance: Guidance = GUIDED,
    rng: str = "philox",
    prediction: str = "epsilon",
    timed: bool = False,
    redrawn: Redrawn | None = None,
    progress: Progress | None = None,
) -> NDArray[np.float32]:
    shapes = TIMED | {"timestep": SHAPES["timestep"]} if timed else SHAPES
    tensors = {name: Tensor.zeros(*spec) for name, spec in shapes.items()}
    np.asarray(tensors["context"])[:] = CONTEXT
    times = None
    if timed:
        sigmas = (i.sigma for i in traced.instructions if isinstance(i, program.Eval))
        timesteps = list(dict.fromkeys(map(SD.timestep, sigmas)))
        count = len(timesteps)
        embedded = {
            name: Tensor.zeros((2 * count, *spec[0][1:]), "f32") for name, spec in TIME.items()
        }
        np.asarray(embedded["pooled"])[:] = POOLED.repeat(count)[:, None]
        times = TimeTable(Time(), embedded, timesteps, tensors["time"])
        times.compute()
    denoiser = Denoiser(Unet(), tensors, SHAPE[0], SD, prediction, times, Outermost())
    loop = Loop(traced, denoiser, SHAPE)
    first, draw = noise.streams(traced.noise, rng, SEEDS)
    start(loop.x, traced.sigmas[0], first, redrawn)
    loop.run(guidance, draw, progress, redrawn)
    return np.array(loop.result)


def test_the_kernels_and_their_caller_agree_on_what_a_run_is() -> None:
    library = kernels()
    library.size_of_run.restype = library.place_of_last.restype = ctypes.c_uint64
    assert library.size_of_run() == ctypes.sizeof(Run)
    assert library.place_of_last() == Run.timesteps.offset


@pytest.mark.parametrize("form", ["program", "step"])
@pytest.mark.parametrize("name", STATIC)
def test_a_sampler_draws_the_same_bits_as_on_the_cpu(name: str, form: str) -> None:
    traced = program.trace(name, SIGMAS)
    expected, drawn = on_the_cpu(traced), Drawn(form)
    for _ in range(2):  # from the host, then as a graph
        np.testing.assert_array_equal(drawn(traced), expected)
    assert np.isfinite(expected).all()
    assert drawn.gpu.captures > 0


def of_numpy(array: NDArray[np.float64]) -> Tensor:
    tensor = Tensor.empty(array.shape, "f32")
    np.asarray(tensor)[:] = array
    return tensor


@pytest.mark.parametrize("rng", ["philox", "torch"])
@pytest.mark.parametrize("fresh", [False, True])
@pytest.mark.parametrize("mask", [False, True])
@pytest.mark.parametrize("name", ["euler", "dpmpp_2m_sde", "heun", "res_momentumized", "lms"])
def test_a_picture_is_redrawn_in_the_same_bits(
    name: str, mask: bool, fresh: bool, rng: str
) -> None:
    values = np.random.default_rng(3)
    picture = of_numpy(values.normal(size=SHAPE))
    over = of_numpy(values.uniform(size=(SHAPE[0], 1, *SHAPE[2:])).round(1)) if mask else None
    redrawn = Redrawn(picture, over, fresh)
    whole = program.trace(name, SIGMAS[2:])
    traced = masked(whole) if mask else whole
    drawn = Drawn()
    for again in (redrawn, replace(redrawn, latents=of_numpy(values.normal(size=SHAPE)))):
        expected = on_the_cpu(traced, rng=rng, redrawn=again)
        np.testing.assert_array_equal(drawn(traced, rng=rng, redrawn=again), expected)
    # What a run kept is gone with it.
    np.testing.assert_array_equal(drawn(whole, rng=rng), on_the_cpu(whole, rng=rng))


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize(
    "guidance",
    [Guidance(1.0), Guidance(0.0), Guidance(7.5, interval=(0.3, 3.0)), Guidance(7.5)],
)
def test_guidance_and_predictions_are_the_cpu_s(guidance: Guidance, prediction: str) -> None:
    traced = program.trace("dpmpp_2m", SIGMAS)
    drawn = Drawn(prediction=prediction)
    expected = on_the_cpu(traced, guidance, prediction=prediction)
    for _ in range(2):
        np.testing.assert_array_equal(drawn(traced, guidance), expected)
    halves = {2: guidance.scale != 1, 1: guidance.interval is not None or guidance.scale == 1}
    assert {rows // SHAPE[0] for rows in drawn.unet.rows} == {g for g, ran in halves.items() if ran}


@pytest.mark.parametrize("interval", [None, (0.3, 3.0)])
def test_rescaled_guidance_is_the_cpu_s(interval: tuple[float, float] | None) -> None:
    traced, guidance = program.trace("euler", SIGMAS), Guidance(7.5, 0.7, interval)
    drawn, expected = Drawn(), on_the_cpu(traced, guidance)
    for _ in range(2):  # sums of another order, in float64
        np.testing.assert_allclose(drawn(traced, guidance), expected, rtol=0, atol=1e-5)
    plain = on_the_cpu(traced, Guidance(7.5, 0.0, interval))
    assert np.abs(plain - expected).max() > 0.01


@pytest.mark.parametrize("rng", ["philox", "torch"])
@pytest.mark.parametrize("kind", noise.KINDS)
def test_every_kind_of_noise_is_the_cpu_s(kind: str, rng: str) -> None:
    traced = program.trace("lcm_custom_noise", SIGMAS, noise_kind=kind)
    np.testing.assert_array_equal(Drawn()(traced, rng=rng), on_the_cpu(traced, rng=rng))


@pytest.mark.parametrize("sampler", ["euler", "heun", "dpmpp_sde"])
@pytest.mark.parametrize("form", ["program", "step"])
def test_time_embeddings_come_from_a_table(sampler: str, form: str) -> None:
    traced = program.trace(sampler, SIGMAS)
    expected, drawn = on_the_cpu(traced, timed=True), Drawn(form, timed=True)
    for _ in range(2):
        np.testing.assert_array_equal(drawn(traced), expected)


@pytest.mark.parametrize("cache", [2, (0, 1, 4)])
@pytest.mark.parametrize("guidance", [GUIDED, Guidance(4.5, interval=(0.2, 3.0))])
def test_shallow_evaluations_run_the_outermost_part(cache: Cache, guidance: Guidance) -> None:
    traced = cached(program.trace("dpmpp_2m", SIGMAS), cache)
    drawn = Drawn()
    np.testing.assert_array_equal(drawn(traced, guidance), on_the_cpu(traced, guidance))
    assert drawn.shallow.rows


def test_another_request_launches_one_graph_and_captures_nothing() -> None:
    drawn = Drawn()
    drawn(program.trace("dpmpp_2m", SIGMAS))
    before = drawn.gpu.launches
    for sampler in ("euler", "euler_ancestral", "dpmpp_2m_sde", "ddim"):  # of as many evaluations
        traced = program.trace(sampler, schedules.sigmas("exponential", STEPS, SD))
        guidance = Guidance(3.0)
        np.testing.assert_array_equal(drawn(traced, guidance), on_the_cpu(traced, guidance))
    assert (drawn.gpu.captures, drawn.gpu.launches - before) == (1, 4)


def test_a_step_s_graph_serves_every_number_of_steps() -> None:
    drawn = Drawn("step")
    for steps in (5, 5, 8, 3):
        traced = program.trace("dpmpp_2m", schedules.sigmas("karras", steps, SD))
        np.testing.assert_array_equal(drawn(traced), on_the_cpu(traced))
    assert drawn.gpu.captures == 3  # what comes before the first evaluation, one, what comes after


def test_a_program_that_needs_more_room_gets_it() -> None:
    drawn = Drawn()
    for steps in (4, 70, 4):
        traced = program.trace("dpmpp_2s_ancestral", schedules.sigmas("karras", steps, SD))
        np.testing.assert_array_equal(drawn(traced), on_the_cpu(traced))


def test_networks_that_cannot_be_captured_are_enqueued_one_by_one() -> None:
    drawn, traced = Drawn(capturable=False), program.trace("dpmpp_2m", SIGMAS)
    assert drawn.plan.form == "eager"
    for _ in range(2):
        np.testing.assert_array_equal(drawn(traced), on_the_cpu(traced))
    assert drawn.gpu.captures == 0


def test_progress_is_told_of_every_evaluation_and_can_cancel() -> None:
    drawn, traced = Drawn(), program.trace("heun", SIGMAS)
    told: list[tuple[int, int | None]] = []
    seen, expected = list[NDArray[np.float32]](), list[NDArray[np.float32]]()

    def progress(done: int, of: int | None, denoised: Tensor) -> None:
        told.append((done, of))
        seen.append(np.array(denoised))

    on_the_cpu(traced, progress=lambda done, of, denoised: expected.append(np.array(denoised)))
    np.testing.assert_array_equal(drawn(traced, progress=progress), on_the_cpu(traced))
    total = traced.evaluations
    assert told == [(k, total) for k in range(1, total + 1)]
    # The last row goes on to the result.
    np.testing.assert_array_equal(np.stack(seen[:-1]), np.stack(expected[:-1]))
    ran = len(drawn.unet.rows)

    def cancel(done: int, total: int | None, denoised: Tensor) -> None:
        if done == 2:
            raise Cancelled("no more")

    with pytest.raises(Cancelled):
        drawn(traced, progress=cancel)
    assert len(drawn.unet.rows) - ran <= 4
    np.testing.assert_array_equal(drawn(traced), on_the_cpu(traced))  # and the next is as ever


def test_graphs_beyond_the_limit_make_room_for_the_latest() -> None:
    drawn = Drawn(limit=2 << 20)  # each is of 1 MiB
    kept = []
    for steps in (2, 3, 2, 4, 2, 3):
        drawn(program.trace("euler", schedules.sigmas("karras", steps, SD)))
        kept.append((len(drawn.graphs), drawn.gpu.captures))
    assert kept == [(1, 1), (2, 2), (2, 2), (2, 3), (2, 3), (2, 4)]


def test_a_sampler_that_depends_on_data_evaluates_one_by_one() -> None:
    drawn = Drawn(timed=True)
    traced = program.trace("euler", SIGMAS)
    drawn(traced)  # makes room and fills the conditions

    class Evaluated:
        timestep = staticmethod(SD.timestep)

        def begin(self) -> None:
            pass

        def __call__(
            self, out: Tensor, x: Tensor, sigma: float, t: float, guidance: Guidance
        ) -> None:
            drawn.plan.evaluate(out, x, sigma, t, guidance)

    run = HostRun(samplers.get("euler"), SIGMAS, {}, Evaluated(), SHAPE)
    first, draw = noise.streams("gaussian", "philox", SEEDS)
    start(run.x, SIGMAS[0], first)
    run.run(GUIDED, draw)
    expected = on_the_cpu(traced, timed=True)
    np.testing.assert_allclose(np.asarray(run.result), expected, rtol=0, atol=1e-5)
    picture = np.array(drawn.plan.decode(run.result))
    assert picture.shape == PIXELS
