"""Past one machine, on Ray: bundles that come to the nodes which need them, and batches drawn by
all of them. `sdfast.service.ray` serves on Ray Serve.

Every node needs sdfast of the same version. Nothing is opened on a node whose digest is not the one
that was asked for.
"""

from __future__ import annotations

from ..errors import BackendUnavailable

try:
    import ray
except ModuleNotFoundError as error:
    raise BackendUnavailable(
        f"Ray needs {error.name}, which is not installed: pip install sdfast[ray]"
    ) from error

del ray
