"""Bundles of small models of every kind, their graphs written by hand: a U-Net that depends on all
it reads, plain or hoisted, with whole text encoders, decoder and encoder around it."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import tokenizers
from numpy.typing import NDArray

from sdfast import bundle, store
from sdfast.backends import open_engine
from sdfast.bundle import Context, Defaults, Difference, Graph, Manifest, Network, Sizes, Tokenizer

Array = NDArray[Any]
DEMO = store.load("demo")
WORDS = DEMO.path / DEMO.manifest.tokenizers["text_encoder"].file


@dataclass(frozen=True)
class Model:
    """What the U-Net of a family reads: contexts of these widths, and these numbers beside them."""

    widths: Mapping[str, int]
    told: Mapping[str, int] = field(default_factory=dict)  # pooled, sizes and guidance: how many
    zeros_for_empty: bool = False


MODELS = {
    "sd": Model({"text_encoder": 6}),
    "xl": Model({"text_encoder": 4, "text_encoder_2": 6}, {"pooled": 5, "sizes": 6}, True),
    "refiner": Model({"text_encoder_2": 6}, {"pooled": 5, "sizes": 5}),
    "lcm": Model({"text_encoder": 6}, {"guidance": 1}),
    "lcm-xl": Model(
        {"text_encoder": 4, "text_encoder_2": 6}, {"pooled": 5, "sizes": 6, "guidance": 1}
    ),
}
FORMS = {"plain": (), "time": ("time",), "context": ("context",), "both": ("time", "context")}


def weights(model: Model) -> dict[str, Array]:
    """Weights and constants of all graphs; what is left of high noise is of a picture's size."""
    rng = np.random.default_rng(7)
    vocabulary = tokenizers.Tokenizer.from_file(str(WORDS)).get_vocab_size()

    def drawn(*shape: int) -> Array:
        return (rng.standard_normal(shape) / 2).astype(np.float32)

    constants: dict[str, Any] = {
        "one": np.array([1], np.int64),
        "sides": np.array([2, 3], np.int64),
        "flat": np.array([0, 4, -1], np.int64),
        "frequencies": np.array([[0.1, 0.01, 0.001]], np.float32),
        "decay": np.float32(0.9),
        "part": np.float32(0.1),
        "centimetres": np.float32(0.01),
        "reds": np.full((3, 4, 1, 1), 40, np.float32),
        "greys": np.full((4, 3, 1, 1), 0.01, np.float32),
        "grown": np.array([1, 1, 8, 8], np.float32),
        "black": np.float32(0),
        "white": np.float32(255),
    }
    return constants | {
        "time_weight": drawn(3 + sum(model.told.values()), 4),
        "kv_weight": drawn(sum(model.widths.values()), 8),
        "pooled_weight": drawn(6, 5),
        **{name: drawn(vocabulary, width) for name, width in model.widths.items()},
    }


def projected_time(model: Model) -> str:
    """timestep, and all that is told, become time: a shift for each of four channels."""
    parts = {"pooled": "pooled", "sizes": "lengths", "guidance": "scale"}
    told = ["cosines", *(parts[name] for name in model.told)]
    lines = {
        "sizes": "lengths = Mul (sizes, centimetres)",
        "guidance": "scale = Unsqueeze (guidance, one)",
    }
    return "\n".join(
        [
            "column = Unsqueeze (timestep, one)",
            "angles = Mul (column, frequencies)",
            "cosines = Cos (angles)",
            *(lines[name] for name in model.told if name in lines),
            f"all = Concat <axis = 1> ({', '.join(told)})",
            "mixed = MatMul (all, time_weight)",
            "bounded = Tanh (mixed)",
            "time = Mul (bounded, part)",
        ]
    )


PROJECTED_CONTEXT = "keys_values = MatMul (context, kv_weight)"
CORE = """
    pixels = Reshape (latent, flat)
    queries = Transpose <perm = [0, 2, 1]> (pixels)
    keys, values = Split <axis = -1, num_outputs = 2> (keys_values)
    turned = Transpose <perm = [0, 2, 1]> (keys)
    scores = MatMul (queries, turned)
    attention = Softmax <axis = -1> (scores)
    attended = MatMul (attention, values)
    back = Transpose <perm = [0, 2, 1]> (attended)
    shape = Shape (latent)
    picture = Reshape (back, shape)
    faint = Mul (picture, part)
    kept = Mul (latent, decay)
    drawn = Add (kept, faint)
    shift = Unsqueeze (time, sides)
    noise = Add (drawn, shift)
"""
DECODER = """
    colours = Conv (latent, reds)
    larger = Resize <mode = "nearest"> (colours, , grown)
    clipped = Clip (larger, black, white)
    bytes = Cast <to = 2> (clipped)
    image = Transpose <perm = [0, 2, 3, 1]> (bytes)
"""
ENCODER = """
    floats = Cast <to = 1> (image)
    planes = Transpose <perm = [0, 3, 1, 2]> (floats)
    small = AveragePool <kernel_shape = [8, 8], strides = [8, 8]> (planes)
    mean = Conv (small, greys)
    logvar = Neg (mean)
"""
TYPES = {
    "latent": "float[R,4,h,w]",
    "noise": "float[R,4,h,w]",
    "timestep": "float[R]",
    "time": "float[R,4]",
    "keys_values": "float[R,n,8]",
    "pooled": "float[R,5]",
    "guidance": "float[R]",
    "tokens": "int32[R,77]",
    "image": "uint8[R,H,W,3]",
    "mean": "float[R,4,h,w]",
    "logvar": "float[R,4,h,w]",
}


