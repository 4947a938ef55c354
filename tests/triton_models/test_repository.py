"""Model repositories of Triton: their configurations by Triton's schema, and what is in them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from google.protobuf import text_format

from sdfast import bundle, store
from sdfast.errors import InvalidRequest, OutputError
from sdfast.request import Request
from sdfast.triton import configuration, export

from .schema import SCHEMA, parsed

DEMO = store.load("demo")


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_the_drawing_model_is_configured_by_the_schema(device: str, tmp_path: Path) -> None:
    (made,) = export(DEMO, tmp_path, device=device, instances=2, parameters={"precision": "fp32"})
    config = parsed(made)
    assert (made.name, config.name) == ("demo", "demo")
    assert (config.backend, config.platform) == ("python", "")
    group = SCHEMA.ModelInstanceGroup
    kind = {"cpu": group.KIND_CPU, "cuda": group.KIND_GPU}[device]
    assert [(one.kind, one.count) for one in config.instance_group] == [(kind, 2)]
    assert config.max_batch_size == 0
    assert not config.HasField("dynamic_batching")
    assert not config.model_transaction_policy.decoupled
    assert {k: v.string_value for k, v in config.parameters.items()} == {"precision": "fp32"}
    assert [one.name for one in config.input if not one.optional] == ["prompt"]
    types = {one.name: SCHEMA.DataType.Name(one.data_type) for one in config.output}
    assert types == {"image": "TYPE_UINT8", "seed": "TYPE_UINT64"}
    assert [list(one.dims) for one in config.output] == [[-1, -1, 3], [1]]


def test_every_input_is_a_parameter_of_requests() -> None:
    known = Request("x").to_dict()
    assert all(field.name in known for field in configuration.INPUTS)


def test_the_repository_has_the_whole_bundle(tmp_path: Path) -> None:
    (made,) = export(DEMO, tmp_path / "models")
    assert bundle.load(made / "1" / "bundle").manifest == DEMO.manifest
    assert [path.name for path in (tmp_path / "models").iterdir()] == ["demo"]


@pytest.mark.parametrize("network", DEMO.manifest.networks)
def test_a_network_alone_is_what_its_configuration_says(network: str, tmp_path: Path) -> None:
    _, made = export(DEMO, tmp_path, name="other", networks=(network,))
    config = parsed(made)
    assert (made.name, config.name) == (f"other_{network}",) * 2
    assert (config.platform, config.backend) == ("onnxruntime_onnx", "")
    session = onnxruntime.InferenceSession(made / "1" / "model.onnx")
    types = {"TYPE_FP32": "float", "TYPE_INT32": "int32", "TYPE_UINT8": "uint8"}
    for told, found in (
        (config.input, session.get_inputs()),
        (config.output, session.get_outputs()),
    ):
        assert {
            one.name: (
                f"tensor({types[SCHEMA.DataType.Name(one.data_type)]})",
                [None if side == -1 else side for side in one.dims],
            )
            for one in told
        } == {
            one.name: (one.type, [s if isinstance(s, int) else None for s in one.shape])
            for one in found
        }


def test_a_network_alone_computes_what_it_does_in_the_bundle(tmp_path: Path) -> None:
    _, made = export(DEMO, tmp_path, networks=("text_encoder",))
    feed = {"tokens": np.arange(77, dtype=np.int32)[None]}
    own, alone = (
        onnxruntime.InferenceSession(file).run(["context"], feed)[0]
        for file in (DEMO.network("text_encoder"), made / "1" / "model.onnx")
    )
    assert np.array_equal(own, alone)


@pytest.mark.parametrize(
    ("wrong", "word"),
    [
        ({"name": "../demo"}, "no folder's"),
        ({"name": ""}, "no folder's"),
        ({"device": "gpu"}, "cpu or cuda"),
        ({"instances": 0}, "from 1 to 64"),
        ({"networks": ("unett",)}, "did you mean 'unet'"),
        ({"networks": ("unet", "unet")}, "named twice"),
        ({"parameters": {"backend": "tensorrt"}}, "does not run on cpu"),
        ({"parameters": {"precision": "fp8"}}, "auto, fp32, bf16, fp16"),
    ],
)
def test_what_cannot_be_is_refused_and_nothing_written(
    wrong: dict[str, object], word: str, tmp_path: Path
) -> None:
    with pytest.raises(InvalidRequest, match=word):
        export(DEMO, tmp_path / "models", **wrong)
    assert not (tmp_path / "models").exists()


def test_bundles_that_draw_nothing_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match="for task control"):
        export(store.load("demo-control"), tmp_path)


def test_a_model_that_is_there_stays_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "demo_unet").mkdir()
    with pytest.raises(OutputError, match="is there already"):
        export(DEMO, tmp_path, networks=("unet",))
    assert [path.name for path in tmp_path.iterdir()] == ["demo_unet"]


def test_a_folder_that_cannot_be_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="cannot be written"):
        export(DEMO, tmp_path / "file")


def test_the_schema_refuses_what_it_does_not_know() -> None:
    with pytest.raises(text_format.ParseError):
        text_format.Parse('name: "x" backends: "python"', SCHEMA.ModelConfig())
