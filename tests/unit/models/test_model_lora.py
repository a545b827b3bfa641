"""Many adapters over one base: what each does, what it leaves alone, and PEFT's format on disk."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

from accord.errors import AlreadyExistsError, DataLossError, FailedPreconditionError, InvalidArgumentError, NotFoundError
from accord.models.adapter_files import read_lora_config
from accord.models.base import BaseModel, load_base_model
from accord.models.batching import collate
from accord.models.lora import AdaptedModel
from accord.runspec_parts import LoraSpec
from accord.training.recomputation import recompute_activations

LORA = LoraSpec(rank=4)
BATCH = collate([([1, 70, 80, 90], [100, 110, 2]), ([1, 75], [85, 2])], pad_id=0)


@pytest.fixture
def adapted(tiny: BaseModel) -> AdaptedModel:
    return AdaptedModel(tiny)


def hidden(adapted: AdaptedModel, adapter: str | None) -> Tensor:
    return adapted.hidden(BATCH.input_ids, BATCH.attention_mask, adapter=adapter, position_ids=BATCH.position_ids)[BATCH.attention_mask]


def scramble(adapted: AdaptedModel, name: str, seed: int = 0) -> None:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in adapted.parameters(name):
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.2)


def plain_hidden(base: BaseModel) -> Tensor:
    with torch.no_grad():
        output = base.model.model(input_ids=BATCH.input_ids, attention_mask=BATCH.attention_mask.long(), position_ids=BATCH.position_ids)
    return output.last_hidden_state[BATCH.attention_mask]


class TestWhichAdapterCounts:
    def test_the_bare_base_is_bit_identical_with_adapters_loaded(self, tiny: BaseModel) -> None:
        before = plain_hidden(tiny)
        adapted = AdaptedModel(tiny)
        assert torch.equal(hidden(adapted, None), before)
        for name in ("a", "b"):
            adapted.add(name, LORA, seed=1)
            scramble(adapted, name)
            assert torch.equal(plain_hidden(tiny), before)  # adding turns nothing on
        assert torch.equal(hidden(adapted, None), before)
        assert not torch.allclose(hidden(adapted, "a"), before, atol=1e-2)
        assert torch.equal(hidden(adapted, None), before)
        assert torch.equal(plain_hidden(tiny), before)

    def test_a_new_adapter_changes_nothing(self, adapted: AdaptedModel) -> None:
        before = hidden(adapted, None)
        adapted.add("a", LORA, seed=1)
        assert torch.equal(hidden(adapted, "a"), before)

    def test_each_adapter_is_itself(self, adapted: AdaptedModel) -> None:
        adapted.add("a", LORA, seed=1)
        scramble(adapted, "a", 1)
        alone = hidden(adapted, "a")
        adapted.add("b", LoraSpec(rank=2, alpha=1.0, target_modules=("q_proj", "down_proj")), seed=2)
        scramble(adapted, "b", 2)
        assert torch.equal(hidden(adapted, "a"), alone)
        assert not torch.allclose(hidden(adapted, "b"), alone, atol=1e-2)
        adapted.remove("b")
        assert torch.equal(hidden(adapted, "a"), alone)

    def test_another_can_be_added_when_the_first_is_gone(self, adapted: AdaptedModel) -> None:
        """An LRU of adapters evicts the first one that came; PEFT remembers it as the active one."""
        adapted.add("a", LORA, seed=1)
        adapted.remove("a")
        adapted.add("b", LORA, seed=2)
        scramble(adapted, "b")
        assert adapted.names == ("b",)
        assert not torch.allclose(hidden(adapted, "b"), hidden(adapted, None), atol=1e-2)

    def test_the_update_is_alpha_over_rank_times_b_a(self, adapted: AdaptedModel) -> None:
        adapted.add("a", LoraSpec(rank=2, alpha=6.0, target_modules=("q_proj",)), seed=1)
        scramble(adapted, "a")
        layer = adapted.module.model.layers[0].self_attn.q_proj
        state = adapted.state("a")
        prefix = "base_model.model.model.layers.0.self_attn.q_proj"
        x = torch.randn(3, 32, generator=torch.Generator().manual_seed(5))
        with adapted.use("a"), torch.no_grad():
            update = layer(x) - layer.base_layer(x)
        expected = 3.0 * x @ state[f"{prefix}.lora_A.weight"].T @ state[f"{prefix}.lora_B.weight"].T
        torch.testing.assert_close(update, expected, atol=1e-5, rtol=1e-5)

    def test_use_nests_and_comes_back_after_an_error(self, adapted: AdaptedModel) -> None:
        adapted.add("a", LORA, seed=1)
        adapted.add("b", LORA, seed=2)
        assert adapted.active is None
        with adapted.use("a"):
            with adapted.use(None):
                assert adapted.active is None
            with pytest.raises(RuntimeError), adapted.use("b"):
                raise RuntimeError
            assert adapted.active == "a"
            with pytest.raises(NotFoundError, match="loaded: a, b"), adapted.use("c"):
                pass
            assert adapted.active == "a"
            adapted.remove("a")
            assert adapted.active is None
        assert adapted.active is None

    def test_removing_the_adapter_outside_the_block_leaves_the_base(self, adapted: AdaptedModel) -> None:
        adapted.add("a", LORA, seed=1)
        with adapted.use("a"):
            with adapted.use(None):
                adapted.remove("a")
            assert adapted.active is None

    def test_adding_does_not_switch(self, adapted: AdaptedModel) -> None:
        adapted.add("a", LORA, seed=1)
        with adapted.use("a"):
            adapted.add("b", LORA, seed=2)
            assert adapted.active == "a"
            scramble(adapted, "b")
            assert torch.equal(hidden(adapted, "a"), hidden(adapted, None))


class TestGradients:
    def test_requires_grad_is_what_was_asked_and_nothing_else_changes_it(self, adapted: AdaptedModel) -> None:
        adapted.add("learns", LORA, seed=1)
        adapted.add("frozen", LORA, seed=2, trainable=False)

        def state() -> tuple[set[bool], set[bool], bool]:
            own = {id(parameter) for name in adapted.names for parameter in adapted.parameters(name)}
            rest = any(parameter.requires_grad for parameter in adapted.module.parameters() if id(parameter) not in own)
            learns, frozen = ({parameter.requires_grad for parameter in adapted.parameters(name)} for name in ("learns", "frozen"))
            return learns, frozen, rest

        expected = ({True}, {False}, False)
        assert state() == expected
        for name in ("frozen", None, "learns"):
            with adapted.use(name):
                assert state() == expected
        adapted.copy("frozen", "third", trainable=False)
        adapted.remove("third")
        assert state() == expected
        adapted.set_trainable("frozen")
        assert state() == ({False}, {True}, False)
        adapted.set_trainable()
        assert state() == ({False}, {False}, False)

    def test_only_the_adapter_in_use_gets_gradients(self, adapted: AdaptedModel) -> None:
        for seed, name in enumerate(("policy", "value")):
            adapted.add(name, LORA, seed=seed)
            scramble(adapted, name, seed)
        hidden(adapted, "policy")[:, :8].sum().backward()  # the sum of all squares is fixed by the final norm
        assert all(parameter.grad is not None and bool(parameter.grad.abs().sum() > 0) for parameter in adapted.parameters("policy"))
        others = [parameter for parameter in adapted.module.parameters() if id(parameter) not in set(map(id, adapted.parameters("policy")))]
        assert all(parameter.grad is None for parameter in others)

    def test_adapters_are_float32_over_a_bfloat16_base(self, tiny_folder: Path) -> None:
        adapted = AdaptedModel(load_base_model(str(tiny_folder), dtype=torch.bfloat16))
        adapted.add("a", LORA, seed=1)
        assert {parameter.dtype for parameter in adapted.parameters("a")} == {torch.float32}
        output = hidden(adapted, "a")
        assert output.dtype == torch.bfloat16
        output[:, 0].sum().backward()
        assert all(parameter.grad is not None and parameter.grad.dtype == torch.float32 for parameter in adapted.parameters("a"))

    def test_the_gradient_is_the_finite_difference(self, adapted: AdaptedModel) -> None:
        adapted.module.double()
        adapted.add("a", LoraSpec(rank=1, target_modules=("v_proj",)), seed=1)
        for parameter in adapted.parameters("a"):
            parameter.data = parameter.data.double()
        scramble(adapted, "a")
        parameter = adapted.parameters("a")[0]
        hidden(adapted, "a").sum().backward()
        assert parameter.grad is not None
        analytic = float(parameter.grad[0, 3])
        step, values = 2e-3, []  # the norms compute in float32, so that smaller steps drown
        for sign in (1, -1):
            with torch.no_grad():
                parameter[0, 3] += sign * step
                values.append(float(hidden(adapted, "a").sum()))
                parameter[0, 3] -= sign * step
        assert analytic == pytest.approx((values[0] - values[1]) / (2 * step), rel=1e-3)


class TestInitialisation:
    def test_it_depends_on_the_seed_alone(self, tiny_folder: Path) -> None:
        states = []
        for noise, seed in ((1, 7), (2, 7), (3, 8)):
            torch.manual_seed(noise)
            adapted = AdaptedModel(load_base_model(str(tiny_folder)))
            if noise == 2:
                adapted.add("other", LORA, seed=99)
            adapted.add("a", LORA, seed=seed)
            states.append(adapted.state("a"))
        assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])
        assert not any(torch.equal(states[0][key], states[2][key]) for key in states[0] if "lora_A" in key)

    def test_it_leaves_the_global_random_state_alone(self, adapted: AdaptedModel) -> None:
        before = torch.random.get_rng_state()
        adapted.add("a", LORA, seed=1)
        adapted.copy("a", "b")
        assert torch.equal(torch.random.get_rng_state(), before)

    def test_a_is_uniform_within_its_bound_and_b_is_zero(self, adapted: AdaptedModel) -> None:
        adapted.add("a", LoraSpec(rank=16), seed=3)
        for key, tensor in adapted.state("a").items():
            if "lora_B" in key:
                assert tensor.abs().max() == 0
                continue
            bound = tensor.shape[1] ** -0.5
            assert 0.9 * bound < float(tensor.abs().max()) <= bound
            assert abs(float(tensor.mean())) < 0.2 * bound


class TestCopy:
    def test_a_copy_starts_equal_and_goes_its_own_way(self, adapted: AdaptedModel) -> None:
        adapted.add("sft", LoraSpec(rank=3, alpha=5.0), seed=1, trainable=False)
        scramble(adapted, "sft")
        adapted.copy("sft", "policy")
        before = hidden(adapted, "sft")
        assert torch.equal(hidden(adapted, "policy"), before)
        optimizer = torch.optim.SGD(adapted.parameters("policy"), lr=0.1)
        hidden(adapted, "policy")[:, :8].sum().backward()  # the sum of all squares is fixed by the final norm
        optimizer.step()
        assert torch.equal(hidden(adapted, "sft"), before)
        assert not torch.allclose(hidden(adapted, "policy"), before, atol=1e-3)

    def test_names_are_taken_once(self, adapted: AdaptedModel) -> None:
        adapted.add("a", LORA, seed=1)
        adapted.add("b", LORA, seed=1)
        with pytest.raises(AlreadyExistsError):
            adapted.add("a", LORA, seed=2)
        with pytest.raises(AlreadyExistsError):
            adapted.copy("a", "b")
        with pytest.raises(NotFoundError):
            adapted.copy("c", "d")
        assert adapted.names == ("a", "b")
        adapted.remove("a")
        adapted.add("a", LoraSpec(rank=2), seed=2)
        assert adapted.parameters("a")[0].shape[0] == 2

    @pytest.mark.parametrize("name", ["", "a.b", "../x", "a b", "/a"])
    def test_names_are_checked(self, adapted: AdaptedModel, name: str) -> None:
        with pytest.raises(InvalidArgumentError):
            adapted.add(name, LORA, seed=1)

    def test_an_adapter_may_be_called_as_a_module_is(self, adapted: AdaptedModel) -> None:
        adapted.add("q_proj", LORA, seed=1)
        adapted.add("adapters/x/versions/3", LORA, seed=1)
        assert adapted.names == ("q_proj", "adapters/x/versions/3")

    def test_one_base_takes_one_adapted_model(self, adapted: AdaptedModel) -> None:
        adapted.add("a", LORA, seed=1)
        with pytest.raises(FailedPreconditionError):
            AdaptedModel(adapted.base)

    def test_unknown_target_modules_are_named(self, adapted: AdaptedModel) -> None:
        with pytest.raises(InvalidArgumentError, match=r"c_attn.*q_proj") as caught:
            adapted.add("a", LoraSpec(target_modules=("q_proj", "c_attn")), seed=1)
        assert caught.value.field == "lora.target_modules"
        assert adapted.names == ()
        with pytest.raises(InvalidArgumentError):
            adapted.add("a", LoraSpec(target_modules=("lm_head",)), seed=1)


class TestOnDisk:
    @pytest.fixture
    def saved(self, adapted: AdaptedModel, tmp_path: Path) -> Path:
        adapted.add("adapters/x/versions/1", LoraSpec(rank=3, alpha=7.5), seed=1)
        scramble(adapted, "adapters/x/versions/1")
        adapted.save("adapters/x/versions/1", tmp_path / "saved")
        return tmp_path / "saved"

    def test_it_comes_back_bit_for_bit_and_frozen(self, adapted: AdaptedModel, saved: Path) -> None:
        adapted.load("again", saved)
        assert torch.equal(hidden(adapted, "again"), hidden(adapted, "adapters/x/versions/1"))
        assert not any(parameter.requires_grad for parameter in adapted.parameters("again"))
        adapted.load("learns", saved, trainable=True)
        assert all(parameter.requires_grad for parameter in adapted.parameters("learns"))

    def test_plain_peft_reads_it(self, adapted: AdaptedModel, saved: Path, tiny_folder: Path) -> None:
        from peft import PeftModel
        from transformers import AutoModelForCausalLM

        model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny_folder), saved)
        inputs = {"input_ids": BATCH.input_ids, "attention_mask": BATCH.attention_mask.long(), "position_ids": BATCH.position_ids}
        with torch.no_grad():
            output = model.base_model.model.model(**inputs).last_hidden_state[BATCH.attention_mask]
        torch.testing.assert_close(output, hidden(adapted, "adapters/x/versions/1"), atol=1e-6, rtol=1e-5)

    def test_it_reads_what_plain_peft_writes(self, adapted: AdaptedModel, tiny_folder: Path, tmp_path: Path) -> None:
        from peft import LoraConfig, get_peft_model
        from transformers import AutoModelForCausalLM

        config = LoraConfig(r=4, lora_alpha=3, target_modules=["q_proj", "v_proj"], lora_dropout=0.1, task_type="CAUSAL_LM", init_lora_weights=False)
        model = get_peft_model(AutoModelForCausalLM.from_pretrained(tiny_folder), config).eval()
        model.save_pretrained(tmp_path / "peft")
        adapted.load("p", tmp_path / "peft")
        inputs = {"input_ids": BATCH.input_ids, "attention_mask": BATCH.attention_mask.long(), "position_ids": BATCH.position_ids}
        with torch.no_grad():
            expected = model.base_model.model.model(**inputs).last_hidden_state[BATCH.attention_mask]
        torch.testing.assert_close(hidden(adapted, "p"), expected, atol=1e-6, rtol=1e-5)
        assert not torch.allclose(hidden(adapted, None), expected, atol=1e-3)

    def test_the_same_weights_are_the_same_bytes_and_no_path_of_this_machine(self, adapted: AdaptedModel, saved: Path, tmp_path: Path) -> None:
        adapted.load("again", saved)
        adapted.save("again", tmp_path / "second")
        assert sorted(path.name for path in saved.iterdir()) == ["adapter_config.json", "adapter_model.safetensors"]
        for path in saved.iterdir():
            assert path.read_bytes() == (tmp_path / "second" / path.name).read_bytes()
        assert str(tmp_path.parent) not in (saved / "adapter_config.json").read_text()

    @pytest.mark.parametrize(
        ("change", "error", "words"),
        [
            ({"peft_type": "IA3"}, FailedPreconditionError, "IA3"),
            ({"use_dora": True}, FailedPreconditionError, "use_dora"),
            ({"modules_to_save": ["lm_head"]}, FailedPreconditionError, "modules_to_save"),
            ({"rank_pattern": {"q_proj": 8}}, FailedPreconditionError, "rank_pattern"),
            ({"init_lora_weights": "pissa"}, FailedPreconditionError, "pissa"),
            ({"bias": "all"}, FailedPreconditionError, "bias"),
            ({"target_modules": ["q_proj", "c_attn"]}, FailedPreconditionError, "c_attn"),
            ({"target_modules": "all-linear"}, FailedPreconditionError, "target modules"),
            ({"r": 0}, FailedPreconditionError, "rank"),
            ({"lora_alpha": None}, FailedPreconditionError, "alpha"),
            ({"r": 5}, DataLossError, "shape"),
            ({"target_modules": ["q_proj"]}, DataLossError, "not known"),
            ({"target_modules": ["o_proj", "q_proj"]}, DataLossError, "not known"),
        ],
    )
    def test_configurations_that_do_not_fit(
        self, adapted: AdaptedModel, saved: Path, change: dict[str, object], error: type[Exception], words: str
    ) -> None:
        content = json.loads((saved / "adapter_config.json").read_text())
        (saved / "adapter_config.json").write_text(json.dumps(content | change))
        before, names = hidden(adapted, None), adapted.names
        with pytest.raises(error, match=words):
            adapted.load("again", saved)
        assert adapted.names == names
        assert torch.equal(hidden(adapted, None), before)

    def test_damaged_and_missing_files(self, adapted: AdaptedModel, saved: Path) -> None:
        weights = saved / "adapter_model.safetensors"
        weights.write_bytes(weights.read_bytes()[:-10])
        with pytest.raises(DataLossError, match="adapter_model"):
            adapted.load("again", saved)
        weights.unlink()
        (saved / "adapter_model.bin").write_bytes(b"x")
        with pytest.raises(NotFoundError, match="pickled"):
            adapted.load("again", saved)
        (saved / "adapter_config.json").write_text("{")
        with pytest.raises(DataLossError):
            read_lora_config(saved)
        (saved / "adapter_config.json").unlink()
        with pytest.raises(NotFoundError):
            read_lora_config(saved)

    def test_state_is_a_copy(self, adapted: AdaptedModel) -> None:
        adapted.add("a", LORA, seed=1)
        state = adapted.state("a")
        scramble(adapted, "a")
        assert not torch.equal(next(iter(state.values())), next(iter(adapted.state("a").values())))
        adapted.load_state("a", state)
        assert all(torch.equal(tensor, adapted.state("a")[key]) for key, tensor in state.items())
        with pytest.raises(DataLossError, match="missing"):
            adapted.load_state("a", {})


@pytest.mark.parametrize("recomputed", [False, True])
def test_the_last_layer_spares_what_is_not_asked_for_and_no_result_or_gradient_changes(adapted: AdaptedModel, recomputed: bool) -> None:
    adapted.add("one", LORA, seed=0)
    scramble(adapted, "one")
    if recomputed:
        recompute_activations(adapted)
    tokens = torch.arange(1, 15).view(2, 7)
    real = torch.tensor([[True] * 7, [True] * 5 + [False] * 2])
    asked = torch.zeros_like(real)
    asked[0, 3:], asked[1, 4] = True, True
    rows: list[int] = []
    last = adapted.module.get_submodule(f"{adapted.module.base_model_prefix}.layers")[-1].mlp.gate_proj
    last.register_forward_pre_hook(lambda _, inputs: rows.append(inputs[0].shape[:-1].numel()))

    def outcome(positions: Tensor | None) -> list[Tensor]:
        found = adapted.hidden(tokens, real, adapter="one", asked=positions)[asked]
        adapted.module.zero_grad()
        (found * torch.linspace(-1, 1, found.numel()).view_as(found)).sum().backward()
        return [found.detach(), *(parameter.grad.clone() for parameter in adapted.parameters("one") if parameter.grad is not None)]

    for expected, found in zip(outcome(None), outcome(asked), strict=True):
        torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-5)
    assert rows == ([12, 12, 5, 5] if recomputed else [12, 5])
    assert adapted.asked is None
