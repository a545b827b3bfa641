"""The store in a folder and behind an fsspec URL: publish, read, remove, and what it refuses."""

from __future__ import annotations

import hashlib
import json
import os
import uuid
from collections.abc import Callable
from pathlib import Path

import pytest

from accord.artefacts import AdapterName, ArtefactStore, FileEntry, Manifest
from accord.errors import AlreadyExistsError, DataLossError, FailedPreconditionError, InvalidArgumentError, NotFoundError, UnavailableError

MakeFolder = Callable[..., Path]


@pytest.fixture
def make_folder(tmp_path: Path) -> MakeFolder:
    def make(content: str = "weights", **more: str) -> Path:
        folder = tmp_path / f"made-{uuid.uuid4().hex}"
        folder.mkdir()
        (folder / "adapter_model.safetensors").write_text(content)
        (folder / "adapter_config.json").write_text("{}")
        for name, text in more.items():
            (folder / name.replace("__", ".")).write_text(text)
        return folder

    return make


@pytest.fixture(params=["folder", "memory"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> ArtefactStore:
    uri = str(tmp_path / "store") if request.param == "folder" else f"memory://{uuid.uuid4().hex}/store"
    return ArtefactStore(uri, cache=tmp_path / "cache")


def test_versions_count_up_and_resolve(store: ArtefactStore, make_folder: MakeFolder) -> None:
    assert store.latest("x") is None
    first = store.publish("x", make_folder("a"), kind="policy", run="runs/r", step=1)
    second = store.publish("adapters/x", make_folder("b"), kind="policy", run="runs/r", step=2)
    assert (first, second) == ("adapters/x/versions/1", "adapters/x/versions/2")
    assert store.latest("x") == second == store.resolve("adapters/x") == store.resolve(second)
    assert store.resolve(first) == first
    assert store.adapters() == ["adapters/x"]
    assert [manifest.name for manifest in store.list()] == [first, second]


def test_what_was_published_comes_back(store: ArtefactStore, make_folder: MakeFolder) -> None:
    parent = store.publish("sft", make_folder("p"), kind="policy")
    name = store.publish(
        "x", make_folder("w"), kind="reward", base_model_digest="b" * 64, tokenizer_digest="t" * 64, parents=[parent], run="runs/r",
        data_digest="d" * 64, step=7, facts={"mean": 0.25, "tuple": (1, 2), "none": None, "text": "naïve"},
    )  # fmt: skip
    manifest = store.manifest(name)
    assert (manifest.kind, manifest.base_model_digest, manifest.tokenizer_digest) == ("reward", "b" * 64, "t" * 64)
    assert (manifest.parents, manifest.run, manifest.data_digest, manifest.step) == ((parent,), "runs/r", "d" * 64, 7)
    assert manifest.facts == {"mean": 0.25, "tuple": [1, 2], "none": None, "text": "naïve"}
    assert manifest.files["adapter_model.safetensors"] == FileEntry(hashlib.sha256(b"w").hexdigest(), 1)
    assert manifest.digest == hashlib.sha256(manifest.to_bytes()).hexdigest()
    folder = store.fetch(name)
    assert (folder / "adapter_model.safetensors").read_text() == "w"
    assert (folder / "adapter_config.json").read_text() == "{}"


def test_the_digest_is_that_of_the_stored_file(tmp_path: Path, make_folder: MakeFolder) -> None:
    store = ArtefactStore(str(tmp_path / "s"))
    name = store.publish("x", make_folder(), kind="policy")
    stored = (tmp_path / "s" / name / "manifest.json").read_bytes()
    assert store.manifest(name).digest == hashlib.sha256(stored).hexdigest()


def test_publishing_twice_is_publishing_once(store: ArtefactStore, make_folder: MakeFolder) -> None:
    def publish(content: str, **fields: object) -> str:
        return store.publish("x", make_folder(content), kind="policy", run="runs/r", **fields)  # type: ignore[arg-type]

    first = publish("a", step=1)
    assert publish("a", step=1) == first
    others = [publish("b", step=1), publish("a", step=2), publish("a", step=1, facts={"kl": 1.0})]
    assert others == [f"adapters/x/versions/{number}" for number in (2, 3, 4)]
    assert publish("a", step=1) == first


def test_an_explicit_version_is_taken_once(store: ArtefactStore, make_folder: MakeFolder) -> None:
    name = store.publish("x", make_folder("a"), kind="policy", version=5)
    assert name == "adapters/x/versions/5"
    assert store.publish("x", make_folder("a"), kind="policy", version=5) == name
    with pytest.raises(AlreadyExistsError) as caught:
        store.publish("x", make_folder("b"), kind="policy", version=5)
    assert caught.value.field == "version"
    assert (store.fetch(name) / "adapter_model.safetensors").read_text() == "a"
    assert store.publish("x", make_folder("c"), kind="policy") == "adapters/x/versions/6"
    with pytest.raises(InvalidArgumentError):
        store.publish("x", make_folder("d"), kind="policy", version=0)


def test_one_file_is_read_without_the_others(store: ArtefactStore, make_folder: MakeFolder) -> None:
    name = store.publish("x", make_folder("w"), kind="policy")
    assert store.read_file(name, "adapter_config.json") == b"{}"
    with pytest.raises(NotFoundError, match=r"has no file head.safetensors; it has adapter_config.json, adapter_model.safetensors"):
        store.read_file(name, "head.safetensors")
    store.remove(name)
    with pytest.raises(NotFoundError, match="was removed"):
        store.read_file(name, "adapter_config.json")


def test_removed_versions_keep_their_manifest_and_number(store: ArtefactStore, make_folder: MakeFolder) -> None:
    first = store.publish("x", make_folder("a"), kind="policy", step=1)
    second = store.publish("x", make_folder("b"), kind="policy", step=2, parents=[first])
    digest = store.manifest(first).digest
    store.fetch(first)
    store.remove(first)
    store.remove(first)
    assert store.manifest(first).removed
    assert store.manifest(first).digest == digest
    with pytest.raises(NotFoundError, match="removed"):
        store.fetch(first)
    assert [manifest.name for manifest in store.lineage(second)] == [second, first]
    store.remove(second)
    assert store.latest("x") is None
    with pytest.raises(NotFoundError):
        store.resolve("adapters/x")
    assert store.publish("x", make_folder("c"), kind="policy", step=3) == "adapters/x/versions/3"


def test_publishing_what_was_removed_restores_it(store: ArtefactStore, make_folder: MakeFolder) -> None:
    name = store.publish("x", make_folder("a"), kind="policy", run="runs/r", step=1)
    store.remove(name)
    assert store.publish("x", make_folder("a"), kind="policy", run="runs/r", step=1) == name
    assert not store.manifest(name).removed
    assert (store.fetch(name) / "adapter_model.safetensors").read_text() == "a"


def test_unknown_names_say_what_exists(store: ArtefactStore, make_folder: MakeFolder) -> None:
    with pytest.raises(NotFoundError, match="none"):
        store.resolve("adapters/x")
    store.publish("y", make_folder(), kind="policy")
    with pytest.raises(NotFoundError, match="adapters/y"):
        store.resolve("adapters/x")
    with pytest.raises(NotFoundError, match="adapters/y/versions/1"):
        store.fetch("adapters/y/versions/2")
    with pytest.raises(NotFoundError):
        store.publish("x", make_folder(), kind="policy", parents=["adapters/y/versions/9"])
    assert store.latest("x") is None


def test_lineage_walks_all_parents_once(store: ArtefactStore, make_folder: MakeFolder) -> None:
    sft = store.publish("sft", make_folder("s"), kind="policy")
    reward = store.publish("rm", make_folder("r"), kind="reward", parents=[sft])
    ppo = store.publish("ppo", make_folder("p"), kind="policy", parents=[sft, reward])
    assert [manifest.name for manifest in store.lineage("adapters/ppo")] == [ppo, sft, reward]


def test_names_are_checked_everywhere(store: ArtefactStore, make_folder: MakeFolder) -> None:
    for call in (store.resolve, store.manifest, store.fetch, store.remove, store.lineage):
        with pytest.raises(InvalidArgumentError):
            call("adapters/../../etc/versions/1")
    with pytest.raises(InvalidArgumentError):
        store.publish("../x", make_folder(), kind="policy")
    with pytest.raises(InvalidArgumentError):
        store.publish("x", make_folder(), kind="policy", parents=["adapters/x"])
    with pytest.raises(InvalidArgumentError):
        store.latest("adapters/x/versions/1")


def test_folders_that_hold_what_a_version_may_not(store: ArtefactStore, make_folder: MakeFolder, tmp_path: Path) -> None:
    pickled, nested, linked, empty = make_folder(model__bin="x"), make_folder(), make_folder(), tmp_path / "empty"
    (nested / "sub").mkdir()
    (linked / "secret.json").symlink_to("/etc/hostname")
    empty.mkdir()
    for folder in (pickled, nested, linked, empty, tmp_path / "absent"):
        with pytest.raises(InvalidArgumentError):
            store.publish("x", folder, kind="policy")
    with pytest.raises(InvalidArgumentError, match="facts"):
        store.publish("x", make_folder(), kind="policy", facts={"loss": float("nan")})
    assert store.adapters() == []


class TestDamage:
    """Whatever happens to stored bytes is noticed, and the message says where."""

    @pytest.fixture
    def local(self, tmp_path: Path, make_folder: MakeFolder) -> tuple[ArtefactStore, str, Path]:
        store = ArtefactStore(str(tmp_path / "store"))
        name = store.publish("x", make_folder("weights"), kind="policy")
        return store, name, tmp_path / "store" / name

    def test_a_changed_file_names_both_digests(self, local: tuple[ArtefactStore, str, Path]) -> None:
        store, name, folder = local
        (folder / "adapter_model.safetensors").write_text("weightz")
        with pytest.raises(DataLossError, match="does not match its digest"):
            store.read_file(name, "adapter_model.safetensors")
        with pytest.raises(DataLossError) as caught:
            store.fetch(name)
        assert caught.value.metadata["file"] == "adapter_model.safetensors"
        for content in (b"weights", b"weightz"):
            assert hashlib.sha256(content).hexdigest() in caught.value.message

    def test_a_file_changed_after_it_was_verified(self, local: tuple[ArtefactStore, str, Path]) -> None:
        store, name, folder = local
        store.fetch(name)
        path = folder / "adapter_model.safetensors"
        stat = path.stat()
        path.write_text("weightz")
        os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))
        with pytest.raises(DataLossError):
            store.fetch(name)

    def test_a_verified_version_is_not_hashed_again(self, local: tuple[ArtefactStore, str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
        store, name, _ = local
        folder = store.fetch(name)

        def no_hashing(path: Path) -> FileEntry:
            raise AssertionError(f"{path} was hashed again")

        monkeypatch.setattr("accord.artefacts.local.hash_file", no_hashing)
        assert store.fetch(name) == folder

    def test_extra_missing_and_linked_files(self, local: tuple[ArtefactStore, str, Path]) -> None:
        store, name, folder = local
        (folder / "pytorch_model.bin").write_text("x")
        with pytest.raises(DataLossError, match=r"pytorch_model\.bin"):
            store.fetch(name)
        (folder / "pytorch_model.bin").unlink()
        config = folder / "adapter_config.json"
        config.unlink()
        with pytest.raises(DataLossError, match=r"adapter_config\.json does not match"):
            store.read_file(name, config.name)
        with pytest.raises(DataLossError, match=r"lacks.*adapter_config\.json"):
            store.fetch(name)
        config.symlink_to(folder / "manifest.json")
        with pytest.raises(DataLossError, match="link"):
            store.fetch(name)

    def test_a_version_folder_that_is_a_link(self, local: tuple[ArtefactStore, str, Path]) -> None:
        store, _, folder = local
        (folder.parent / "2").symlink_to(folder)
        with pytest.raises(DataLossError, match="link"):
            store.manifest("adapters/x/versions/2")

    @pytest.mark.parametrize(
        "change",
        [
            lambda content: content | {"schema": 2},
            lambda content: content | {"name": "adapters/y/versions/1"},
            lambda content: content | {"unknown": 1},
            lambda content: {key: value for key, value in content.items() if key != "kind"},
            lambda content: content | {"files": {"../../x.json": {"sha256": "0" * 64, "size_bytes": 1}}},
            lambda content: content | {"files": {"/etc/passwd": {"sha256": "0" * 64, "size_bytes": 1}}},
            lambda content: content | {"files": {"model.bin": {"sha256": "0" * 64, "size_bytes": 1}}},
            lambda content: content | {"files": {"x.json": {"sha256": "zz", "size_bytes": 1}}},
            lambda content: content | {"files": []},
            lambda content: content | {"parents": ["../x"]},
        ],
    )
    def test_a_manifest_that_the_store_did_not_write(self, local: tuple[ArtefactStore, str, Path], change: Callable[[dict], dict]) -> None:
        store, name, folder = local
        path = folder / "manifest.json"
        content = change(json.loads(path.read_text()))
        path.write_text(json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=False) + "\n")
        with pytest.raises(DataLossError):
            store.fetch(name)

    @pytest.mark.parametrize("stored", [b"", b"{", b"[]", b"null", b"\xff\xfe"])
    def test_a_torn_manifest(self, local: tuple[ArtefactStore, str, Path], stored: bytes) -> None:
        store, name, folder = local
        (folder / "manifest.json").write_bytes(stored)
        with pytest.raises(DataLossError, match="manifest"):
            store.manifest(name)

    def test_a_manifest_written_differently_has_another_digest_and_is_refused(self, local: tuple[ArtefactStore, str, Path]) -> None:
        store, name, folder = local
        path = folder / "manifest.json"
        path.write_text(json.dumps(json.loads(path.read_text()), indent=1))
        with pytest.raises(DataLossError, match="not as the store wrote it"):
            store.manifest(name)


class TestRemote:
    @pytest.fixture
    def remote(self, tmp_path: Path, make_folder: MakeFolder) -> tuple[ArtefactStore, str, str]:
        root = uuid.uuid4().hex
        store = ArtefactStore(f"memory://{root}", cache=tmp_path / "cache")
        return store, store.publish("x", make_folder("weights"), kind="policy"), root

    def test_damage_behind_a_url(self, remote: tuple[ArtefactStore, str, str]) -> None:
        import fsspec

        store, name, root = remote
        memory = fsspec.filesystem("memory")
        memory.pipe_file(f"/{root}/{name}/adapter_model.safetensors", b"weightz")
        with pytest.raises(DataLossError, match=hashlib.sha256(b"weightz").hexdigest()):
            store.fetch(name)
        memory.pipe_file(f"/{root}/{name}/adapter_model.safetensors", b"weights")
        memory.pipe_file(f"/{root}/{name}/evil.pkl", b"x")
        with pytest.raises(DataLossError, match=r"evil\.pkl"):
            store.fetch(name)

    def test_a_damaged_cache_is_fetched_again(self, remote: tuple[ArtefactStore, str, str], tmp_path: Path) -> None:
        store, name, root = remote
        folder = store.fetch(name)
        (folder / "adapter_model.safetensors").write_text("rot")
        again = ArtefactStore(f"memory://{root}", cache=tmp_path / "cache")
        assert (again.fetch(name) / "adapter_model.safetensors").read_text() == "weights"

    def test_a_publisher_that_died_leaves_nothing_to_see(self, remote: tuple[ArtefactStore, str, str], make_folder: MakeFolder) -> None:
        import fsspec

        store, name, root = remote
        memory = fsspec.filesystem("memory")
        memory.pipe_file(f"/{root}/adapters/x/versions/2/claim.json", b"{}")
        memory.pipe_file(f"/{root}/adapters/x/versions/2/adapter_config.json", b"{}")
        assert store.latest("x") == name
        assert [manifest.name for manifest in store.list()] == [name]
        with pytest.raises(NotFoundError):
            store.fetch("adapters/x/versions/2")
        assert store.publish("x", make_folder("next"), kind="policy") == "adapters/x/versions/3"

    def test_a_claim_that_another_publisher_wrote_over_is_lost(
        self, remote: tuple[ArtefactStore, str, str], make_folder: MakeFolder, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from fsspec.implementations.memory import MemoryFileSystem

        store, _, root = remote
        real = MemoryFileSystem.pipe_file

        def racing(self: MemoryFileSystem, path: str, value: bytes, mode: str = "overwrite", **more: object) -> None:
            real(self, path, value, mode="overwrite")
            if path.endswith("versions/2/claim.json"):
                real(self, path, b'{"publisher": "another"}', mode="overwrite")

        monkeypatch.setattr(MemoryFileSystem, "pipe_file", racing)
        assert store.publish("x", make_folder("next"), kind="policy") == "adapters/x/versions/3"
        monkeypatch.undo()
        assert MemoryFileSystem().cat_file(f"/{root}/adapters/x/versions/2/claim.json") == b'{"publisher": "another"}'

    def test_a_store_that_fails_is_unavailable(self, remote: tuple[ArtefactStore, str, str], monkeypatch: pytest.MonkeyPatch) -> None:
        from fsspec.implementations.memory import MemoryFileSystem

        store, name, _ = remote

        def fail(*args: object, **kwargs: object) -> None:
            raise OSError("connection reset")

        monkeypatch.setattr(MemoryFileSystem, "cat_file", fail)
        with pytest.raises(UnavailableError, match="connection reset") as caught:
            store.manifest(name)
        assert caught.value.retryable

    def test_an_unknown_scheme_is_refused(self) -> None:
        with pytest.raises(FailedPreconditionError, match="nosuch"):
            ArtefactStore("nosuch://bucket/x")


def test_manifest_round_trip_and_publication_identity() -> None:
    files = {"x.json": FileEntry("0" * 64, 3)}
    manifest = Manifest(name="adapters/x/versions/3", kind="policy", files=files, facts={"b": 1, "a": [1.5]}, created_at="t")
    assert Manifest.from_bytes(manifest.to_bytes(), name=manifest.name) == manifest
    twin = Manifest(name="adapters/x/versions/4", kind="policy", files=files, facts={"b": 1, "a": [1.5]}, created_at="later")
    assert manifest.same_publication(twin)
    assert manifest.digest != twin.digest
    assert not manifest.same_publication(Manifest(name="adapters/x/versions/4", kind="policy", files=files, created_at="t"))
    assert manifest.size_bytes == 3
    assert AdapterName.parse(manifest.name).version == 3
