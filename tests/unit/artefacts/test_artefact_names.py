"""Names become paths, so what is not exactly a name must be refused."""

from __future__ import annotations

import subprocess
import sys

import pytest

from accord.artefacts.names import AdapterName, check_file_name
from accord.errors import InvalidArgumentError


@pytest.mark.parametrize(
    ("name", "adapter", "version"),
    [
        ("adapters/x", "x", None),
        ("adapters/tldr-ppo-2/versions/17", "tldr-ppo-2", 17),
        ("adapters/" + "a" * 100 + "/versions/999999999", "a" * 100, 999_999_999),
    ],
)
def test_parse_and_format_are_inverse(name: str, adapter: str, version: int | None) -> None:
    parsed = AdapterName.parse(name)
    assert (parsed.adapter, parsed.version) == (adapter, version)
    assert str(parsed) == name


BAD_NAMES = [
    "", "x", "adapters", "adapters/", "adapters//", "adapters/..", "adapters/.", "adapters/x/", "adapters/x/versions", "adapters/x/versions/",
    "adapters/x/versions/0", "adapters/x/versions/01", "adapters/x/versions/-1", "adapters/x/versions/1/", "adapters/x/versions/1/../2",
    "adapters/x/versions/..", "adapters/../x/versions/1", "/adapters/x", "adapters/X", "adapters/x_y", "adapters/-x", "adapters/x-",
    "adapters/x\n", "adapters/x/versions/1\n", "adapters/x\x00", "adapters/x/versions/١", "adapters/é", "adapters/x y", "adapters\\x",
    "adapters/" + "a" * 101, "adapters/x/versions/1000000000", "runs/x", "adapters/x/version/1", "adapters/%2e%2e",
]  # fmt: skip


@pytest.mark.parametrize("name", BAD_NAMES)
def test_anything_else_is_refused(name: str) -> None:
    with pytest.raises(InvalidArgumentError) as caught:
        AdapterName.parse(name)
    assert caught.value.field == "adapter"


@pytest.mark.parametrize("name", ["adapters/x", "adapters/x/versions/0"])
def test_a_version_name_must_have_a_version(name: str) -> None:
    with pytest.raises(InvalidArgumentError):
        AdapterName.parse_version(name)


def test_names_made_from_parts_are_checked_too() -> None:
    with pytest.raises(InvalidArgumentError):
        AdapterName("../x")
    with pytest.raises(InvalidArgumentError):
        AdapterName("x").at(0)


@pytest.mark.parametrize("file", ["adapter_model.safetensors", "adapter_config.json", "README.md", "chat_template.jinja"])
def test_safe_files_pass(file: str) -> None:
    assert check_file_name(file) == file


@pytest.mark.parametrize(
    "file",
    ["model.bin", "model.pt", "x.pkl", "x.ckpt", "x", "../x.json", "a/b.json", "/x.json", ".x.json", "x.json\n", "..", "", "x.JSON",
     "manifest.json", "removed.json", "claim.json", "x.safetensors.pt", "a\\b.json"],
)  # fmt: skip
def test_unsafe_files_are_refused(file: str) -> None:
    with pytest.raises(InvalidArgumentError):
        check_file_name(file)


def test_the_package_imports_neither_torch_nor_fsspec() -> None:
    code = "import sys, accord.artefacts; print(sorted({'torch', 'fsspec', 'numpy', 'pydantic'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30, check=True)
    assert done.stdout.strip() == "[]"
