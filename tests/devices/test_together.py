"""Calls of several runs as one: what each becomes is what it becomes alone."""

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from sdfast import store
from sdfast.backends import Options, usable
from sdfast.devices.calls import Call
from sdfast.devices.together import Together, count, is_by_row, kind, part
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


@pytest.mark.parametrize("alone", [False, True])
def test_every_row_is_what_it_is_alone(opened: Opened, alone: bool) -> None:
    unet, together = opened["unet"], Together()
    sets = [filled(opened, rows, seed) for seed, rows in enumerate((2, 1, 2, 6))]
    by_themselves = []
    for tensors in sets:
        for k in range(count((unet, tensors))):
            together.make([part((unet, tensors), k, k + 1)], alone)
        by_themselves.append(noise(tensors))
        np.asarray(tensors["noise"])[:] = 0
    together.make([(unet, tensors) for tensors in sets], alone)
    for tensors, expected in zip(sets, by_themselves, strict=True):
        found = noise(tensors)
        assert np.abs(expected).max() > 0.1
        if is_by_row(unet):
            assert (found == expected).all()
        else:
            assert found == pytest.approx(expected, abs=1e-4)


def test_parts_of_calls_are_made_beside_each_other(opened: Opened) -> None:
    unet, tensors = opened["unet"], filled(opened, 4, 7)
    with ThreadPoolExecutor(2) as pool:
        if is_by_row(unet):  # others are made by one thread alone
            halves = [part((unet, tensors), 0, 2), part((unet, tensors), 2, 4)]
            list(pool.map(lambda half: Together().make([half], alone=False), halves))
        else:
            Together().make([(unet, tensors)])
    found = noise(tensors)
    np.asarray(tensors["noise"])[:] = 0
    unet.bind(tensors)
    unet.run()
    assert noise(tensors) == pytest.approx(found, abs=1e-4)


def test_networks_and_shapes_are_told_apart(opened: Opened) -> None:
    unet, decoder = opened["unet"], opened["vae_decoder"]
    latent = {
        "latent": Tensor.zeros((1, 4, 8, 8), "f32"),
        "image": Tensor.zeros((1, 64, 64, 3), "u8"),
    }
    small, large = filled(opened, 1, 0), filled(opened, 2, 1, side=16)
    long, other = filled(opened, 1, 2, tokens=154), filled(opened, 2, 3)
    calls: list[Call] = [(unet, small), (decoder, latent), (unet, large), (unet, long)]
    assert len({kind(call) for call in calls}) == 4
    assert kind((unet, other)) == kind(calls[0])
    for call in calls:
        Together().make([call])
    for tensors in (small, large, long):
        assert np.abs(noise(tensors)).max() > 0.1
    assert np.asarray(latent["image"]).any()


def test_what_is_more_than_one_network_is_called_alone() -> None:
    class Steered:
        runs = 0

        def bind(self, tensors: Mapping[str, Tensor]) -> None: ...
        def run(self) -> None:
            self.runs += 1

    network = Steered()
    assert kind((network, {})) is None
    Together().make([(network, {})])
    assert network.runs == 1


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
