"""`python -m sdfast`: the command line."""

from .cli import main

main()
