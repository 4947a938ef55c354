"""Bundles on nodes: there once, whole, and the one that was asked for."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from nodes import Nodes

ray = pytest.importorskip("ray", reason="needs Ray: pip install sdfast[ray]")

from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy  # noqa: E402

from sdfast import store  # noqa: E402
from sdfast.cluster import bundles  # noqa: E402
from sdfast.errors import BundleError  # noqa: E402
from sdfast.provenance import digest  # noqa: E402

pytestmark = pytest.mark.slow  # processes by the dozen, for minutes


def on_the_second(nodes: Nodes, offered: bundles.Offer) -> Path:
    """What a process there is given."""
    where = NodeAffinitySchedulingStrategy(nodes.others["second"].node_id, soft=False)
    task = ray.remote(bundles.received).options(scheduling_strategy=where)
    return Path(ray.get(task.remote(offered)))


def test_a_node_fetches_what_it_has_not_and_what_is_damaged_again(
    nodes: Nodes, unknown: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    offered = bundles.offer(store.load(unknown), lasting=True)
    wanted = nodes.homes["second"] / "received" / digest(unknown)[:32]
    assert on_the_second(nodes, offered) == wanted
    names = {f.relative_to(unknown) for f in unknown.rglob("*") if f.is_file()}
    assert {f.relative_to(wanted) for f in wanted.rglob("*") if f.is_file()} == names
    for name in names:
        assert (wanted / name).read_bytes() == (unknown / name).read_bytes()

    tokenizer = next(wanted.rglob("tokenizer.json"))
    tokenizer.write_bytes(tokenizer.read_bytes()[:-1])
    assert on_the_second(nodes, offered) == wanted
    assert tokenizer.read_bytes() == next(unknown.rglob("tokenizer.json")).read_bytes()

    # What is there is not asked for, and what is in the node's own store is not fetched.
    bundles.withdraw()
    assert on_the_second(nodes, offered) == wanted
    assert on_the_second(nodes, bundles.offer(store.load("demo"))) == store.find("demo")

    # Nobody gives it any more; or it is not what was offered.
    other = replace(offered, digest="0" * 64)
    with pytest.raises(BundleError, match="nobody offers it any more"):
        on_the_second(nodes, other)
    with pytest.raises(BundleError, match="is not the one that was offered"):
        on_the_second(nodes, replace(bundles.offer(store.load(unknown)), digest="0" * 64))
    assert [file.name for file in wanted.parent.iterdir() if file.is_dir()] == [wanted.name]
