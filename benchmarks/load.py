"""`sdfast serve` at twice what it can do, from a process of its own.

    python benchmarks/load.py [--minutes 30] [--times 2] [--backend onnxruntime] [--json FILE]

First so many clients at once find out how many pictures a second the service draws; then requests
are sent at `times` that rate, evenly, whatever becomes of them, while /healthz and /readyz are
asked twice a second and the memory of the service and its worker is read. It tells whether every
request has exactly one answer, 200 with its own picture or 429, each 429 within 50 ms, health
within 100 ms, and by how much memory grew after the warm-up.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import io
import json
import os
import re
import signal
import socket
import subprocess
import sys
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median, quantiles
from time import perf_counter
from typing import Any

import httpx
from machine import described
from PIL import Image

PROMPTS = (
    "a small red circle on a blue background",
    "a large green star on a white background",
    "a yellow square on a black background",
    "a big blue triangle on a grey background",
)
WARM = 0.1  # of the time is not looked at for growth


@dataclass
class Seen:
    """What came back."""

    statuses: Counter[int] = field(default_factory=Counter)
    rejected: list[float] = field(default_factory=list)  # seconds
    drawn: list[float] = field(default_factory=list)
    health: list[float] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    sent: int = 0
    memory: list[tuple[float, int]] = field(default_factory=list)


def body(number: int) -> dict[str, Any]:
    return {
        "prompt": PROMPTS[number % len(PROMPTS)],
        "seed": number,
        "steps": (8, 12, 16, 20)[number % 4],
        "sampler": ("dpmpp_2m", "euler", "euler_ancestral", "uni_pc")[number // 4 % 4],
        "size": "128x128",
        "response_format": "b64_json",
    }


async def ask(client: httpx.AsyncClient, number: int, seen: Seen) -> bool:
    """Sends one request, and looks at the answer. True for a picture."""
    seen.sent += 1
    begun = perf_counter()
    try:
        answer = await client.post("/v1/images/generations", json=body(number))
    except httpx.HTTPError as error:
        seen.wrong.append(f"{number}: {type(error).__name__}")
        return False
    took = perf_counter() - begun
    seen.statuses[answer.status_code] += 1
    if answer.status_code == 429:
        seen.rejected.append(took)
        if "retry-after" not in answer.headers:
            seen.wrong.append(f"{number}: 429 without retry-after")
        return False
    if answer.status_code != 200:
        seen.wrong.append(f"{number}: {answer.status_code} {answer.text[:100]}")
        return False
    seen.drawn.append(took)
    if await asyncio.to_thread(seed_of, answer) != number:
        seen.wrong.append(f"{number}: another request's picture")
    return True


def seed_of(answer: httpx.Response) -> int:
    """That of the picture, as its file tells."""
    (found,) = answer.json()["data"]
    picture = Image.open(io.BytesIO(base64.b64decode(found["b64_json"])))
    seed: int = json.loads(picture.text["sdfast"])["request"]["seed"]
    return seed


async def watch(client: httpx.AsyncClient, pid: int, seen: Seen) -> None:
    begun = perf_counter()
    while True:
        for path in ("/healthz", "/readyz"):
            asked = perf_counter()
            answer = await client.get(path)
            seen.health.append(perf_counter() - asked)
            if answer.status_code != 200:
                seen.wrong.append(f"{path}: {answer.status_code}")
        seen.memory.append((perf_counter() - begun, resident(pid)))
        await asyncio.sleep(0.5)


def resident(pid: int) -> int:
    """Bytes of a process and its children, shared pages counted once for each."""
    total, todo = 0, [pid]
    while todo:
        one = todo.pop()
        try:
            status = Path(f"/proc/{one}/status").read_text()
            children = Path(f"/proc/{one}/task/{one}/children").read_text()
        except OSError:
            continue
        total += int((re.search(r"VmRSS:\s+(\d+)", status) or [0, 0])[1]) << 10
        todo += map(int, children.split())
    return total


async def capacity(client: httpx.AsyncClient, clients: int, each: int) -> float:
    """Pictures a second, of so many clients."""
    seen = Seen()

    async def one(first: int) -> None:
        for k in range(each):
            await ask(client, first + k, seen)

    begun = perf_counter()
    await asyncio.gather(*(one(each * k) for k in range(clients)))
    return len(seen.drawn) / (perf_counter() - begun)


async def loaded(given: argparse.Namespace, url: str, pid: int) -> dict[str, Any]:
    limits = httpx.Limits(max_connections=400, max_keepalive_connections=100)
    async with (
        httpx.AsyncClient(base_url=url, timeout=120, limits=limits) as client,
        httpx.AsyncClient(base_url=url, timeout=30) as looking,
    ):
        await capacity(client, 4, 2)
        rate = await capacity(client, 12, 4)
        print(f"{rate:.2f} pictures a second; {given.times:g} times that are sent", flush=True)
        seen, tasks, begun = Seen(), set[asyncio.Task[bool]](), perf_counter()
        watching = asyncio.create_task(watch(looking, pid, seen))
        number, end = 0, 60 * given.minutes
        while (now := perf_counter() - begun) < end:
            while number < now * rate * given.times:
                task = asyncio.create_task(ask(client, 1000 + number, seen))
                tasks.add(task)
                task.add_done_callback(tasks.discard)
                number += 1
            await asyncio.sleep(0.005)
        await asyncio.gather(*tasks)
        lasted = perf_counter() - begun
        watching.cancel()
        counted = (await looking.get("/metrics")).text
    return told(seen, rate, lasted, counted)


def told(seen: Seen, rate: float, lasted: float, counted: str) -> dict[str, Any]:
    after = [b for t, b in seen.memory if t > WARM * lasted]
    part = max(len(after) // 10, 1)
    growth = median(after[-part:]) / median(after[:part]) - 1
    late = [t for t in seen.rejected if t > 0.05]
    return {
        "capacity_per_second": rate,
        "seconds": lasted,
        "sent": seen.sent,
        "statuses": dict(seen.statuses),
        "drawn_per_second": len(seen.drawn) / lasted,
        "drawn_p95_seconds": quantiles(seen.drawn, n=20)[-1],
        "rejected_ms": spread(seen.rejected),
        "rejected_above_50_ms": len(late) / max(len(seen.rejected), 1),
        "health_ms": spread(seen.health),
        "health_above_100_ms": sum(t > 0.1 for t in seen.health) / len(seen.health),
        "memory_bytes": {
            "after_warm_up": median(after[:part]),
            "at_the_end": median(after[-part:]),
        },
        "memory_growth": growth,
        "answered_once": seen.sent == sum(seen.statuses.values()),
        "wrong": seen.wrong[:20],
        "counted_by_the_service": {
            line.split()[0]: float(line.split()[1])
            for line in counted.splitlines()
            if line.startswith(("sdfast_requests_total", "sdfast_rejected_total", "sdfast_engine"))
        },
    }


def spread(seconds: list[float]) -> dict[str, float]:
    cuts = quantiles(seconds, n=100) if len(seconds) > 1 else [0.0] * 99
    return {
        "median": 1e3 * cuts[49],
        "p95": 1e3 * cuts[94],
        "p99": 1e3 * cuts[98],
        "most": 1e3 * max(seconds, default=0.0),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--times", type=float, default=2)
    parser.add_argument("--backend", default="onnxruntime")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = ["-m", "sdfast", "serve", "demo", "--port", str(port), "--backend", given.backend]
    serving = subprocess.Popen(
        [sys.executable, *command], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    url = f"http://127.0.0.1:{port}"
    try:
        wait_for(url)
        found = asyncio.run(loaded(given, url, serving.pid))
        os.kill(serving.pid, signal.SIGTERM)
        found["exit"] = serving.wait(60)
    finally:
        serving.kill()
    print(json.dumps(found, indent=2))
    if given.json:
        settings = {name: value for name, value in vars(given).items() if name != "json"}
        whole = {
            "settings": settings,
            **described("python benchmarks/load.py", "onnxruntime"),
            **found,
        }
        given.json.write_text(json.dumps(whole, indent=2) + "\n")


def wait_for(url: str) -> None:
    begun = perf_counter()
    while perf_counter() - begun < 60:
        try:
            if httpx.get(f"{url}/readyz").status_code == 200:
                return
        except httpx.HTTPError:
            pass
        asyncio.run(asyncio.sleep(0.2))
    raise SystemExit("the service did not get ready")


if __name__ == "__main__":
    main()
