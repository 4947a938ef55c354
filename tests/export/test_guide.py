"""docs/export.md says what the exporter does."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

from sdfast import cli, store
from sdfast.export import verify

GUIDE = (Path(__file__).parents[2] / "docs" / "export.md").read_text(encoding="utf-8")


def test_every_key_of_a_recipe_is_explained() -> None:
    explained = set(re.findall(r"`([a-z_.]+)`", GUIDE))
    written = tomllib.loads((store.packaged() / "sd15.toml").read_text(encoding="utf-8"))
    for key, value in written.items():
        if key in ("graph", "profiles", "defaults"):
            assert {f"{key}.{inner}" for inner in value} <= explained
        elif key != "backend":
            assert key in explained


def test_the_bounds_are_those_that_are_held() -> None:
    for precision, b in verify.BOUNDS.items():
        pixels = f"{b.mean_levels:g}, {b.levels:g} of 255"
        row = f"| {precision} | {b.relative:g} | {b.cosine:g} | {pixels} | {b.decibels:g} dB |"
        assert row in GUIDE


def test_every_option_that_it_names_is_one() -> None:
    known = [o for c in (cli.main.commands[n] for n in ("export", "generate")) for o in c.params]
    options = {word for option in known for word in option.opts}
    assert set(re.findall(r"--[a-z][a-z-]+", GUIDE)) <= options
