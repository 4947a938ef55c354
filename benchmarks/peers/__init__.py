"""The peers that sdfast is measured beside: `comparison` says who they are and plans their runs.
Each `with_*.py` is a script that draws in a process, mostly in an environment, of its own."""
