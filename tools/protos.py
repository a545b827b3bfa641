"""Writes the Python stubs from `protos/`, or checks that they, the lint rules and the released contract still hold.

    python tools/protos.py write       # regenerate services/accord/api
    python tools/protos.py check       # stubs fresh, buf lint, buf breaking against protos/baseline.binpb
    python tools/protos.py baseline    # release: today's contract becomes the baseline

`buf/validate/validate.proto` is not a file here: its descriptor comes out of the installed protovalidate package.
"""

from __future__ import annotations

import filecmp
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from google.protobuf import any_pb2, descriptor_pb2, duration_pb2, field_mask_pb2, timestamp_pb2
from google.rpc import status_pb2
from grpc_tools import protoc
from protovalidate._gen.buf.validate import validate_pb

ROOT = Path(__file__).resolve().parent.parent
PROTOS = ROOT / "protos"
STUBS = ROOT / "services" / "accord" / "api"
BASELINE = PROTOS / "baseline.binpb"
VALIDATE_IMPORT = "from buf.validate import validate_pb2"


def dependencies(path: Path) -> None:
    """Writes the descriptors that our protos import but that are not files of this repository."""
    files = descriptor_pb2.FileDescriptorSet()
    for module in (descriptor_pb2, duration_pb2, field_mask_pb2, timestamp_pb2, any_pb2):
        module.DESCRIPTOR.CopyToProto(files.file.add())
    files.file.add().ParseFromString(validate_pb.desc().proto.to_binary())
    status_pb2.DESCRIPTOR.CopyToProto(files.file.add())
    path.write_bytes(files.SerializeToString())


def sources() -> list[str]:
    """The proto files, relative to `protos/`."""
    return sorted(str(path.relative_to(PROTOS)) for path in PROTOS.rglob("*.proto"))


def generate(folder: Path) -> Path:
    """Writes stubs and an image with comments into `folder`; returns the image's path."""
    deps, image = folder / "deps.binpb", folder / "image.binpb"
    dependencies(deps)
    arguments = [
        "protoc", f"--descriptor_set_in={deps}", f"-I{PROTOS}", f"--python_out={folder}", f"--pyi_out={folder}",
        f"--grpc_python_out={folder}", "--include_imports", "--include_source_info", f"--descriptor_set_out={image}", *sources(),
    ]  # fmt: skip
    if protoc.main(arguments) != 0:
        raise SystemExit("protoc failed; see above")
    for path in [*folder.rglob("*.py"), *folder.rglob("*.pyi")]:
        path.write_text(path.read_text().replace(VALIDATE_IMPORT, "from accord.api import validate_pb2"))
    for package in (folder / "accord" / "api").rglob("*"):
        if package.is_dir():
            (package / "__init__.py").touch()
    return image


def generated_files(folder: Path) -> list[Path]:
    """The generated files of a tree, relative to it."""
    names = [path.relative_to(folder) for path in folder.rglob("*.py*") if "__pycache__" not in path.parts]
    return sorted(path for path in names if len(path.parts) > 1)


def buf(*arguments: str) -> None:
    """Runs buf; stops with its report when it finds something."""
    binary = Path(sys.executable).with_name("buf")
    done = subprocess.run([str(binary), *arguments, "--config", str(ROOT / "buf.yaml"), "--path", "accord/api"], check=False)
    if done.returncode != 0:
        raise SystemExit(f"buf {arguments[0]} failed")


def write() -> None:
    """Replaces the committed stubs by fresh ones."""
    with tempfile.TemporaryDirectory() as name:
        generate(Path(name))
        fresh = Path(name) / "accord" / "api"
        for old in generated_files(STUBS):
            (STUBS / old).unlink()
        for relative in generated_files(fresh):
            (STUBS / relative).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(fresh / relative, STUBS / relative)


def check() -> None:
    """Stops with a reason when stubs are stale, a lint rule fails or the contract breaks."""
    with tempfile.TemporaryDirectory() as name:
        image = generate(Path(name))
        fresh = Path(name) / "accord" / "api"
        expected, found = generated_files(fresh), generated_files(STUBS)
        stale = sorted({str(p) for p in set(expected) ^ set(found)})
        stale += [str(p) for p in expected if p in found and not filecmp.cmp(fresh / p, STUBS / p, shallow=False)]
        if stale:
            raise SystemExit(f"stale stubs (run make protos): {', '.join(stale)}")
        buf("lint", str(image))
        buf("breaking", str(image), "--against", str(BASELINE))
    print(f"protos: {len(sources())} files, {len(expected)} stubs fresh, lint and compatibility hold")


def baseline() -> None:
    """Makes today's contract the one that later changes must not break."""
    with tempfile.TemporaryDirectory() as name:
        shutil.copyfile(generate(Path(name)), BASELINE)


if __name__ == "__main__":
    {"write": write, "check": check, "baseline": baseline}[sys.argv[1] if len(sys.argv) > 1 else "check"]()
