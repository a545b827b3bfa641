"""The last TRL that has PPO, in an environment of its own: the peer of benchmarks/training.py.

    python tools/trl_peer.py

Installs it once into build/trl-peer (about 1 GB). Newer releases, one of which the tests use, have no PPO any more (trl#7020). Torch's CPU build must
be on offer to pip, as for `make setup`.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
HOME = Path(os.environ.get("ACCORD_TRL_PEER") or ROOT / "build" / "trl-peer")
PACKAGES = ("torch==2.13.0", "trl==1.12.0", "transformers==5.23.0", "peft==0.21.2", "accelerate==1.15.0")
_STAMP = ".installed"


def install(home: Path = HOME) -> Path:
    """Returns the environment's Python, after installing where that has not been done."""
    python, stamp = home / "bin" / "python", home / _STAMP
    if stamp.is_file() and stamp.read_text(encoding="utf-8") == " ".join(PACKAGES):
        return python
    shutil.rmtree(home, ignore_errors=True)
    print(f"installing {PACKAGES[1]} into {home} (about 1 GB)", flush=True)
    subprocess.run([sys.executable, "-m", "venv", str(home)], check=True)
    subprocess.run([str(python), "-m", "pip", "--disable-pip-version-check", "--quiet", "install", *PACKAGES], check=True)
    stamp.write_text(" ".join(PACKAGES), encoding="utf-8")
    return python


if __name__ == "__main__":
    install()
