"""No field of a request names a path, an address, a class or a device: whatever is put into any of
them, neither the server nor its worker opens, connects to or imports anything by it."""

from __future__ import annotations

import base64
import io
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import httpx
import pytest
from PIL import Image

import sdfast

MARK = "n33dle"
NEEDLES = (
    f"/etc/{MARK}",
    f"../../../etc/{MARK}",
    f"%2e%2e%2fetc%2f{MARK}",
    f"file:///etc/{MARK}",
    f"http://127.0.0.1:9/{MARK}.png",
    f"https://{MARK}.invalid/x",
    f"C:\\{MARK}",
    f"\\\\{MARK}\\share",
    f"{MARK}.module:Class",
    f"cuda:{MARK}",
    f"<lora:../../{MARK}:1>",
    f"data:image/png;base64,/etc/{MARK}",
    f"demo/../{MARK}",
)
SERVER = Path(__file__).parent.parent / "audited_server.py"


class Watched:
    """A server in a process of its own, and what it was seen to ask for."""

    def __init__(self, folder: Path) -> None:
        self._notes, self._armed = folder / "notes", folder / "armed"
        self.process = subprocess.Popen(
            [sys.executable, str(SERVER), str(self._notes), str(self._armed)],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env={**os.environ, "SDFAST_HOME": str(folder / "store")},
        )
        assert self.process.stdout is not None
        self.client = httpx.Client(base_url=self.process.stdout.readline().strip(), timeout=60)
        end = time.monotonic() + 90
        while self.client.get("/readyz").status_code != 200:
            assert time.monotonic() < end
            time.sleep(0.05)

    def arm(self) -> None:
        self._armed.touch()

    def notes(self) -> list[tuple[str, str]]:
        """Each event, and what was asked for."""
        lines = self._notes.read_text().splitlines()
        return [(event, said) for event, _, said in (line.partition("\t") for line in lines)]


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watched]:
    made = Watched(tmp_path_factory.mktemp("watched"))
    yield made
    made.client.close()
    made.process.terminate()
    made.process.wait(30)


def picture() -> str:
    buffer = io.BytesIO()
    Image.new("RGB", (64, 64), "red").save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()


SIZE = {"width": 64, "height": 64, "steps": 1}
BODIES: dict[str, dict[str, Any]] = {
    "/v1/generate": {"prompt": "a star", **SIZE},
    "/v1/images/generations": {"prompt": "a star", "size": "64x64", "steps": 1},
    "/sdapi/v1/txt2img": {"prompt": "a star", **SIZE},
    "/sdapi/v1/img2img": {"prompt": "a star", **SIZE, "init_images": [picture()]},
    "/models/demo": {"inputs": "a star", "parameters": {"num_inference_steps": 1}},
}
"""What each route draws."""


def fields(schema: Mapping[str, Any], part: Mapping[str, Any], depth: int = 3) -> Iterator[Any]:
    """The paths of names to all that a body of that schema may have a text in."""
    if "$ref" in part:
        name = part["$ref"].rpartition("/")[2]
        yield from fields(schema, schema["components"]["schemas"][name], depth)
        return
    for several in ("anyOf", "oneOf", "allOf"):
        for one in part.get(several, ()):
            yield from fields(schema, one, depth)
    if part.get("type", "string") == "string":
        yield ()
    if part.get("type") == "array" and depth:
        for path in fields(schema, part.get("items", {}), depth - 1):
            yield (0, *path)
    for name, one in part.get("properties", {}).items() if depth else ():
        for path in fields(schema, one, depth - 1):
            yield (name, *path)


def put(path: tuple[Any, ...], value: str) -> Any:
    """That value at that path, and nothing else."""
    if not path:
        return value
    inner = put(path[1:], value)
    return [inner] if path[0] == 0 else {path[0]: inner}


def bodies(schema: Mapping[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Of every route that takes JSON, one with a needle in each place that takes a text."""
    for route, methods in schema["paths"].items():
        content = methods.get("post", {}).get("requestBody", {}).get("content", {})
        part = content.get("application/json", {}).get("schema")
        if part is None:
            continue
        address = route.replace("{model}", "demo").replace("{name}", "demo")
        for k, path in enumerate(sorted(set(fields(schema, part)), key=str)):
            if path and path[0] != 0:
                needles = NEEDLES[k % len(NEEDLES)], NEEDLES[(k + 5) % len(NEEDLES)]
                for needle in needles:
                    yield address, {**BODIES.get(address, {}), **put(path, needle)}


def allowed(said: str) -> bool:
    """Whether an `open` is of Python, of sdfast, of the system's own accounts, or temporary."""
    name = said[1:].split(",")[0].strip("'\"b")
    roots = [sys.prefix, sys.base_prefix, str(Path(sdfast.__file__).parent.parent)]
    roots += [str(Path(one).parents[0]) for one in sys.path if one.endswith("site-packages")]
    roots += ["/proc/", "/sys/", "/dev/null", tempfile.gettempdir(), "/usr/share/zoneinfo"]
    return name.isdecimal() or any(name.startswith(root) for root in roots)


def test_nothing_that_a_field_says_is_opened_connected_to_or_imported(watched: Watched) -> None:
    client = watched.client
    for route, body in BODIES.items():  # what is imported when it is first needed is no data's
        assert client.post(route, json=body).status_code == 200, route
    watched.arm()
    schema = client.get("/openapi.json").json()
    statuses, asked = set[int](), 0
    for route, body in bodies(schema):
        statuses.add(client.post(route, json=body).status_code)
        asked += 1
    for needle in NEEDLES:
        for route in ("/v1/models/", "/models/", "/v2/models/", "/v1/requests/", "/static/"):
            statuses.add(client.get(route + needle.replace("/", "%2f")).status_code)
        form = {"prompt": "a star", "model": needle, "size": "64x64"}
        files = {"image": (needle, base64.b64decode(picture()), "image/png")}
        statuses.add(client.post("/v1/images/edits", data=form, files=files).status_code)
    assert asked > 150
    assert max(statuses) < 500
    notes = watched.notes()
    assert not [note for note in notes if MARK in note[1]]
    assert not [note for note in notes if note[0] == "open" and not allowed(note[1])]
    quiet = ("socket.connect", "socket.getaddrinfo", "socket.gethostbyname", "subprocess.Popen")
    assert not [note for note in notes if note[0] in (*quiet, "os.system", "os.exec")]
    assert not [note for note in notes if note[0] in ("pickle.find_class", "ctypes.dlopen")]


def test_what_is_asked_for_is_seen(tmp_path: Path) -> None:
    """The watch itself: that the test above could fail."""
    code = (
        f"import sys; sys.path.insert(0, {str(SERVER.parent)!r}); import audited_server, socket\n"
        "audited_server.watch(*sys.argv[1:])\n"
        "for act in (lambda: open('/etc/n33dle'), lambda: __import__('n33dle'),\n"
        "            lambda: socket.create_connection(('127.0.0.1', 9), 1)):\n"
        "    try: act()\n"
        "    except (OSError, ImportError): pass\n"
    )
    (tmp_path / "armed").touch()
    arguments = [str(tmp_path / "notes"), str(tmp_path / "armed")]
    subprocess.run([sys.executable, "-c", code, *arguments], check=True)
    notes = (tmp_path / "notes").read_text()
    for event in ("open\t('/etc/n33dle'", "import\t('n33dle'", "socket.connect\t"):
        assert event in notes
