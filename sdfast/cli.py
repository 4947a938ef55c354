"""The command line: a thin skin over the library. Parses, calls, prints.

Exit codes: 0 done, 2 the user's mistake, 1 anything else.
"""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from . import __version__
from .errors import BackendUnavailable, InvalidRequest, OutputError, SdfastError

if TYPE_CHECKING:
    from .pipeline import Pipeline, Result
    from .request import Request


class _Commands(click.Group):
    """Prints what a user did wrong as one line, without a traceback."""

    def invoke(self, context: click.Context) -> Any:
        try:
            return super().invoke(context)
        except SdfastError as error:
            click.echo(f"sdfast: {error}", err=True)
            context.exit(2)


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="sdfast")
def main() -> None:
    """Stable Diffusion, fast: on this machine's CPU today.

    \b
    sdfast generate "a small red circle on a blue background"
    sdfast samplers
    sdfast doctor

    Shell completion: eval "$(_SDFAST_COMPLETE=bash_source sdfast)" (or zsh_source, fish_source).
    """


@main.command()
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
@click.option("--guidance", type=float, help="Scale of classifier-free guidance; 1: none.")
@click.option("--guidance-rescale", type=float, help="Part of its contrast to take back, 0…1. [0]")
@click.option(
    "--guidance-interval",
    metavar="LOW,HIGH",
    callback=lambda _context, _option, text: _low_high(text),
    help="Noise levels between which guidance acts; steps outside are faster. [everywhere]",
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
@click.option("--threads", type=int, default=0, help="Of the CPU. [one on each core]")
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
    threads: int,
    as_json: bool,
    **options: Any,
) -> None:
    """Draw pictures from a PROMPT.

    \b
    sdfast generate "a small red circle on a blue background" --seed 0 --out circle.png
    sdfast generate "a green star" --count 4 --sampler euler_ancestral --out stars/
    sdfast generate --prompts prompts.txt --out pictures/
    sdfast generate --from circle.png --steps 30
    """
    from . import images

    given = {name: value for name, value in options.items() if value is not None}
    requests = _requests(prompt, prompts, source, given)
    if source is not None and bundle is None:
        bundle = images.read_request(source)[1]
    form = form or (out.suffix.lstrip(".").lower() if out.suffix else "png")
    if form not in images.FORMATS:
        raise InvalidRequest(f"format {form!r} is unknown; use one of {', '.join(images.FORMATS)}")
    several = len(requests) > 1 or requests[0].count > 1
    _check_out(out, several)
    from .pipeline import load

    pipe = load(bundle or "demo", backend=backend, threads=threads)
    for number, request in enumerate(requests):
        with _progress_bar(as_json, number, len(requests)) as callback:
            result = pipe(request, callback=callback)
        files = _write(result, pipe, out, form)
        _report(result, files, as_json)


def _low_high(text: str | None) -> tuple[float, ...] | None:
    if text is None:
        return None
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise InvalidRequest(
            f"--guidance-interval is {text!r}; it must be two numbers, LOW,HIGH"
        ) from None


def _requests(
    prompt: str | None, prompts: Path | None, source: Path | None, given: dict[str, Any]
) -> list[Request]:
    from .images import read_request
    from .request import Request

    if sum(part is not None for part in (prompt, prompts, source)) != 1:
        raise InvalidRequest(
            "say what to draw with one of PROMPT, --prompts FILE or --from PICTURE"
        )
    if source is not None:
        return [Request.from_dict({**read_request(source)[0].to_dict(), **given})]
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

    from .images import encode
    from .store import write_atomically

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


def _report(result: Result, files: list[Path], as_json: bool) -> None:
    if as_json:
        for file, seed in zip(files, result.seeds, strict=True):
            line = {
                "file": str(file),
                "seed": seed,
                "request": result.request.to_dict(),
                "seconds": dict(result.timings),
            }
            click.echo(json.dumps(line, ensure_ascii=False))
        return
    for file in files:
        click.echo(file)
    stages = " · ".join(f"{name} {seconds:.2f} s" for name, seconds in result.timings.items())
    click.echo(stages, err=True)


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


@main.command()
@click.argument("checkpoint", type=click.Path(path_type=Path))
@click.argument("dest", type=click.Path(path_type=Path))
@click.option("--overwrite", is_flag=True, help="Replace a bundle that is there.")
def export(checkpoint: Path, dest: Path, overwrite: bool) -> None:
    """Export a CHECKPOINT folder (diffusers' layout) into a bundle at DEST.

    \b
    sdfast export ./my-checkpoint ./my-bundle
    sdfast generate "a red star" --bundle ./my-bundle
    """
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    from sdfast.export import export as export_checkpoint

    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task("starting", total=None)

        def progress(stage: str, done: int, total: int) -> None:
            bar.update(task, description=stage, completed=done, total=total)

        made = export_checkpoint(checkpoint, dest, overwrite=overwrite, progress=progress)
    click.echo(made.path)


