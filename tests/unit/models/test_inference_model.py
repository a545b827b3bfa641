"""The model as it serves: packed layers, pieces of many sequences in one pass, adapters side by side; all against transformers and PEFT."""

from __future__ import annotations

import random
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from accord.errors import DataLossError, FailedPreconditionError
from accord.models import inference
from accord.models.adapter_files import read_weights
from accord.models.base import BaseModel, load_base_model
from accord.models.fused import FusedPlan, fused_gate, fused_norm, fused_supported
from accord.models.inference import InferenceModel
from accord.models.kernels import Linears, Routing, packing_supported
from accord.models.kvpool import KvPool, KvShape
from accord.models.lora import AdaptedModel
from accord.models.ragged import Piece
from accord.models.testing import tiny_model_folder
from accord.runspec_parts import LoraSpec

SEQUENCES = ([5, 9, 200, 31, 77], [8], list(range(20, 60)), [100, 3, 3, 100, 7, 7, 250, 9, 12])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model_folder(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def adapters(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Two adapters with different targets, on disk."""
    adapted = AdaptedModel(load_base_model(str(folder), threads=1))
    found = {}
    for seed, (name, targets) in enumerate(
        {"attention": ("q_proj", "v_proj"), "everything": ("q_proj", "k_proj", "o_proj", "up_proj", "down_proj")}.items()
    ):
        adapted.add(name, LoraSpec(rank=3, target_modules=targets), seed=seed)
        with torch.no_grad():
            for parameter in adapted.parameters(name):
                parameter.copy_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(seed)) * 0.3)
        found[name] = tmp_path_factory.mktemp(name)
        adapted.save(name, found[name])
    return found


def expected(base: BaseModel, tokens: list[int], adapter: Path | None = None) -> Tensor:
    """Logits of transformers, and PEFT where there is an adapter: (tokens, vocabulary)."""
    model = base.model
    if adapter is not None:
        from peft import PeftModel

        model = PeftModel.from_pretrained(model, str(adapter))
    with torch.inference_mode():
        logits: Tensor = model(input_ids=torch.tensor([tokens])).logits[0]
    return logits


def close(found: Tensor, wanted: Tensor) -> bool:
    return found.shape == wanted.shape and float((found - wanted).abs().max()) < 2e-4


def loaded(model: InferenceModel) -> set[str]:
    return {name for linears in model._linears.values() for name in linears._adapters}


# Linear layers


@pytest.mark.parametrize("pack", [True, False])
@pytest.mark.parametrize("bias", [True, False])
def test_layers_side_by_side_are_the_layers_one_by_one(pack: bool, bias: bool) -> None:
    assert packing_supported(), "this PyTorch has the packed kernel; without it the test would compare a thing with itself"
    layers = {name: nn.Linear(24, width, bias=bias) for name, width in (("q", 16), ("k", 8), ("v", 8))}
    rows, residual = torch.randn(7, 24), torch.randn(7, 32)
    joined = Linears(layers, Routing(), pack=pack)
    assert joined.packed is pack
    with torch.inference_mode():
        wanted = torch.cat([layer(rows) for layer in layers.values()], dim=1)
        assert close(joined(rows), wanted)
        assert close(joined.plus(rows, residual), wanted + residual)


def test_each_run_of_rows_gets_its_adapter_alone() -> None:
    layer, routing = nn.Linear(12, 6, bias=False), Routing()
    linears = Linears({"x": layer}, routing)
    factors = {name: (torch.randn(2, 12), torch.randn(6, 2)) for name in ("a", "b")}
    for name, pair in factors.items():
        linears.set_adapter(name, {"x": pair}, scale=0.5)
    rows = torch.randn(9, 12)
    routing.groups = ((0, 3, "a"), (5, 9, "b"))
    with torch.inference_mode():
        plain = layer(rows)
        wanted = plain.clone()
        for start, end, name in routing.groups:
            a, b = factors[name]
            wanted[start:end] += 0.5 * rows[start:end] @ a.T @ b.T
        assert close(linears(rows), wanted)
        assert float((wanted[3:5] - plain[3:5]).abs().max()) == 0
        linears.remove_adapter("a")
        assert close(linears(rows)[:3], plain[:3])


# Compiled kernels


@pytest.mark.parametrize(("heads", "kv_heads", "size"), [(9, 3, 64), (4, 4, 16), (8, 2, 128)])
def test_a_decoding_token_attends_as_pytorch_says(heads: int, kv_heads: int, size: int) -> None:
    """Rows of several banks at unlike places, some above a block of keys; layer 1 of 2; what is not theirs stays as it was."""
    shape = KvShape(layers=2, kv_heads=kv_heads, head_size=size, dtype=torch.float32, device="cpu")
    pool = KvPool(shape, max_tokens=4096)
    places = (0, 1, 31, 32, 33, 150, 299)
    slots = [pool.take(place + 1) for place in places]
    with torch.inference_mode():
        for slot in slots:
            slot.kv.copy_(torch.randn(slot.kv.shape) * 3)
        qkv = torch.randn(len(places), heads + 2 * kv_heads, size) * 3
        angles = torch.randn(len(places), size // 2)
        pieces = [Piece(slot, [7], place, place) for slot, place in zip(slots, places, strict=True)]
        plan = FusedPlan(pieces, torch.cat((angles.cos(), angles.sin()), dim=1), heads=heads, kv_heads=kv_heads, size=size)
        turned = (
            torch.view_as_complex(torch.stack(qkv[:, : heads + kv_heads].chunk(2, dim=-1), dim=-1)) * torch.polar(torch.ones(()), angles)[:, None]
        )
        turned = torch.cat((turned.real, turned.imag), dim=-1)
        before = [slot.kv.clone() for slot in slots]
        wanted = []
        for row, (kv, place) in enumerate(zip(before, places, strict=True)):
            kv[1, 0, :, place], kv[1, 1, :, place] = turned[row, heads:], qkv[row, heads + kv_heads :]
            keys, values = (part[:, : place + 1].repeat_interleave(heads // kv_heads, dim=0) for part in kv[1])
            wanted.append(nn.functional.scaled_dot_product_attention(turned[row, :heads, None], keys, values, scale=0.2)[:, 0])
        found = plan.attend(1, qkv, 0.2)
        assert close(found, torch.stack(wanted))
        for slot, kv in zip(slots, before, strict=True):
            assert close(slot.kv, kv)


def test_norm_and_gate_at_the_ends_of_float32() -> None:
    rows = torch.tensor([[0.0, -0.0, 1e-20, -1e-20, 80.0, -80.0, 200.0, -200.0, 3e4, -3e4, 1.0, -1.0]])
    with torch.inference_mode():
        assert close(fused_gate(torch.cat((rows, torch.ones_like(rows)), dim=1)), nn.functional.silu(rows))
        assert close(fused_norm(rows, torch.ones(12), 1e-5), torch.rms_norm(rows, (12,), None, 1e-5))
        assert bool(fused_norm(torch.full((1, 4), torch.nan), torch.ones(4), 1e-5).isnan().all())


def test_without_the_compiler_the_plain_path_serves(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "accord.models.fused_kernels", None)  # importing it fails
    fused_supported.cache_clear()
    try:
        model = InferenceModel(load_base_model(str(folder), threads=1))
        assert not model.fused
    finally:
        fused_supported.cache_clear()


# Passes


@pytest.mark.parametrize("kernels", [True, False])
def test_pieces_of_many_sequences_in_one_pass_give_each_sequences_own_logits(folder: Path, kernels: bool) -> None:
    """Random splits into chunks and single tokens, slots of several banks, rows that come and go."""
    assert fused_supported(), "numba is installed and finds PyTorch's OpenMP; without it the test would compare a thing with itself"
    wanted = [expected(load_base_model(str(folder), threads=1), tokens) for tokens in SEQUENCES]
    model = InferenceModel(load_base_model(str(folder), threads=1), kernels=kernels)
    assert model.fused is kernels
    draw = random.Random(3)
    for _ in range(6):
        pool = KvPool(model.shape, max_tokens=8192)
        slots = [pool.take(draw.choice([64, 65, 200])) for _ in SEQUENCES]
        read, found = [0] * len(SEQUENCES), [[] for _ in SEQUENCES]
        while any(done < len(tokens) for done, tokens in zip(read, SEQUENCES, strict=True)):
            pieces, owners = [], []
            for index in draw.sample(range(len(SEQUENCES)), len(SEQUENCES)):
                left = len(SEQUENCES[index]) - read[index]
                if left and draw.random() < 0.8:
                    count = min(left, draw.choice([1, 1, 2, 7]))
                    pieces.append(Piece(slots[index], SEQUENCES[index][read[index] : read[index] + count], read[index], read[index]))
                    owners.append(index)
                    read[index] += count
            if not pieces:
                continue
            with torch.inference_mode():
                logits = model.logits(model.forward(pieces))
            for index, part in zip(owners, logits.split([len(piece.tokens) for piece in pieces]), strict=True):
                found[index].append(part)
        for parts, logits in zip(found, wanted, strict=True):
            assert close(torch.cat(parts), logits)


@pytest.mark.parametrize("kernels", [True, False])
def test_responses_behind_one_prompt_do_not_see_each_other(folder: Path, kernels: bool) -> None:
    base = load_base_model(str(folder), threads=1)
    prompt, responses = SEQUENCES[2], ([7, 8, 9], [200], [31, 32, 33, 34])
    wanted = [expected(base, prompt + response)[len(prompt) :] for response in responses]
    model = InferenceModel(base, kernels=kernels)
    slot = KvPool(model.shape, max_tokens=256).take(64)
    place, pieces = len(prompt), []
    for response in responses:
        own = place if place > len(prompt) else 0
        pieces.append(Piece(slot, response, len(prompt), place, len(prompt) if own else 0, own))
        place += len(response)
    with torch.inference_mode():
        model.forward([Piece(slot, prompt, 0, 0)])
        found = model.logits(model.forward(pieces)).split([len(response) for response in responses])
    for part, logits in zip(found, wanted, strict=True):
        assert close(part, logits)


def test_adapters_and_the_bare_base_share_a_pass(folder: Path, adapters: dict[str, Path]) -> None:
    names = ["", "attention", "everything", "attention"]
    wanted = [expected(load_base_model(str(folder), threads=1), tokens, adapters.get(name)) for name, tokens in zip(names, SEQUENCES, strict=True)]
    assert not close(wanted[3], expected(load_base_model(str(folder), threads=1), SEQUENCES[3])), "an adapter that changes nothing proves nothing"
    model = InferenceModel(load_base_model(str(folder), threads=1))
    for name, path in adapters.items():
        model.load_adapter(name, path)
        assert model.adapter_bytes(path) == sum(factor.nbytes for each in model._linears.values() for factor in each._adapters.get(name, ())) > 0
    pool = KvPool(model.shape, max_tokens=4096)
    order = sorted(range(4), key=lambda index: names[index])
    pieces = [Piece(pool.take(64), SEQUENCES[index], 0, 0, adapter=names[index]) for index in order]
    with torch.inference_mode():
        found = model.logits(model.forward(pieces)).split([len(piece.tokens) for piece in pieces])
    for index, part in zip(order, found, strict=True):
        assert close(part, wanted[index])
    model.remove_adapter("attention")
    assert loaded(model) == {"everything"}


def test_a_decoder_of_another_shape_keeps_transformers_code(tmp_path: Path, folder: Path) -> None:
    from transformers import Qwen3Config, Qwen3ForCausalLM

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        other = Qwen3ForCausalLM(
            Qwen3Config(
                vocab_size=259, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, head_dim=8,
                max_position_embeddings=128, bos_token_id=1, eos_token_id=2, pad_token_id=0,
            )
        )  # fmt: skip
    path = tmp_path / "qwen3"
    other.save_pretrained(path)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (path / name).write_bytes((folder / name).read_bytes())
    wanted = expected(load_base_model(str(path), threads=1), SEQUENCES[2])
    model = InferenceModel(load_base_model(str(path), threads=1))
    pool = KvPool(model.shape, max_tokens=256)
    slot = pool.take(64)
    with torch.inference_mode():
        parts = [model.forward([Piece(slot, SEQUENCES[2][:30], 0, 0)])]
        parts += [model.forward([Piece(slot, [token], place, place)]) for place, token in enumerate(SEQUENCES[2][30:], start=30)]
        assert close(model.logits(torch.cat(parts)), wanted)


def test_a_model_that_the_engine_computes_otherwise_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = load_base_model(str(folder), threads=1)
    right = inference._reference_logits(base)
    monkeypatch.setattr(inference, "_reference_logits", lambda _: right + 0.01)
    with pytest.raises(FailedPreconditionError, match="computes other logits than transformers") as caught:
        InferenceModel(base)
    assert caught.value.field == "base_model"


# Adapters that do not fit


def test_targets_that_cannot_be_served_are_named(folder: Path, adapters: dict[str, Path], tmp_path: Path) -> None:
    from safetensors.torch import save_file

    model = InferenceModel(load_base_model(str(folder), threads=1))
    text = (adapters["attention"] / "adapter_config.json").read_text()
    (tmp_path / "adapter_config.json").write_text(text.replace('"q_proj"', '"embed_tokens"'))
    embedding = {f"base_model.model.model.embed_tokens.lora_embedding_{half}": torch.zeros(3, 3) for half in "AB"}  # as PEFT names them
    save_file(embedding, tmp_path / "adapter_model.safetensors")
    with pytest.raises(FailedPreconditionError, match=r"targets embed_tokens, which this engine cannot serve.*; it serves .*down_proj") as caught:
        model.load_adapter("bad", tmp_path)
    assert caught.value.field == "adapter"


@pytest.mark.parametrize(
    ("change", "message"), [("drop", "no tensors for"), ("rename", "is no tensor of a plain LoRA"), ("shape", "has factors of shape")]
)
def test_tensors_that_do_not_fit_are_data_loss(folder: Path, adapters: dict[str, Path], tmp_path: Path, change: str, message: str) -> None:
    from safetensors.torch import save_file

    state = read_weights(adapters["attention"])
    key = "base_model.model.model.layers.1.self_attn.q_proj.lora_A.weight"
    other = key.replace("lora_A", "lora_B")
    if change == "drop":
        del state[key], state[other]
    elif change == "rename":
        state["something.else"] = state.pop(key)
    else:
        state[key] = state[key][:2].contiguous()
    save_file(state, tmp_path / "adapter_model.safetensors")
    (tmp_path / "adapter_config.json").write_bytes((adapters["attention"] / "adapter_config.json").read_bytes())
    model = InferenceModel(load_base_model(str(folder), threads=1))
    with pytest.raises(DataLossError, match=message):
        model.load_adapter("bad", tmp_path)
    assert loaded(model) == set()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers_are_refused(folder: Path, adapters: dict[str, Path], tmp_path: Path, value: float) -> None:
    from safetensors.torch import save_file

    state = read_weights(adapters["attention"])
    state["base_model.model.model.layers.1.self_attn.v_proj.lora_B.weight"][0, 0] = value
    save_file(state, tmp_path / "adapter_model.safetensors")
    (tmp_path / "adapter_config.json").write_bytes((adapters["attention"] / "adapter_config.json").read_bytes())
    model = InferenceModel(load_base_model(str(folder), threads=1))
    with pytest.raises(FailedPreconditionError, match=r"layers\.1\.self_attn\.v_proj has weights that are no finite numbers"):
        model.load_adapter("bad", tmp_path)
    assert loaded(model) == set()


# Memory


def make_pool(max_tokens: int) -> KvPool:
    return KvPool(KvShape(layers=1, kv_heads=1, head_size=2, dtype=torch.float32, device="cpu"), max_tokens=max_tokens)


def test_slots_are_as_long_as_asked_and_the_budget_holds() -> None:
    pool = make_pool(1024)
    slots = [pool.take(200) for _ in range(4)]
    assert [slot.kv.shape[3] for slot in slots if slot] == [256] * 4
    assert pool.take(10) is None
    assert pool.held_tokens == 1024
    assert pool.held_bytes == 1024 * pool.shape.bytes_per_token == 1024 * 16
    pool.give_back(slots[2])
    assert pool.take(256).index == slots[2].index


def test_banks_without_rows_make_room_for_other_lengths() -> None:
    pool = make_pool(4096)
    short = [pool.take(64) for _ in range(64)]
    assert pool.take(512) is None
    for slot in short:
        pool.give_back(slot)
    long = [pool.take(512) for _ in range(8)]
    assert None not in long
    assert pool.held_tokens == 4096
    assert pool.take(64) is None


def test_a_longer_slot_serves_where_only_such_are_left() -> None:
    pool = make_pool(2048)
    first, second = pool.take(1024), pool.take(1024)
    assert pool.take(64) is None
    pool.give_back(second)
    short = pool.take(64)
    assert (short.bank, short.index) == (first.bank, second.index)
    assert pool.take(64) is None


def test_a_request_longer_than_all_memory_gets_no_slot() -> None:
    assert make_pool(128).take(129) is None
