"""sdfast generate: from prompts to files."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .. import __version__
from ..errors import InvalidRequest, OutputError
from .cached import evaluations

if TYPE_CHECKING:
    from ..pipeline import Pipeline, Result
    from ..request import Request


@click.command()
@click.argument("prompt", required=False)
@click.option("--negative", "negative_prompt", help="What the picture should not show.")
@click.option("--prompts", type=click.Path(path_type=Path), help="A file with one prompt a line.")
@click.option(
    "--from",
    "source",
    type=click.Path(path_type=Path),
    help="Repeat the request that this picture of sdfast carries; options given beside it win.",
)
@click.option("--bundle", help="Name or folder of a bundle. [demo, or that of --from]")
@click.option("--steps", type=int, help="Steps of the sampler.")
@click.option("--sampler", help="See `sdfast samplers`.")
@click.option("--schedule", help="Sigma schedule, by name: see sdfast samplers.")
@click.option(
    *("--sampler-parameter", "sampler_parameters"),
    multiple=True,
    metavar="NAME=VALUE",
    callback=lambda _context, _option, texts: _by_name(texts),
    help="One of the sampler's own, such as eta=0.5; may be given again.",
)
@click.option(
    *("--schedule-parameter", "schedule_parameters"),
    multiple=True,
    metavar="NAME=VALUE",
    callback=lambda _context, _option, texts: _by_name(texts),
    help="One of the schedule's own, such as rho=5; may be given again.",
)
@click.option(
    "--sigmas",
    metavar="A,B,…",
    callback=lambda _context, option, text: _numbers(option, text),
    help="Noise levels to visit in place of a schedule's, such as 14.6,3,0.5,0.",
)
@click.option(
    "--discard-penultimate/--keep-penultimate",
    default=None,
    help="Whether to leave out the schedule's smallest level. [as the sampler wants]",
)
@click.option("--guidance", type=float, help="Scale of classifier-free guidance; 1: none.")
@click.option("--guidance-rescale", type=float, help="Part of its contrast to take back, 0…1. [0]")
@click.option(
    "--guidance-interval",
    metavar="LOW,HIGH",
    callback=lambda _context, option, text: _numbers(option, text),
    help="Noise levels between which guidance acts; steps outside are faster. [everywhere]",
)
@click.option(
    "--cache",
    is_flag=False,
    flag_value="auto",
    metavar="[N|0,A,B,…]",
    callback=lambda _context, option, text: evaluations(option, text),
    help="Run the whole U-Net at every N-th evaluation, or those given, alone. [1; bare: auto]",
)
@click.option("--seed", type=int, help="Of the first image; image k has seed + k. [random]")
@click.option("--width", type=int, help="Pixels.")
@click.option("--height", type=int, help="Pixels.")
@click.option("--count", type=int, help="Images for each prompt.")
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    default=Path(),
    help="A file, or a folder for several pictures. [the current folder]",
)
@click.option("--format", "form", default=None, help="png, jpeg or webp. [by --out, else png]")
@click.option("--backend", default="auto", show_default=True, help="See `sdfast doctor`.")
@click.option("--device", default="auto", show_default=True, help="cpu, cuda or cuda:N.")
@click.option("--precision", default="auto", show_default=True, help="fp32, bf16 or fp16.")
@click.option("--threads", type=int, default=0, help="Of the CPU. [one on each core]")
@click.option("--throughput", is_flag=True, help="Rows side by side, one on each core.")
@click.option("--low-memory", is_flag=True, help="Hold one network at a time.")
@click.option(
    "--tile", type=int, help="Decode in parts of as many pixels a side. [above 1024×1024]"
)
@click.option("--rng", help="philox (PyTorch on CUDA) or torch (PyTorch on a CPU). [philox]")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object for each picture.")
def generate(
    prompt: str | None,
    prompts: Path | None,
    source: Path | None,
    bundle: str | None,
    out: Path,
    form: str | None,
    backend: str,
    device: str,
    precision: str,
    threads: int,
    throughput: bool,
    low_memory: bool,
    tile: int | None,
    as_json: bool,
    **options: Any,
) -> None:
    """Draw pictures from a PROMPT.

    \b
    sdfast generate "a small red circle on a blue background" --seed 0 --out circle.png
    sdfast generate "a green star" --count 4 --sampler euler_ancestral --out stars/
    sdfast generate --prompts prompts.txt --out pictures/
    sdfast generate --from circle.png --steps 30
    sdfast generate "a green star" --cache 3
    """
    from .. import images

    given = {name: value for name, value in options.items() if value is not None}
    requests = _requests(prompt, prompts, source, given)
    if source is not None and bundle is None:
        bundle = images.read_request(source)[1]
    form = form or (out.suffix.lstrip(".").lower() if out.suffix else "png")
    if form not in images.FORMATS:
        raise InvalidRequest(f"format {form!r} is unknown; use one of {', '.join(images.FORMATS)}")
    several = len(requests) > 1 or requests[0].count > 1
    _check_out(out, several)
    from ..pipeline import load

    pipe = load(
        bundle or "demo",
        backend=backend,
        device=device,
        threads=threads,
        precision=precision,
        throughput=throughput,
        low_memory=low_memory,
        tile=tile,
    )
    for number, request in enumerate(requests):
        with _progress_bar(as_json, number, len(requests)) as callback:
            result = pipe(request, callback=callback)
        files = _write(result, pipe, out, form)
        _report(result, pipe, files, as_json)


def _numbers(option: click.Parameter, text: str | None) -> tuple[float, ...] | None:
    if text is None:
        return None
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise InvalidRequest(
            f"{option.opts[0]} is {text!r}; it must be numbers with commas between"
        ) from None


def _by_name(texts: tuple[str, ...]) -> dict[str, Any] | None:
    """NAME=VALUE, each value a number, true or false where it reads as one, a tuple where commas
    are (one number as `5,`)."""
    values: dict[str, Any] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not (name and equals and value):
            raise InvalidRequest(f"parameter {text!r} must be NAME=VALUE, such as eta=0.5")
        if name.strip() in values:
            raise InvalidRequest(f"parameter {name.strip()} is given twice: once is enough")
        values[name.strip()] = _value(value.strip())
    return values or None


def _value(text: str) -> Any:
    if "," in text:
        return tuple(_value(part) for part in text.split(",") if part)
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    for kind in (int, float):
        with suppress(ValueError):
            return kind(text)
    return text


# What an option takes the place of in a request that is repeated.
_REPLACED = {
    "sampler": ("sampler_parameters", "discard_penultimate"),
    "steps": ("sigmas",),
    "schedule": ("schedule_parameters", "sigmas"),
    "sigmas": ("steps", "schedule", "schedule_parameters"),
}


def _requests(
    prompt: str | None, prompts: Path | None, source: Path | None, given: dict[str, Any]
) -> list[Request]:
    from ..images import read_request
    from ..request import CUSTOM, Request

    if sum(part is not None for part in (prompt, prompts, source)) != 1:
        raise InvalidRequest(
            "say what to draw with one of PROMPT, --prompts FILE or --from PICTURE"
        )
    if source is not None:
        carried = read_request(source)[0].to_dict()
        for name in [own for new, gone in _REPLACED.items() if new in given for own in gone]:
            carried.pop(name, None)
        if "sigmas" not in carried and carried.get("schedule") == CUSTOM:
            del carried["schedule"]
        return [Request.from_dict({**carried, **given})]
    texts = [prompt] if prompt is not None else _lines(prompts or Path())
    return [Request.from_dict({"prompt": text, **given}) for text in texts]


def _lines(file: Path) -> list[str]:
    try:
        lines = [line.strip() for line in file.read_text(encoding="utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidRequest(f"{file} cannot be read as text ({error})") from error
    texts = [line for line in lines if line]
    if not texts:
        raise InvalidRequest(f"{file} holds no prompt: write one on each line")
    return texts


def _check_out(out: Path, several: bool) -> None:
    """Before anything is drawn: whether the pictures will have a place."""
    folder = out.parent if out.suffix else out
    if out.suffix and several:
        raise OutputError(f"--out {out} is one file, and there are several pictures: give a folder")
    if out.suffix and out.is_dir():
        raise OutputError(
            f"--out {out} is a folder: give it without a suffix, or name a file in it"
        )
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(
            f"folder {folder} cannot be made ({error.strerror}): choose another --out"
        ) from error


def _write(result: Result, pipe: Pipeline, out: Path, form: str) -> list[Path]:
    from dataclasses import replace

    from ..images import encode
    from ..store import write_atomically

    files = []
    for image, seed in zip(result.images, result.seeds, strict=True):
        single = replace(result.request, seed=seed, count=1)
        file = out if out.suffix else _free_name(out, result.request.prompt, seed, form)
        write_atomically(file, encode(image, form, single, pipe.bundle.name, __version__))
        files.append(file)
    return files


def _free_name(folder: Path, prompt: str, seed: int, form: str) -> Path:
    """A name from the prompt and seed that no file in the folder has."""
    words = "".join(c if c.isalnum() else "-" for c in prompt.lower())
    stem = f"{'-'.join(filter(None, words.split('-')))[:60]}-{seed}"
    candidates = (f"{stem}{f'-{k}' if k else ''}.{form}" for k in range(100_000))
    return next(folder / name for name in candidates if not (folder / name).exists())


def _report(result: Result, pipe: Pipeline, files: list[Path], as_json: bool) -> None:
    if as_json:
        for file, seed in zip(files, result.seeds, strict=True):
            line = {
                "file": str(file),
                "seed": seed,
                "backend": pipe.backend,
                "device": pipe.device,
                "precision": pipe.precision,
                "request": result.request.to_dict(),
                "seconds": dict(result.timings),
            }
            click.echo(json.dumps(line, ensure_ascii=False))
        return
    for file in files:
        click.echo(file)
    stages = " · ".join(f"{name} {seconds:.2f} s" for name, seconds in result.timings.items())
    click.echo(f"{stages} ({pipe.backend}, {pipe.precision}, {pipe.device})", err=True)


@contextmanager
def _progress_bar(hidden: bool, number: int, total: int) -> Iterator[Any]:
    """A bar over the evaluations on a terminal's standard error; a callback that does nothing
    elsewhere."""
    if hidden or not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(
            f"prompt {number + 1}/{total}" if total > 1 else "denoising", total=None
        )
        yield lambda done, evaluations: bar.update(task, completed=done, total=evaluations)
