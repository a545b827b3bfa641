"""A llama.cpp server on this machine's CPU, in an environment of its own: the peer of benchmarks that runs the embedded model's own GGUF file.

`python tools/llamacpp_peer.py` installs the PyPI package `xllamacpp` (one wheel of 34 MB) into build/llamacpp-peer once and serves on loopback
until it is interrupted. The weights are those that the embedded model was converted from, still in 4 bits (Q4_1). `convert` runs llama.cpp's own
converter over a model folder; it comes out of the source archive of `llama-cpp-python`, which is the one place on PyPI that has it.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
HOME = ROOT / "build" / "llamacpp-peer"
PACKAGE = "xllamacpp==2026.10.11549"
CONVERTER = "0.3.36"  # the version of llama-cpp-python whose archive has it
CONVERTER_SECONDS = 600
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


def install_converter(home: Path = HOME) -> Path:
    """Returns the folder of convert_hf_to_gguf.py and what it imports beside torch and transformers, fetched where that has not been done."""
    folder = home / f"converter-{CONVERTER}"
    if (folder / _STAMP).is_file():
        return folder
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
    with tempfile.TemporaryDirectory() as scratch:
        wanted = ["--no-deps", "--no-binary", "llama-cpp-python", "--dest", scratch, f"llama-cpp-python=={CONVERTER}"]
        subprocess.run([*pip, "download", *wanted], check=True)
        (archive,) = Path(scratch).glob("*.tar.gz")
        with tarfile.open(archive) as tar:
            tar.extractall(folder, members=_converter_members(tar), filter="data")
    subprocess.run([*pip, "install", "--no-deps", "--target", str(folder), "sentencepiece"], check=True)
    (folder / _STAMP).touch()
    return folder


def _converter_members(tar: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    for member in tar:
        _, found, path = member.name.partition("/vendor/llama.cpp/")
        if found and path.startswith(("convert_hf_to_gguf.py", "conversion/", "gguf-py/")):
            yield member.replace(name=path)


def convert(model: Path, gguf: Path, *, home: Path = HOME) -> str:
    """Writes a model folder as a GGUF file in 32 bits, by llama.cpp's converter; returns what it said.

    Raises:
        RuntimeError: the converter refused the folder; with its words.
    """
    folder = install_converter(home)
    line = [sys.executable, str(folder / "convert_hf_to_gguf.py"), str(model), "--outtype", "f32", "--outfile", str(gguf)]
    path = os.pathsep.join([str(folder / "gguf-py"), str(folder)])
    done = subprocess.run(line, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True, timeout=CONVERTER_SECONDS, check=False)
    if done.returncode:
        raise RuntimeError(f"llama.cpp's converter ended with code {done.returncode}: {done.stderr[-2000:]}")
    return done.stderr


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
    """Installs, and serves unless told not to."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("action", nargs="?", choices=("serve", "install"), default="serve", help="install: also llama.cpp's converter")
    if parser.parse_args().action == "install":
        install()
        install_converter()
        return
    with running() as url:
        print(f"llama.cpp serves at {url}; Ctrl-C ends it", flush=True)
        try:
            sys.stdin.read()
        except KeyboardInterrupt:
            return


if __name__ == "__main__":
    main()
