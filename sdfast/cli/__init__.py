"""The command line: a thin skin over the library. Parses, calls, prints.

Exit codes: 0 done, 2 the user's mistake, 1 anything else, as an export that does not compute what
its checkpoint does.
"""

from __future__ import annotations

import warnings
from typing import Any

import click

from .. import __version__
from ..errors import SdfastError, StoreWarning, VerificationError
from .batch import batch
from .bench import bench
from .build import build
from .export import export, recipes
from .generate import generate
from .replay import replay
from .serve import serve
from .show import doctor, info, samplers
from .triton import export_triton


class _Commands(click.Group):
    """Prints in one line what a user did wrong, or what the store lacks, without a traceback."""

    def invoke(self, context: click.Context) -> Any:
        usual = warnings.showwarning

        def show(message: Any, category: type[Warning], *where: Any, **more: Any) -> None:
            if issubclass(category, StoreWarning):
                click.echo(f"sdfast: {message}", err=True)
            else:
                usual(message, category, *where, **more)

        try:
            with warnings.catch_warnings():
                warnings.showwarning = show
                return super().invoke(context)
        except SdfastError as error:
            click.echo(f"sdfast: {error}", err=True)
            context.exit(1 if isinstance(error, VerificationError) else 2)


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


for command in (
    *(generate, batch, replay, serve),
    *(export, build, recipes, export_triton),
    *(info, samplers, bench, doctor),
):
    main.add_command(command)
