"""Exports as other tools read them: transformers, PEFT, Accord itself, gguf's table of names."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.unit.export.conftest import IDS, Export, Shop, logits_of

from accord.export import __main__ as process
from accord.export import folder as folders
from accord.export import hub
from accord.export.conventions import converter_problems, tensor_names
from accord.models.base import load_base_model
from accord.models.batching import collate
from accord.models.heads import HeadFacts, ScalarHead
from accord.models.testing import tiny_model_folder

DPO, RM = "adapters/dpo/versions/1", "adapters/rm/versions/1"


class TestPolicies:
    def test_the_merged_model_has_the_logits_of_base_plus_adapter(self, shop: Shop, export: Export, tmp_path: Path) -> None:
        from transformers import AutoModelForCausalLM, AutoTokenizer

        code, said = export(DPO, tmp_path / "out")
        assert code == 0
        model = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
        with torch.no_grad():
            found = model(torch.tensor([IDS])).logits[0]
            bare = load_base_model(str(shop.model)).model(torch.tensor([IDS])).logits[0]
        wanted = logits_of(shop.adapted(DPO))
        assert float((found - wanted).abs().max()) < 1e-4 < float((bare - wanted).abs().max())
        assert 0 <= said["done"]["difference"] < 1e-4
        tokenizer, original = (AutoTokenizer.from_pretrained(folder) for folder in (tmp_path / "out", shop.model))
        message = [{"role": "user", "content": "hi  5"}]
        assert tokenizer.apply_chat_template(message, add_generation_prompt=True) == original.apply_chat_template(message, add_generation_prompt=True)
        assert json.loads((tmp_path / "out" / "generation_config.json").read_text())["eos_token_id"] == 2
        assert not list(tmp_path.glob(".out*"))
        assert not list((tmp_path / "out").glob(".*"))

    def test_accord_serves_it_as_a_base_model(self, shop: Shop, export: Export, tmp_path: Path) -> None:
        assert export(DPO, tmp_path / "out")[0] == 0
        base, original = load_base_model(str(tmp_path / "out")), load_base_model(str(shop.model))
        assert base.eos_token_ids == original.eos_token_ids
        assert base.digests.chat_template == original.digests.chat_template
        assert base.digests.base_model != original.digests.base_model
        with torch.no_grad():
            assert torch.allclose(base.model(torch.tensor([IDS])).logits[0], logits_of(shop.adapted(DPO)), atol=1e-4)

    def test_shards_have_an_index_and_the_converter_finds_every_tensor(self, export: Export, tmp_path: Path) -> None:
        from transformers import AutoModelForCausalLM

        assert export("adapters/dpo", tmp_path / "whole")[0] == 0
        assert export("adapters/dpo", tmp_path / "parts", "--max-shard-bytes", "40000")[0] == 0
        shards = sorted(path.name for path in (tmp_path / "parts").glob("*.safetensors"))
        assert len(shards) > 1
        assert shards[0] == f"model-00001-of-{len(shards):05d}.safetensors"
        assert sorted(tensor_names(tmp_path / "parts")) == sorted(tensor_names(tmp_path / "whole"))
        assert converter_problems(tmp_path / "parts") == converter_problems(tmp_path / "whole") == []
        one, other = (AutoModelForCausalLM.from_pretrained(tmp_path / name).state_dict() for name in ("whole", "parts"))
        assert all(torch.equal(one[name], other[name]) for name in one)

    @pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
    def test_sixteen_bits_are_the_rounded_weights(self, export: Export, tmp_path: Path, dtype: str) -> None:
        from safetensors.torch import load_file

        assert export(DPO, tmp_path / "full")[0] == 0
        code, said = export(DPO, tmp_path / "half", "--dtype", dtype)
        assert code == 0
        full, half = (load_file(tmp_path / name / "model.safetensors") for name in ("full", "half"))
        assert all(torch.equal(full[name].to(getattr(torch, dtype)), half[name]) for name in full)
        assert 1e-4 < said["done"]["difference"] < 0.5
        config = json.loads((tmp_path / "half" / "config.json").read_text())
        assert config["dtype"] == config["torch_dtype"] == dtype
        assert "16 bits" in (tmp_path / "half" / "README.md").read_text()

    def test_old_names_of_the_rotary_base_are_written_and_change_nothing(self, shop: Shop, export: Export, tmp_path: Path) -> None:
        from transformers import AutoConfig

        assert export(DPO, tmp_path / "out")[0] == 0
        config = json.loads((tmp_path / "out" / "config.json").read_text())
        assert config["rope_theta"] == config["rope_parameters"]["rope_theta"]
        assert AutoConfig.from_pretrained(tmp_path / "out").rope_parameters == AutoConfig.from_pretrained(shop.model).rope_parameters


class TestRewardModels:
    def test_transformers_gives_the_scores_of_accord(self, shop: Shop, export: Export, tmp_path: Path) -> None:
        from transformers import AutoModelForSequenceClassification, AutoTokenizer

        code, said = export(RM, tmp_path / "out")
        assert code == 0
        model: Any = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out").eval()
        rows = [(IDS[:5], [*IDS[5:7], 2]), ([1, 70], [99, 98, 97, 96, 2]), ([1], [2])]
        adapted, facts = shop.adapted(RM), HeadFacts.from_facts(shop.store.manifest(RM).facts)
        batch = collate(rows, pad_id=0)
        with torch.no_grad():
            head = ScalarHead.load(shop.store.fetch(RM))
            raw = head.at_last_token(adapted.hidden(batch.input_ids, batch.attention_mask, adapter="it"), batch.attention_mask)
            padded = AutoTokenizer.from_pretrained(tmp_path / "out").pad({"input_ids": [[*a, *b] for a, b in rows]}, return_tensors="pt")
            logits = model(**padded).logits[:, 0]
        assert model.num_labels == 1
        assert model.config.score_offset == pytest.approx((0.6 - 0.25) / 2)
        assert torch.allclose(logits + model.config.score_offset, (raw - facts.mean) / facts.std, atol=1e-4)
        assert said["done"]["score_offset"] == pytest.approx(0.175)
        card = (tmp_path / "out" / "README.md").read_text()
        assert "accuracy on held-out preference pairs: 0.750 (95 % interval over prompts 0.301 to 0.954, 4 pairs)" in card
        assert "always taking the longer response: 0.250 (0.046 to 0.699), which it beats" in card
        assert "expected calibration error of sigmoid(raw score of one response - that of the other): 0." in card
        assert "| 0.95 to 1.00 | 0.95 | 1.00 | 1 |" in card
        assert f'eval_data_digest: "{"e" * 64}"' in card
        assert 'eval_data_uri: "held-out.jsonl"' in card
        assert "has no constant" in card

    def test_a_token_that_ends_turns_never_pads(self, shop: Shop, export: Export, tmp_path: Path) -> None:
        """As in SmolLM2, where padding and the end of a turn are one token: transformers would score one token too early."""
        other = tmp_path / "model"
        shutil.copytree(shop.model, other)
        settings = json.loads((other / "tokenizer_config.json").read_text())
        (other / "tokenizer_config.json").write_text(json.dumps({**settings, "pad_token": "<|im_end|>"}))
        assert export(RM, tmp_path / "out", base_model=str(other))[0] == 0
        assert json.loads((tmp_path / "out" / "tokenizer_config.json").read_text())["pad_token"] == "<|endoftext|>"
        assert json.loads((tmp_path / "out" / "config.json").read_text())["pad_token_id"] == 0


class TestCardAndAdapters:
    def test_the_card_tells_the_lineage(self, shop: Shop, export: Export, tmp_path: Path) -> None:
        import yaml

        assert export(DPO, tmp_path / "out")[0] == 0
        text = (tmp_path / "out" / "README.md").read_text()
        matter = yaml.safe_load(text.split("---\n")[1])
        assert matter == {"library_name": "transformers", "pipeline_tag": "text-generation", "tags": ["accord", "dpo"]}
        for each in shop.store.lineage(DPO):
            assert f"| {each.name} | {each.kind} |" in text
            assert each.digest[:12] in text
        assert "beta 0.1" in text
        evaluation = text.split("## How it was evaluated\n\n")[1].split("\n\n")[0]
        assert evaluation.splitlines() == [
            "- mean score of the rollouts of its last step, sampled by the policy before it: -0.125",
            "- their KL to the reference, nats a response: 1.250",
            "- eval_score: 0.5",
        ]
        assert shop.store.manifest(DPO).base_model_digest in text
        assert "not known here" in text
        facts = json.loads((tmp_path / "out" / "accord-export.json").read_text())
        assert [each["name"] for each in facts["lineage"]] == [DPO, "adapters/sft/versions/1"]

    def test_the_licence_of_a_base_with_a_card_is_passed_on(self, shop: Shop, export: Export, tmp_path: Path) -> None:
        other = tmp_path / "model"
        shutil.copytree(shop.model, other)
        (other / "README.md").write_text("---\nlicense: mit\n---\n# a model\n")
        assert export(DPO, tmp_path / "out", "--form", "adapter", base_model=str(other))[0] == 0
        assert 'license: "mit"' in (tmp_path / "out" / "README.md").read_text()

    def test_an_adapter_alone_is_what_peft_loads(self, shop: Shop, export: Export, tmp_path: Path) -> None:
        from peft import PeftModel
        from transformers import AutoModelForCausalLM

        assert export(DPO, tmp_path / "out", "--form", "adapter")[0] == 0
        assert {path.name for path in (tmp_path / "out").iterdir()} == {
            "adapter_config.json", "adapter_model.safetensors", "README.md", "accord-export.json",
        }  # fmt: skip
        model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(shop.model), tmp_path / "out")
        with torch.no_grad():
            assert torch.allclose(model(torch.tensor([IDS])).logits[0], logits_of(shop.adapted(DPO)), atol=1e-4)


class TestRefusals:
    def test_what_is_there_is_replaced_only_with_force_and_only_if_an_export_wrote_it(self, export: Export, tmp_path: Path) -> None:
        out, precious = tmp_path / "out", tmp_path / "precious"
        assert export("adapters/sft", out)[0] == 0
        before = (out / "model.safetensors").read_bytes()
        code, said = export(DPO, out)
        assert (code, said["error"]["code"]) == (1, "ALREADY_EXISTS")
        assert (out / "model.safetensors").read_bytes() == before
        assert export(DPO, out, "--force")[0] == 0
        assert (out / "model.safetensors").read_bytes() != before
        precious.mkdir()
        (precious / "thesis.txt").write_text("years")
        code, said = export(DPO, precious, "--force")
        assert (code, said["error"]["code"]) == (1, "ALREADY_EXISTS")
        assert (precious / "thesis.txt").read_text() == "years"

    def test_unknown_adapters_wrong_bases_and_missing_places(self, export: Export, tmp_path: Path) -> None:
        other = tiny_model_folder(tmp_path / "other", seed=9)
        cases = [
            (export("adapters/nobody", tmp_path / "a"), "NOT_FOUND", "adapters/nobody is not in the artefact store"),
            (export(DPO, tmp_path / "b", base_model=str(other)), "FAILED_PRECONDITION", "was trained on base model"),
            (export(DPO, tmp_path / "c", "--form", "adapter", base_model=str(other)), "FAILED_PRECONDITION", "was trained on base model"),
            (export(DPO, tmp_path / "no" / "d"), "NOT_FOUND", "there is no folder"),
        ]
        for (code, said), kind, words in cases:
            assert (code, said["error"]["code"]) == (1, kind)
            assert words in said["error"]["message"]
        assert sorted(path.name for path in tmp_path.iterdir()) == ["other"]

    def test_a_disk_that_is_too_small_is_found_before_writing(self, export: Export, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(folders.shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**9, 10**9, 1000))  # type: ignore[attr-defined]
        code, said = export(DPO, tmp_path / "out")
        assert (code, said["error"]["code"]) == (1, "FAILED_PRECONDITION")
        assert "the export needs 64 MiB, 0 MiB are free" in said["error"]["message"]
        assert list(tmp_path.iterdir()) == []

    def test_a_disk_that_fills_up_leaves_nothing(self, export: Export, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def full(*_: object, **__: object) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(process, "_merge", full)
        code, said = export(DPO, tmp_path / "out")
        assert code == 1
        assert "is full; nothing was left" in said["error"]["message"]
        assert list(tmp_path.iterdir()) == []

    def test_a_push_without_token_or_network_is_refused_before_anything_else(
        self, export: Export, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.delenv("HF_TOKEN", raising=False)
        code, said = export(DPO, tmp_path / "out", "--push", "org/name")
        assert (code, said["error"]["code"]) == (1, "FAILED_PRECONDITION")
        assert "HF_TOKEN" in said["error"]["message"]
        monkeypatch.setenv("HF_TOKEN", "hf_secret")
        assert export(DPO, tmp_path / "out", "--push", "nameless")[1]["error"]["code"] == "INVALID_ARGUMENT"
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
        for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"):
            monkeypatch.delenv(name, raising=False)
        code, said = export(DPO, tmp_path / "out", "--push", "org/name")
        assert (code, said["error"]["code"]) == (1, "UNAVAILABLE")
        assert "hf_secret" not in json.dumps(said)
        assert list(tmp_path.iterdir()) == []

    def test_a_push_hands_over_the_whole_folder_and_never_shows_the_token(
        self, export: Export, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from huggingface_hub.utils import filter_repo_objects

        calls: list[tuple[str, Any]] = []
        old = [
            "model.safetensors", "model-00001-of-00002.safetensors", "model.safetensors.index.json", "config.json", "generation_config.json",
            "head.safetensors", "adapter_config.json", "tokenizer.model", "chat_template.jinja",
        ]  # fmt: skip
        remote = [*old, ".gitattributes", "README.md", "LICENSE", "notes.safetensors", "onnx/config.json", "model-a/b-of-c.safetensors"]
        deleted: list[list[str]] = []

        class Api:
            endpoint = "https://hub.example"

            def __init__(self, token: str) -> None:
                calls.append(("token", token))

            def create_repo(self, name: str, *, private: bool, exist_ok: bool) -> None:
                calls.append(("create", (name, private, exist_ok)))

            def list_repo_files(self, repo_id: str) -> list[str]:
                return remote

            def upload_folder(self, *, repo_id: str, folder_path: Path, commit_message: str, delete_patterns: list[str]) -> None:
                deleted.append(list(filter_repo_objects(remote, allow_patterns=delete_patterns)))
                calls.append(("upload", (repo_id, sorted(path.name for path in folder_path.iterdir()))))
                if len(calls) > 3:
                    raise ConnectionError("broke with Bearer hf_secret")

        monkeypatch.setenv("HF_TOKEN", "hf_secret")
        monkeypatch.setattr(process, "check_push", lambda name: None)
        monkeypatch.setattr("huggingface_hub.HfApi", Api)
        code, said = export(DPO, tmp_path / "out", "--push", "org/name", "--form", "adapter")
        assert (code, said["done"]["pushed_to"]) == (0, "https://hub.example/org/name")
        assert calls[:2] == [("token", "hf_secret"), ("create", ("org/name", True, True))]
        assert calls[2] == ("upload", ("org/name", ["README.md", "accord-export.json", "adapter_config.json", "adapter_model.safetensors"]))
        assert deleted == [old], "what would be loaded in place of this one, which the library leaves where the upload writes it again"
        code, said = export(DPO, tmp_path / "out", "--push", "org/name", "--form", "adapter", "--force")
        assert (code, said["error"]["code"]) == (1, "UNAVAILABLE")
        assert "hf_secret" not in json.dumps(said)
        assert "is whole" in said["error"]["message"]
        assert hub.TOKEN_VARIABLE == "HF_TOKEN"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_killed_export_leaves_no_folder_and_the_next_one_cleans_up(shop: Shop, export: Export, tmp_path: Path, number: int) -> None:
    """Killed while it writes: nothing has the asked name; what SIGKILL leaves has a hidden one, and goes with the next export."""
    slow = "import accord.export.__main__ as p, time, sys\np._merge = lambda *a: (a[3] / 'config.json').write_text('{}') and time.sleep(60)\nsys.exit(p.main())"
    command = [sys.executable, "-c", slow, DPO, str(tmp_path / "out"), "--artefacts", shop.store.uri, "--base-model", str(shop.model)]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, env={**os.environ, "OMP_NUM_THREADS": "1"})
    give_up = time.monotonic() + 60
    while not list(tmp_path.glob(".out.partial-*/config.json")) and time.monotonic() < give_up:
        time.sleep(0.05)
    child.send_signal(number)
    child.communicate()
    assert not (tmp_path / "out").exists()
    assert len(list(tmp_path.iterdir())) == (0 if number == signal.SIGTERM else 1)
    assert export(DPO, tmp_path / "out", "--form", "adapter")[0] == 0
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_an_export_killed_while_it_replaced_another_has_the_other_put_back(export: Export, tmp_path: Path) -> None:
    """Between two renames nothing has the name; should the next export fail, the one before is there."""
    assert export(DPO, tmp_path / "out", "--form", "adapter")[0] == 0
    dead = subprocess.Popen(["true"])
    dead.wait()
    (tmp_path / "out").rename(tmp_path / f".out.replaced-{dead.pid}")
    code, said = export("adapters/none/versions/1", tmp_path / "out", "--form", "adapter", "--force")
    assert (code, said["error"]["code"]) == (1, "NOT_FOUND")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    code, said = export(DPO, tmp_path / "out", "--form", "adapter")
    assert (code, said["error"]["code"]) == (1, "ALREADY_EXISTS")
