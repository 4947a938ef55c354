"""sdfast build: engines that take minutes to make, made once and kept in the store."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from ..errors import BackendUnavailable, EngineRefused, nearest

if TYPE_CHECKING:
    from ..backends.tensorrt_build import Report
    from ..bundle import Network

_BUILT = ("tensorrt",)


@click.command()
@click.argument("bundle")
@click.option("--backend", default="tensorrt", show_default=True, help="Whose engines.")
@click.option(
    "--recipe",
    metavar="NAME|FILE",
    help="The sizes that engines are for: see `sdfast recipes`. [the bundle's]",
)
@click.option(
    *("--network", "networks"), multiple=True, help="This one alone. May be repeated. [all]"
)
@click.option("--gpu", type=int, default=0, show_default=True, help="The GPU's number.")
@click.option("--refittable", is_flag=True, help="Weights can be replaced later.")
@click.option("--stripped", is_flag=True, help="Without weights: they are read from the bundle.")
@click.option("--version-compatible", is_flag=True, help="Later minor versions of TensorRT run it.")
@click.option(
    "--hardware",
    default="this",
    show_default=True,
    help="The GPUs that run it: also same-capability or ampere-or-later.",
)
def build(
    bundle: str,
    backend: str,
    recipe: str | None,
    networks: tuple[str, ...],
    gpu: int,
    **form: Any,
) -> None:
    """Build the engines of BUNDLE for this machine's GPU, and keep them in the store.

    Each is compared with ONNX Runtime and timed beside it; what is wrong or slower is refused. What
    the store has is not built again.

    \b
    sdfast export ./sd15 ./sd15-trt --backend tensorrt
    sdfast build ./sd15-trt --recipe sd15
    sdfast build ./sd15-trt --network unet --refittable
    """
    if backend not in _BUILT:
        raise BackendUnavailable(
            f"nothing is built for backend {backend!r}{nearest(backend, _BUILT)}, which compiles "
            f"networks when they are first used: leave --backend out, or use {', '.join(_BUILT)}"
        )
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    from sdfast.export.engines import build_engines

    from .. import store
    from ..backends.tensorrt_plans import Form

    found = store.load(bundle)
    refused: list[EngineRefused] = []
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task("starting", total=1.0)

        def tell(network: str, doing: str, part: float) -> None:
            bar.update(task, description=f"{network}: {doing}", completed=part)

        made = 0
        for name, outcome in build_engines(
            found,
            gpu,
            recipe=recipe,
            networks=networks,
            form=Form(**form),
            tell=tell,
        ):
            made += 1
            if outcome.report is not None:
                network = found.manifest.networks[name]
                click.echo(f"{name} for {outcome.plan.profile}")
                click.echo(f"    {report(network, outcome.report)}")
            elif outcome.refused is not None:
                refused.append(outcome.refused)
                click.echo(f"sdfast: {outcome.refused}", err=True)
    if refused:
        raise EngineRefused(
            f"{len(refused)} of {made} engines were refused; the store has the rest"
        )


def report(network: Network, of: Report) -> str:
    """What the inspector and the gate say of an engine, in two lines."""
    layers = of.layers
    kinds = ", ".join(f"{count} {kind}" for kind, count in list(layers.kinds.items())[:4])
    attentions = network.graph.operators.get("Attention", 0)
    fused = f", {layers.attentions} of {attentions} attentions fused" if attentions else ""
    return (
        f"{network.precision}, {sum(layers.kinds.values())} layers ({kinds}){fused}, "
        f"{of.size / 1e6:,.0f} MB, {layers.activations / 1e6:,.0f} MB of activations, built in "
        f"{of.seconds:.0f} s\n    {of.verdict}"
    )