def graphs(model: Model, hoisted: tuple[str, ...]) -> dict[str, tuple[list[str], str, list[str]]]:
    """Every network: its inputs, its body, its outputs."""
    unet, body = ["latent"], CORE
    made: dict[str, tuple[list[str], str, list[str]]] = {}
    for name, width in model.widths.items():
        pooled = width == 6 and "pooled" in model.told
        lines = f"context = Gather ({name}, tokens)"
        if pooled:
            lines += "\nmean = ReduceMean <keepdims = 0> (context, one)"
            lines += "\npooled = MatMul (mean, pooled_weight)"
        made[name] = (["tokens"], lines, ["context", "pooled"] if pooled else ["context"])
    for kind, inputs, lines, output in (
        ("time", ["timestep", *model.told], projected_time(model), "time"),
        ("context", ["context"], PROJECTED_CONTEXT, "keys_values"),
    ):
        if kind in hoisted:
            made[f"{kind}_projection"] = (inputs, lines, [output])
            unet += [output]
        else:
            unet, body = unet + inputs, f"{lines}\n{body}"
    made["unet"] = (unet, body, ["noise"])
    made["vae_decoder"] = (["latent"], DECODER, ["image"])
    made["vae_encoder"] = (["image"], ENCODER, ["mean", "logvar"])
    return made


def written(
    folder: Path,
    name: str,
    tensors: tuple[list[str], str, list[str]],
    types: Mapping[str, str],
    constants: Mapping[str, Array],
) -> Network:
    """Writes a network's graph; the constants that it reads are inside."""
    inputs, body, outputs = tensors
    before, after = (", ".join(f"{types[n]} {n}" for n in names) for names in (inputs, outputs))
    model = onnx.parser.parse_model(
        f'<ir_version: 11, opset_import: ["": 23]> network ({before}) => ({after}) {{ {body} }}'
    )
    used = {read for node in model.graph.node for read in node.input} & set(constants)
    model.graph.initializer.extend(
        onnx.numpy_helper.from_array(np.asarray(constants[n]), n) for n in sorted(used)
    )
    onnx.checker.check_model(model, full_check=True)
    file = folder / f"{name}.onnx"
    file.write_bytes(model.SerializeToString())
    engine = open_engine(file)
    operators = dict(Counter(node.op_type for node in model.graph.node))
    return Network(
        file=file.name,
        weights=(),
        inputs=dict(engine.inputs),
        outputs=dict(engine.outputs),
        parameters=sum(constants[n].size for n in used),
        precision="fp32",
        kept=(),
        difference=Difference(0.0, 0.0, 0.0, 1.0),
        graph=Graph(23, (), operators, operators),
    )


def write_bundle(folder: Path, model: Model, hoisted: tuple[str, ...]) -> None:
    """Writes the model's bundle into an empty folder; hoisted: the projections, "time" and
    "context", that are networks of their own."""
    constants, width = weights(model), sum(model.widths.values())
    files = {name: f"{name}.json" for name in model.widths}
    for name, file in files.items():
        words = json.loads(WORDS.read_text())
        if name == "text_encoder_2":  # pads with another word
            words["padding"]["pad_id"] = 0
        (folder / file).write_text(json.dumps(words))
    networks = {}
    for name, tensors in graphs(model, hoisted).items():
        read = model.widths.get(name, width)
        sizes = f"float[R,{model.told.get('sizes', 0)}]"
        types = {**TYPES, "context": f"float[R,n,{read}]", "sizes": sizes}
        networks[name] = written(folder, name, tensors, types, constants)
    manifest = Manifest(
        schema_version=bundle.SCHEMA_VERSION,
        name=folder.name,
        family="sdxl" if model.told else "sd1",
        task="text",
        prediction="epsilon",
        latent_scale=1.0,
        betas=DEMO.betas,
        sizes=Sizes(32, 24, 16, 64, 8, 4, 8),
        context=Context(77, width, model.told.get("pooled"), model.zeros_for_empty),
        defaults=Defaults("dpmpp_2m", "karras", 6, 5.0),
        tokenizers={name: Tokenizer(file) for name, file in files.items()},
        networks=networks,
        files=dict(bundle.digests(folder)),
        source={},
        notes=(),
    )
    bundle.write(folder, manifest)
