"""Files of weights: safetensors, mapped into memory; sharded ones; pickles when they are asked for.

The format of safetensors: 8 bytes of header length, a JSON header (name → dtype, shape, offsets),
the tensors' bytes. https://github.com/huggingface/safetensors
"""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable, Collection, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from ..errors import CheckpointError

Weights = dict[str, torch.Tensor]

PICKLES = (".ckpt", ".bin", ".pt", ".pth")
_STEMS = ("diffusion_pytorch_model", "model", "pytorch_model")
_MAPPED_AT_ONCE = 2**28  # bytes looked at through one mapping; the next one gives its pages back
_CHUNK = 2**22  # elements looked at in one go: fits the cache, and hides the cost of a call


def choose(names: Collection[str], allow_pickle: bool) -> str | None:
    """Of the names of a folder's files, the one to read weights from: without variant before fp16,
    safetensors before pickles. One that ends in .json lists shards."""
    endings = [".safetensors", ".safetensors.index.json"]
    endings += [".fp16.safetensors", ".safetensors.index.fp16.json"]
    endings += [".fp16.safetensors.index.json"]
    if allow_pickle:
        endings += [".bin", ".fp16.bin"]
    candidates = [stem + ending for ending in endings for stem in _STEMS]
    return next((name for name in candidates if name in names), None)


def read_folder(folder: Path, allow_pickle: bool = False) -> Weights:
    """All weights of a component's folder. Raises CheckpointError."""
    names = [file.name for file in folder.iterdir()] if folder.is_dir() else []
    chosen = choose(names, allow_pickle)
    if chosen is None:
        pickled = next((name for name in sorted(names) if name.endswith(PICKLES)), None)
        if pickled is not None:
            _refuse_pickle(folder / pickled)
        raise CheckpointError(f"{folder} has no .safetensors file: the weights are missing")
    if chosen.endswith(".json"):
        return _read_shards(folder, chosen)
    return read(folder / chosen, allow_pickle)


def _read_shards(folder: Path, index: str) -> Weights:
    places = read_json(folder / index).get("weight_map")
    if not isinstance(places, dict) or not all(isinstance(name, str) for name in places.values()):
        raise CheckpointError(f"{folder / index} has no weight_map: the index is damaged")
    shards = {}
    for name in sorted(set(places.values())):
        if PurePosixPath(name).name != name or "\\" in name or not name.endswith(".safetensors"):
            raise CheckpointError(
                f"{folder / index} points to {name!r}; shards are .safetensors files beside it"
            )
        shards[name] = read(folder / name)
    for weight, name in places.items():
        if weight not in shards[name]:
            raise CheckpointError(f"{weight} is missing from {folder / name}, where {index} has it")
    return {weight: shards[name][weight] for weight, name in places.items()}


def read(file: Path, allow_pickle: bool = False) -> Weights:
    """The tensors of one file, mapped into memory, all finite. Raises CheckpointError."""
    if file.suffix in PICKLES and not allow_pickle:
        _refuse_pickle(file)
    load = _unpickled if file.suffix in PICKLES else _mapped
    _require_finite(file, load)
    return load(file)


def _mapped(file: Path) -> Weights:
    try:
        return load_file(file)
    except (OSError, SafetensorError, ValueError, RuntimeError, OverflowError) as error:
        raise CheckpointError(
            f"{file} cannot be read ({error}): it is damaged, cut short or no safetensors file"
        ) from error


def _unpickled(file: Path) -> Weights:
    try:
        found = _unpickle(file)
    except (OSError, RuntimeError, ValueError, EOFError, pickle.UnpicklingError) as error:
        raise CheckpointError(
            f"{file} cannot be read ({str(error).splitlines()[0]}): it is damaged, or holds objects"
            " besides tensors, which are never loaded; convert it to safetensors"
        ) from error
    while isinstance(found, dict) and isinstance(found.get("state_dict"), dict):
        found = {k: v for k, v in found.items() if k == "global_step"} | found["state_dict"]
    if not isinstance(found, dict):
        raise CheckpointError(f"{file} holds a {type(found).__name__}, no state_dict of weights")
    numbers = {k: torch.tensor(v) for k, v in found.items() if isinstance(v, int)}
    return numbers | {k: v for k, v in found.items() if isinstance(v, torch.Tensor)}


def _unpickle(file: Path) -> Any:
    try:
        return torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    except RuntimeError as error:
        if "mmap" not in str(error):
            raise
        return torch.load(file, map_location="cpu", weights_only=True)  # written before torch 1.6


def _refuse_pickle(file: Path) -> None:
    raise CheckpointError(
        f"{file} is a pickle, which can run code when it is read: convert it to safetensors, or"
        " pass --allow-pickle to load its tensors, and nothing but tensors"
    )


def _require_finite(file: Path, load: Callable[[Path], Weights]) -> None:
    weights = load(file)
    seen = 0
    for name in list(weights):
        if seen > _MAPPED_AT_ONCE:
            weights, seen = load(file), 0
        weight = weights[name]
        seen += weight.nbytes
        if weight.is_floating_point() and weight.element_size() > 1 and not _finite(weight):
            raise CheckpointError(f"{name} of {file} holds NaN or infinity: the file is damaged")


def _finite(weight: torch.Tensor) -> bool:
    # The least and the greatest value carry NaN through, and take one pass without temporaries.
    return all(
        bool(torch.stack(torch.aminmax(chunk)).isfinite().all())
        for chunk in weight.reshape(-1).split(_CHUNK)
        if chunk.numel()
    )


_DTYPES = {
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
}


def write(
    file: Path, layout: Mapping[str, torch.Tensor], tensor: Callable[[str], torch.Tensor]
) -> None:
    """A safetensors file, written tensor by tensor, so that it never is in memory as a whole.

    layout: name → anything with that tensor's shape and dtype, as one on the meta device
    tensor: name → the tensor itself
    """
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, like in layout.items():
        end = offset + like.numel() * like.element_size()
        entry = {"dtype": _DTYPES[like.dtype], "shape": list(like.shape)}
        header[name] = entry | {"data_offsets": [offset, end]}
        offset = end
    encoded = json.dumps(header).encode()
    encoded += b" " * (-len(encoded) % 8)  # the format asks for tensors at multiples of 8
    with file.open("wb") as stream:
        stream.write(len(encoded).to_bytes(8, "little") + encoded)
        for name, like in layout.items():
            made = tensor(name).detach().contiguous()
            if made.shape != like.shape or made.dtype != like.dtype:
                raise ValueError(f"{name}: {made.shape} {made.dtype} is not as laid out")
            stream.write(made.reshape(-1).view(torch.uint8).numpy().data)


def read_json(file: Path) -> dict[str, Any]:
    """A JSON object of a checkpoint. Raises CheckpointError."""
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(
            f"{file} cannot be read ({error}): the folder must be in diffusers' layout"
        ) from error
    if not isinstance(found, dict):
        raise CheckpointError(f"{file} is no JSON object: the checkpoint is damaged")
    return found