@main.command()
@click.argument("bundle", default="demo")
@click.option("--json", "as_json", is_flag=True, help="Print bundle.json itself.")
def info(bundle: str, as_json: bool) -> None:
    """Check a BUNDLE and show what it holds."""
    from dataclasses import asdict

    from . import store

    found = store.load(bundle)
    manifest = found.manifest
    if as_json:
        click.echo(json.dumps(asdict(manifest), indent=2, ensure_ascii=False))
        return
    sizes, defaults = manifest.sizes, manifest.defaults
    total = sum(file.stat().st_size for file in found.path.rglob("*") if file.is_file())
    click.echo(f"{found.name}: {found.path} ({total / 1e6:.1f} MB, every checksum right)")
    click.echo(
        f"{manifest.family}, {manifest.prediction}; {sizes.width}×{sizes.height} pixels, "
        f"{sizes.minimum}…{sizes.maximum} in multiples of {sizes.multiple}"
    )
    click.echo(
        f"defaults: {defaults.sampler}, {defaults.schedule}, {defaults.steps} steps, "
        f"guidance {defaults.guidance:g}"
    )
    for name, network in manifest.networks.items():
        tensors = f"{', '.join(network.inputs)} → {', '.join(network.outputs)}"
        click.echo(
            f"  {name}: {network.parameters:,} parameters, {tensors}, "
            f"within {network.difference.absolute:.1g} of torch"
        )


@main.command()
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def samplers(as_json: bool) -> None:
    """List the samplers and schedules."""
    from . import samplers as library
    from . import schedules

    found = [library.get(name) for name in library.names()]
    if as_json:
        rows = [
            {
                "name": s.name,
                "aliases": s.aliases,
                "family": s.family,
                "stochastic": s.stochastic,
                "evaluations_at_20_steps": s.evaluations(20),
                "paper": s.paper,
                "summary": s.doc,
            }
            for s in found
        ]
        click.echo(json.dumps({"samplers": rows, "schedules": schedules.names()}, indent=2))
        return
    for s in found:
        click.echo(f"{click.style(s.name, bold=True)} ({', '.join(s.aliases)})")
        click.echo(f"    {s.doc} {s.paper}")
    click.echo(f"\n{click.style('schedules', bold=True)}: {', '.join(schedules.names())}")


@main.group()
def bench() -> None:
    """Measure on this machine."""


def _listed(kind: type) -> Any:
    """Reads a list with commas in between."""

    def read(_: click.Context, parameter: click.Parameter, text: str) -> tuple[Any, ...]:
        try:
            return tuple(kind(word.strip()) for word in text.split(",") if word.strip())
        except ValueError:
            raise InvalidRequest(
                f"{parameter.opts[0]} is {text!r}; it must be whole numbers like 5,10,20"
            ) from None

    return read


@bench.command("samplers")
@click.option("--bundle", default="demo", show_default=True, help="Name or folder of a bundle.")
@click.option("--samplers", default="all", show_default=True, callback=_listed(str), help="a,b,…")
@click.option("--schedules", default="", callback=_listed(str), help="all, or a,b,… [the bundle's]")
@click.option("--steps", default="5,10,20,50", show_default=True, callback=_listed(int))
@click.option("--prompts", type=int, default=16, show_default=True, help="Pictures each.")
@click.option("--repeats", type=int, default=3, show_default=True, help="Of batches above 1.")
@click.option(
    *("--batch", "batches"),
    default="1,4",
    show_default=True,
    callback=_listed(int),
    help="Images a request.",
)
@click.option("--backend", default="auto", show_default=True, help="See `sdfast doctor`.")
@click.option("--threads", type=int, default=0, help="Of the CPU. [one on each core]")
@click.option(
    "--out", type=click.Path(path_type=Path), required=True, help="A folder, new or to go on with."
)
def bench_samplers(out: Path, **options: Any) -> None:
    """Time and judge samplers × schedules × steps; a run that was stopped goes on.

    \b
    sdfast bench samplers --out results
    sdfast bench samplers --samplers euler,dpmpp_2m --schedules all --steps 10,20 --out results
    """
    try:
        from sdfast.benchmarks import samplers as benchmark
    except ModuleNotFoundError as error:
        raise BackendUnavailable(
            f'`sdfast bench` needs {error.name}, which is missing: pip install "sdfast[bench]"'
        ) from error
    from rich.console import Console
    from rich.progress import Progress

    _check_out(out, several=True)
    command = shlex.join(["sdfast", *sys.argv[1:]])
    plan = benchmark.plan(benchmark.Options(**options), out, command)
    click.echo(
        f"{len(plan.todo)} combinations to measure, {len(plan.results.records)} there already: "
        f"about {plan.seconds / 60:.1f} minutes",
        err=True,
    )
    with Progress(console=Console(stderr=True), disable=not sys.stderr.isatty()) as bar:
        task = bar.add_task("starting", total=plan.seconds)
        written = benchmark.run(
            plan, lambda seconds, doing: bar.update(task, advance=seconds, description=doing)
        )
    for file in written:
        click.echo(file)


@main.command()
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def doctor(as_json: bool) -> None:
    """Show what this machine can run, and why not the rest."""
    from .doctor import examine

    found = examine()
    if as_json:
        click.echo(json.dumps(found, indent=2))
        return
    for heading, facts in found.items():
        click.echo(click.style(heading, bold=True))
        for name, fact in facts.items():
            click.echo(f"  {name}: {fact}")
