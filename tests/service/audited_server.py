"""The service, which notes each file, address and module that Python is asked for while ARMED is
there: python audited_server.py NOTES ARMED, and its worker by the same with the number of a socket.
"""

from __future__ import annotations

import os
import sys

EVENTS = ("open", "import", "os.listdir", "os.scandir", "os.chdir", "os.system", "os.exec")
EVENTS += ("subprocess.Popen", "exec", "compile", "pickle.find_class", "ctypes.dlopen")
EVENTS += ("socket.connect", "socket.getaddrinfo", "socket.gethostbyname", "shutil.copyfile")
EVENTS += ("urllib.Request", "tempfile.mkstemp", "os.remove", "os.rename", "os.mkdir")


def watch(notes: str, armed: str) -> None:
    noted = os.open(notes, os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def hook(event: str, arguments: tuple[object, ...]) -> None:
        # Code objects of dataclasses and the like are no data of a request's.
        if event in EVENTS and os.path.exists(armed):  # noqa: PTH110
            # Of what was asked for, not of how.
            os.write(noted, f"{event}\t{arguments[:2]!r}\n".encode("utf-8", "backslashreplace"))

    sys.addaudithook(hook)


def main(notes: str, armed: str, descriptor: str = "") -> None:
    watch(notes, armed)
    if descriptor:
        from sdfast.service import worker

        worker.main(int(descriptor))
        return
    from sdfast.service import Limits, Service
    from sdfast.service.http.serving import serve
    from sdfast.service.http.settings import Settings

    command = (sys.executable, __file__, notes, armed)
    limits = Limits(canary=0, queue=256, queue_seconds=10_000)
    service = Service(["demo"], backend="onnxruntime", threads=2, limits=limits, command=command)
    serve(service, Settings(port=0), lambda url: print(url, flush=True))


if __name__ == "__main__":
    main(*sys.argv[1:])
