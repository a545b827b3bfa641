"""A llama.cpp server on this machine's CPU, in an environment of its own: the peer of benchmarks that runs the embedded model's own GGUF file.

`python tools/llamacpp_peer.py` installs the PyPI package `xllamacpp` (one wheel of 34 MB) into build/llamacpp-peer once and serves on loopback
until it is interrupted. The weights are those that the embedded model was converted from, still in 4 bits (Q4_1).
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
HOME = ROOT / "build" / "llamacpp-peer"
PACKAGE = "xllamacpp==2026.10.11549"
_STAMP = ".installed"
_SERVE = """
import json, sys, xllamacpp
asked = json.loads(sys.argv[1])
params = xllamacpp.CommonParams()
params.model.path = asked["model"]
params.n_parallel, params.n_ctx = asked["rows"], asked["row_tokens"] * asked["rows"]
params.cpuparams.n_threads = params.cpuparams_batch.n_threads = asked["threads"]
params.hostnames, params.port = ["127.0.0.1"], asked["port"]
params.cont_batching, params.kv_unified, params.cache_prompt = True, True, asked["cache_prompt"]
server = xllamacpp.Server(params)
print(server.listening_address, flush=True)
sys.stdin.read()
"""


@dataclass(frozen=True, slots=True)
class Serving:
    """How a model is served: `rows` requests at once, each with a context of `row_tokens`; port 0 is any free one; with `cache_prompt` what prompts
    begin alike is read once."""

    rows: int = 32
    row_tokens: int = 512
    threads: int = 2
    port: int = 0
    cache_prompt: bool = False


def installed(home: Path = HOME) -> bool:
    """Whether the environment is there, in this version."""
    stamp = home / _STAMP
    return stamp.is_file() and stamp.read_text(encoding="utf-8") == PACKAGE


def install(home: Path = HOME) -> Path:
    """Returns the environment's Python, after installing where that has not been done."""
    python = home / "bin" / "python"
    if not installed(home):
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(home)], check=True)
        subprocess.run([str(python), "-m", "pip", "--disable-pip-version-check", "--quiet", "install", PACKAGE], check=True)
        (home / _STAMP).write_text(PACKAGE, encoding="utf-8")
    return python


@contextmanager
def running(*, rows: int = 32, threads: int = 2, home: Path = HOME) -> Iterator[str]:
    """Yields the URL of a server of the embedded model that is ready, and ends it afterwards."""
    sys.path.insert(0, str(ROOT / "services"))
    from accord.models.embedded import find_gguf

    with serving(find_gguf(), Serving(rows=rows, threads=threads), home=home) as url:
        yield url


@contextmanager
def serving(model: Path, how: Serving, *, home: Path = HOME) -> Iterator[str]:
    """Yields the URL of a server of a GGUF file that is ready, and ends it afterwards.

    Raises:
        RuntimeError: it ended instead; server.log in `home` says why.
    """
    python = install(home)
    with (home / "server.log").open("wb") as log:
        process = subprocess.Popen(
            [str(python), "-c", _SERVE, json.dumps({"model": str(model), **asdict(how)})],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
        )
        try:
            assert process.stdout is not None
            for line in process.stdout:
                if line.startswith("http"):
                    yield line.strip()
                    return
            raise RuntimeError(f"llama.cpp ended with code {process.wait(30)}; see {home / 'server.log'}")
        finally:
            process.terminate()
            process.wait(30)


def main() -> None:
    """Installs and serves."""
    with running() as url:
        print(f"llama.cpp serves at {url}; Ctrl-C ends it", flush=True)
        try:
            sys.stdin.read()
        except KeyboardInterrupt:
            return


if __name__ == "__main__":
    main()
