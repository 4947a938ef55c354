"""The service beside other ways to serve the same requests.

    python benchmarks/service.py [--bundle demo] [--backend onnxruntime] [--clients 16]
        [--requests 96] [--rounds 3] [--json FILE]

So many clients each send their next request when the last one was answered. The requests differ in
sampler, steps (8 to 30), prompt and seed, and are the same for all ways:

    http        `sdfast serve`, which batches steps: requests join and leave at each of them
    http_one    the same by one client, which sends a request when the last one is answered
    steps       sdfast.service.Service, which is that without HTTP
    in_turn     the same, with one request running at a time
    requests    whole requests are batched: those that wait and have equal parameters but for prompt
                and seed run from their first step to their last, as the batch that was formed, by
                calls of the network with that many rows (one prompt stands for all of a batch)
    rows        the same, by the service's own engines and batcher
    one         sdfast.load, one request after the other, each as fast as it goes

Rounds of all alternate; what is told are medians of pictures a second, and of the time from
asking to the answer of requests of 8 steps, at its 95th percentile. Then the overhead of the
service, with one client, over the pipeline that `one` is.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import socket
import subprocess
import sys
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import median, quantiles
from time import perf_counter
from typing import Any

import httpx
from machine import described

import sdfast
from sdfast import cpu, pipeline
from sdfast.pipeline import Pipeline
from sdfast.request import Request
from sdfast.service import Limits, Service
from sdfast.service.batcher import Batcher

SHORT = 8
STEPS = (SHORT, 12, 16, 20, 30)
SAMPLERS = ("dpmpp_2m", "euler", "euler_ancestral", "dpmpp_2m_sde", "uni_pc", "ddim")
PROMPTS = (
    "a small red circle on a blue background",
    "a large green star on a white background",
    "a yellow square on a black background",
    "a big blue triangle on a grey background",
)
LARGEST = 8  # pictures of a batch of whole requests

Draw = Callable[[Request], Awaitable[None]]


def mixed(count: int) -> list[Request]:
    """The same for every way."""
    chance = random.Random(1)
    return [
        Request(
            PROMPTS[k % len(PROMPTS)],
            seed=k,
            steps=chance.choice(STEPS),
            sampler=chance.choice(SAMPLERS),
        )
        for k in range(count)
    ]


async def asked(requests: Sequence[Request], clients: int, draw: Draw) -> dict[str, float]:
    """What the clients see."""
    left, seconds = iter(requests), list[tuple[int, float]]()

    async def client() -> None:
        for request in left:
            begun = perf_counter()
            await draw(request)
            seconds.append((request.steps or 0, perf_counter() - begun))

    begun = perf_counter()
    await asyncio.gather(*(client() for _ in range(clients)))
    short = [each for steps, each in seconds if steps == SHORT]
    return {
        "pictures_per_second": len(requests) / (perf_counter() - begun),
        "short_p95_seconds": quantiles(short, n=20)[-1],
    }


class OneByOne:
    """A pipeline, one request at a time, in the order in which they come."""

    def __init__(self, drawn: Pipeline) -> None:
        self._pipeline, self._turn = drawn, asyncio.Lock()

    async def __call__(self, request: Request) -> None:
        async with self._turn:
            await asyncio.to_thread(self._pipeline, request)


class WholeRequests:
    """Batches of requests with equal parameters, each run to its end before the next is formed."""

    def __init__(self, draw: Callable[[Sequence[Request]], None]) -> None:
        self._draw = draw
        self._waiting: dict[tuple[Any, ...], list[tuple[Request, asyncio.Future[None]]]] = (
            defaultdict(list)
        )
        self._running: asyncio.Task[None] | None = None

    async def __call__(self, request: Request) -> None:
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting[request.sampler, request.steps].append((request, done))
        if self._running is None or self._running.done():
            self._running = asyncio.create_task(self._run())
        await done

    async def _run(self) -> None:
        await asyncio.sleep(0)  # what comes at once is batched
        while self._waiting:
            key = next(iter(self._waiting))  # that of the one which waits for longest
            alike = self._waiting.pop(key)
            batch, rest = alike[:LARGEST], alike[LARGEST:]
            if rest:
                self._waiting[key] = rest
            await asyncio.to_thread(self._draw, [request for request, _ in batch])
            for _, done in batch:
                done.set_result(None)


def by_batch(drawn: Pipeline, requests: Sequence[Request]) -> None:
    """As pictures of one request, whose rows are the batch."""
    drawn(replace(requests[0], count=len(requests)))


def by_rows(drawn: Pipeline, requests: Sequence[Request]) -> None:
    batcher = Batcher(rows=16 * cpu.cores())
    for k, request in enumerate(requests):
        batcher.join(str(k), drawn.drawing(request), 0, 0.0)
    while batcher.tick() is not None:
        pass


@asynccontextmanager
async def over_http(given: argparse.Namespace) -> AsyncIterator[Draw]:
    """What draws a request by a `sdfast serve` of its own."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [
        "-m",
        "sdfast",
        "serve",
        given.bundle,
        "--port",
        str(port),
        "--backend",
        given.backend,
    ]
    command += ["--precision", given.precision, "--queue-seconds", "3600"]
    serving = subprocess.Popen([sys.executable, *command], stderr=subprocess.DEVNULL)
    try:
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=120) as client:

            async def draw(request: Request) -> None:
                names = ("prompt", "seed", "steps", "sampler")
                body = {name: getattr(request, name) for name in names}
                (await client.post("/v1/generate", json=body)).raise_for_status()

            while not await _ready(client):
                await asyncio.sleep(0.2)
            yield draw
    finally:
        serving.terminate()
        serving.wait()


