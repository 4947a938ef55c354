"""benchmarks/load.py for some seconds, with so many requests that the queue is full soon."""

import json
import subprocess
import sys
from pathlib import Path

LOAD = Path(__file__).parents[2] / "benchmarks" / "load.py"


def test_six_times_the_capacity_for_some_seconds(tmp_path: Path) -> None:
    file = tmp_path / "load.json"
    command = [sys.executable, str(LOAD), "--minutes", "0.1", "--times", "6", "--json", str(file)]
    subprocess.run(command, check=True, timeout=120, stdout=subprocess.DEVNULL)
    found = json.loads(file.read_text())
    assert found["wrong"] == []
    assert found["answered_once"]
    assert set(found["statuses"]) == {"200", "429"}
    assert found["health_ms"]["median"] < 100
    assert found["rejected_ms"]["median"] < 50
    assert found["exit"] == 0
