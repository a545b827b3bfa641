"""An exported model in the tools that it is exported for: a real vLLM, and llama.cpp after its own converter. `make test-exports` installs both.

What each of them generates is held to base plus adapter, run by transformers and PEFT from the files that were published. Skipped where they are not installed.
"""

from __future__ import annotations

import json
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from tools import llamacpp_peer, vllm_peer

from accord.artefacts.store import ArtefactStore
from accord.export.__main__ import main
from accord.models.encoding import PromptEncoder
from accord.runspec_parts import LoraSpec
from accord.text.chat import Message

pytestmark = [pytest.mark.slow, pytest.mark.model, pytest.mark.timeout(900)]
TOKENS = 32


@dataclass(frozen=True)
class Exported:
    """A merged model's folder, a prompt, and the model that was merged as transformers and PEFT have it."""

    folder: Path
    prompt: list[int]
    original: Any

    def check(self, token_ids: Sequence[int], logprobs: Sequence[float], within: float) -> None:
        """Each token is the likeliest of base plus adapter, with its logprob; and the adapter makes a difference of more than that."""
        import torch

        assert len(token_ids) == len(logprobs) > 8
        with torch.no_grad():
            logits = self.original(torch.tensor([[*self.prompt, *token_ids]])).logits[0, len(self.prompt) - 1 : -1].double()
            with self.original.disable_adapter():
                bare = self.original(torch.tensor([[*self.prompt, *token_ids]])).logits[0, len(self.prompt) - 1 : -1].double()
        computed = logits.log_softmax(-1)
        assert float((computed - bare.log_softmax(-1)).abs().mean()) > 20 * within
        wanted = [float(computed[place, token]) for place, token in enumerate(token_ids)]
        assert list(logprobs) == pytest.approx(wanted, abs=within)
        assert wanted == pytest.approx(computed.max(-1).values.tolist(), abs=within)


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    from accord.models.base import load_base_model
    from accord.models.lora import AdaptedModel

    root = tmp_path_factory.mktemp("exported")
    base = load_base_model("embedded", threads=1)
    adapted = AdaptedModel(base)
    adapted.add("it", LoraSpec(rank=8), seed=1, trainable=False)
    generator = torch.Generator().manual_seed(1)
    adapted.load_state("it", {name: 0.03 * torch.randn(tensor.shape, generator=generator) for name, tensor in adapted.state("it").items()})
    adapted.save("it", root / "adapter")
    store = ArtefactStore(str(root / "store"))
    digests = {"base_model_digest": base.digests.base_model, "tokenizer_digest": base.digests.tokenizer}
    version = store.publish("it", root / "adapter", kind="policy", **digests)
    assert main([version, str(root / "out"), "--artefacts", store.uri, "--base-model", "embedded"]) == 0
    prompt = PromptEncoder(base.tokenizer).encode_prompt((Message("user", "Name three rivers of Europe."),))
    plain = AutoModelForCausalLM.from_pretrained(base.folder, dtype=torch.float32)
    return Exported(root / "out", list(prompt), PeftModel.from_pretrained(plain, str(root / "adapter")).eval())


def post(url: str, body: dict[str, Any]) -> Any:
    request = urllib.request.Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=120) as reply:
        return json.load(reply)


@pytest.mark.skipif(not vllm_peer.installed(), reason="no vLLM in build/vllm-peer: make test-exports")
def test_vllm_serves_it(exported: Exported, tmp_path: Path) -> None:
    with vllm_peer.running(model=exported.folder, bare=True, log=tmp_path / "server.log") as url:
        asked = {"model": vllm_peer.MODEL_NAME, "prompt": exported.prompt, "max_tokens": TOKENS, "temperature": 0, "logprobs": 1}
        (choice,) = post(f"{url}/v1/completions", {**asked, "return_token_ids": True})["choices"]
        (said,) = post(f"{url}/v1/chat/completions", {**_chat(), "model": vllm_peer.MODEL_NAME})["choices"]
    exported.check(choice["token_ids"], choice["logprobs"]["token_logprobs"], within=2e-3)
    assert said["message"]["content"] == choice["text"], "the template that was exported does not make the prompt that training made"


@pytest.mark.skipif(not llamacpp_peer.installed(), reason="no llama.cpp in build/llamacpp-peer: make test-exports")
def test_llama_cpp_converts_and_serves_it(exported: Exported, tmp_path: Path) -> None:
    llamacpp_peer.convert(exported.folder, tmp_path / "it.gguf")
    with llamacpp_peer.serving(tmp_path / "it.gguf", llamacpp_peer.Serving(rows=1, threads=2)) as url:
        asked = {"prompt": exported.prompt, "n_predict": TOKENS, "temperature": 0, "n_probs": 1, "return_tokens": True}
        found = post(f"{url}/completion", asked)
        (said,) = post(f"{url}/v1/chat/completions", _chat())["choices"]
    # llama.cpp keeps keys and values in 16 bits
    exported.check(found["tokens"], [place["logprob"] for place in found["completion_probabilities"]][: len(found["tokens"])], within=2e-2)
    assert said["message"]["content"] == found["content"], "the template that was exported does not make the prompt that training made"


def _chat() -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": "Name three rivers of Europe."}], "max_tokens": TOKENS, "temperature": 0}