async def _ready(client: httpx.AsyncClient) -> bool:
    try:
        return (await client.get("/readyz")).status_code == 200
    except httpx.TransportError:
        return False


async def overhead(service: Service, drawn: Pipeline, runs: int) -> dict[str, float]:
    """Milliseconds of a request through the service, and of the same one by a pipeline."""
    ours, bare = list[float](), list[float]()
    for seed in range(runs):
        request = Request(PROMPTS[0], seed=seed, steps=SHORT)
        begun = perf_counter()
        await (await service.submit(request)).result()
        ours.append(perf_counter() - begun)
        begun = perf_counter()
        await asyncio.to_thread(drawn, request)
        bare.append(perf_counter() - begun)
    return {"service_ms": 1e3 * median(ours), "pipeline_ms": 1e3 * median(bare)}


async def measured(given: argparse.Namespace) -> dict[str, Any]:
    opening = {"backend": given.backend, "precision": given.precision}
    alone = sdfast.load(given.bundle, **opening)
    alike = sdfast.load(given.bundle, **opening, throughput=True, graphs=pipeline.LOOP)
    requests = mixed(given.requests)
    found: dict[str, list[dict[str, float]]] = defaultdict(list)
    limits = Limits(queue=given.clients, running=given.clients, queue_seconds=3600)
    alone_limits = replace(limits, running=1)
    async with (
        Service([given.bundle], limits=limits, **opening) as service,
        Service([given.bundle], limits=alone_limits, **opening) as in_turn,
        over_http(given) as http,
    ):

        async def served(service: Service, request: Request) -> None:
            await (await service.submit(request)).result()

        ways: dict[str, Draw] = {
            "http": http,
            "http_one": http,
            "steps": partial(served, service),
            "in_turn": partial(served, in_turn),
            "requests": WholeRequests(partial(by_batch, alone)),
            "rows": WholeRequests(partial(by_rows, alike)),
            "one": OneByOne(alone),
        }
        for draw in ways.values():  # compiles
            await asked(mixed(6), 1, draw)
        for number in range(given.rounds):
            order = list(ways) if number % 2 == 0 else list(ways)[::-1]
            for name in order:
                clients = 1 if name == "http_one" else given.clients
                found[name].append(await asked(requests, clients, ways[name]))
                print(number, name, found[name][-1], flush=True)
        small = await overhead(service, alone, 40)
    names = ("pictures_per_second", "short_p95_seconds")
    medians = {
        way: {n: median(r[n] for r in rounds) for n in names} for way, rounds in found.items()
    }
    rate = {way: values["pictures_per_second"] for way, values in medians.items()}
    late = {way: values["short_p95_seconds"] for way, values in medians.items()}
    return {
        "medians": medians,
        "http_over_http_one": rate["http"] / rate["http_one"],
        "steps_over_in_turn": rate["steps"] / rate["in_turn"],
        "steps_over_one": rate["steps"] / rate["one"],
        "steps_over_requests": rate["steps"] / rate["requests"],
        "steps_over_rows": rate["steps"] / rate["rows"],
        "short_p95_of_requests": late["steps"] / late["requests"],
        "overhead": small,
        "rounds": found,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--bundle", default="demo")
    parser.add_argument("--backend", default="onnxruntime")
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--requests", type=int, default=96)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    result = asyncio.run(measured(given))
    told = {**{k: v for k, v in result.items() if k != "rounds"}}
    print(json.dumps(told, indent=2))
    if given.json:
        settings = {k: v for k, v in vars(given).items() if k != "json"}
        about = described("python benchmarks/service.py", given.backend)
        whole = {"settings": settings, **about, **result}
        given.json.write_text(json.dumps(whole, indent=2) + "\n")


if __name__ == "__main__":
    main()
