"""Checkpoints on the Hugging Face hub, through its client: its cache, its switch to be offline."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Iterable
from pathlib import Path, PurePosixPath

from huggingface_hub import HfApi, snapshot_download
from huggingface_hub.errors import HTTPError

from ..errors import CheckpointError
from . import tokenizers
from .weight_files import choose

FOLDERS = ("unet", "vae", "text_encoder", "text_encoder_2", "controlnet")


def is_id(source: str) -> bool:
    """Whether it has the form of a hub id, owner/name."""
    return re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", source) is not None


def fetch(source: str, revision: str | None, allow_pickle: bool) -> Path:
    """The folder of a hub id in the cache, downloaded before where it can be; it is called after
    the commit. Raises CheckpointError."""
    try:
        info = HfApi().model_info(source, revision=revision)
        names = [file.rfilename for file in info.siblings or ()]
        wanted = sorted(needed(names, allow_pickle))
        return Path(snapshot_download(source, revision=revision, allow_patterns=wanted))
    except (OSError, ValueError, HTTPError) as error:  # no network, told to be offline, no such id
        try:
            kept = snapshot_download(
                source,
                revision=revision,
                allow_patterns=["model_index.json"],  # not to ask for what no one asked for before
                local_files_only=True,
            )
        except (OSError, ValueError):
            reason = str(error).strip().splitlines()[0]
            raise CheckpointError(
                f"there is no folder {source}, and the hub's model of that name can neither be had"
                f" from the network ({reason}) nor from the cache: download it where there is a"
                " network and give its folder, in diffusers' layout"
            ) from error
        return Path(kept)


def needed(names: Iterable[str], allow_pickle: bool) -> set[str]:
    """Of a repository's files, those that are read: configurations, tokenizers, and for every
    component the one form of its weights that `choose` takes."""
    names = list(names)
    wanted = {"model_index.json", "config.json", "scheduler/scheduler_config.json"}
    wanted |= {f"{folder}/config.json" for folder in FOLDERS}
    for folder in ("tokenizer", "tokenizer_2"):
        wanted |= {f"{folder}/{file}" for file in tokenizers.FILES}
    for folder in (".", *FOLDERS):
        if folder == "." and "model_index.json" in names:
            continue  # single files that repositories keep beside the folders
        inside = {p.name for p in map(PurePosixPath, names) if p.parent == PurePosixPath(folder)}
        chosen = choose(inside, allow_pickle)
        if chosen is None:
            continue
        picked = {chosen}
        if chosen.endswith(".json"):
            variant = ".fp16" if ".fp16" in chosen else ""
            shards = f"{chosen.split('.')[0]}{variant}-*-of-*.safetensors"
            picked |= set(fnmatch.filter(inside, shards))
        wanted |= {str(PurePosixPath(folder) / name) for name in picked}
    return wanted & set(names)
