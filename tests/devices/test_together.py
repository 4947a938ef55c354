"""Calls of several runs as one: what each becomes is what it becomes alone."""

from collections.abc import Mapping

import numpy as np
import pytest

from sdfast import store
from sdfast.backends import Options, usable
from sdfast.devices.calls import Call
from sdfast.devices.together import ByRow, Together, alike
from sdfast.opened import Opened
from sdfast.plans.host import tensors as room
from sdfast.tensors import Tensor

BACKENDS = [name for name in ("onnxruntime", "openvino", "torch") if usable()[name] is None]


@pytest.fixture(scope="module", params=BACKENDS)
def opened(request: pytest.FixtureRequest) -> Opened:
    return Opened(store.load("demo"), request.param, Options(2, "fp32", throughput=True))


def filled(
    opened: Opened, rows: int, seed: int, side: int = 8, tokens: int = 77
) -> dict[str, Tensor]:
    tensors = room(opened, "time_projection", "unet", rows=rows, tokens=tokens, sides=(side, side))
    random = np.random.default_rng(seed)
    for name in opened.inputs("unet"):
        array = np.asarray(tensors[name])
        array[:] = random.standard_normal(array.shape)
    return {name: tensors[name] for name in opened.tensors("unet")}


def noise(tensors: Mapping[str, Tensor]) -> np.ndarray:
    return np.array(tensors["noise"])


def test_every_row_is_what_it_is_alone(opened: Opened) -> None:
    unet, together = opened["unet"], Together()
    sets = [filled(opened, rows, seed) for seed, rows in enumerate((2, 1, 2, 6))]
    alone = []
    for tensors in sets:
        together.make([(unet, tensors)])
        alone.append(noise(tensors))
        np.asarray(tensors["noise"])[:] = 0
    (calls,) = alike([(unet, tensors) for tensors in sets])
    together.make(calls)
    for tensors, expected in zip(sets, alone, strict=True):
        found = noise(tensors)
        assert np.abs(expected).max() > 0.1
        if isinstance(unet, ByRow):
            assert (found == expected).all()
        else:
            assert found == pytest.approx(expected, abs=1e-4)


def test_a_row_is_what_the_engine_makes_of_it_in_a_batch(opened: Opened) -> None:
    unet, tensors = opened["unet"], filled(opened, 4, 7)
    Together().make([(unet, tensors)])
    found = noise(tensors)
    np.asarray(tensors["noise"])[:] = 0
    unet.bind(tensors)
    unet.run()
    assert noise(tensors) == pytest.approx(found, abs=1e-4)


def test_networks_and_shapes_are_told_apart(opened: Opened) -> None:
    unet, time = opened["unet"], opened["vae_decoder"]
    latent = {
        "latent": Tensor.zeros((1, 4, 8, 8), "f32"),
        "image": Tensor.zeros((1, 64, 64, 3), "u8"),
    }
    small, large = filled(opened, 1, 0), filled(opened, 2, 1, side=16)
    long, other = filled(opened, 1, 2, tokens=154), filled(opened, 2, 3)
    calls: list[Call] = [(unet, small), (time, latent), (unet, large), (unet, long), (unet, other)]
    places = [[calls.index(call) for call in group] for group in alike(calls)]
    by_row = isinstance(unet, ByRow)
    assert places == ([[0, 1, 2, 3, 4]] if by_row else [[0, 4], [1], [2], [3]])
    for group in alike(calls):
        Together(2).make(group)
    for tensors in (small, large, long, other):
        assert np.abs(noise(tensors)).max() > 0.1
    assert np.asarray(latent["image"]).any()


def test_what_is_more_than_one_network_is_called_alone() -> None:
    class Steered:
        runs = 0

        def bind(self, tensors: Mapping[str, Tensor]) -> None: ...
        def run(self) -> None:
            self.runs += 1

    network = Steered()
    groups = alike([(network, {}), (network, {})])
    assert [len(group) for group in groups] == [1, 1]
    for group in groups:
        Together().make(group)
    assert network.runs == 2


def test_an_engine_that_ran_rows_runs_whole_again_when_it_was_closed(opened: Opened) -> None:
    unet, tensors = opened["unet"], filled(opened, 2, 5)
    Together().make([(unet, tensors)])
    expected = noise(tensors)
    unet.close()
    unet.bind(tensors)
    unet.run()
    assert noise(tensors) == pytest.approx(expected, abs=1e-4)
    unet.close()
    Together().make([(unet, tensors)])
    assert noise(tensors) == pytest.approx(expected, abs=1e-4)
