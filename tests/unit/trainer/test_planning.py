"""Plans against independent counts: tensors that autograd keeps, operations that torch counts, token ids that the encoder makes, closed forms."""

from __future__ import annotations

import json
import random
import shutil
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.utils.flop_counter import FlopCounterMode

from accord.cli.recipes import load_train_recipe, shipped_recipes
from accord.data.readers import read_demonstrations, read_pairs, read_prompts, read_texts
from accord.models.base import load_base_model
from accord.models.batching import collate
from accord.models.logprobs import batch_logprobs
from accord.models.lora import AdaptedModel
from accord.models.testing import tiny_model_folder
from accord.runspec import ALGORITHMS, RunSpec, parse_spec
from accord.runspec_parts import LoraSpec
from accord.trainer import calibration, planner
from accord.trainer.calibration import Calibration, Speed
from accord.trainer.lengths import Lengths, Row, TokenCounter, measure
from accord.trainer.lengths import Limits as RowLimits
from accord.trainer.planner import data_specs, make_plan, plan_memory
from accord.trainer.shape import ModelShape
from accord.trainer.workload import PASSES, Workload
from accord.training.examples import Limits, encode_demonstrations, encode_pairs, encode_prompts, encode_texts

LORA = LoraSpec(rank=4)
PROMPT, RESPONSE, ROWS = 30, 10, 2
LIMITS = RowLimits(100_000, 2000, 4096)
FAST, PLENTY = Speed(1e9, 1e9), 2**50


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    path = tiny_model_folder(tmp_path_factory.mktemp("model"), hidden=64, layers=3)
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps({**config, "max_position_embeddings": 4096}))
    yield path
    torch.set_num_threads(before)


def addmm_flops(_: Any, left: Sequence[int], right: Sequence[int], **__: Any) -> int:
    return 2 * left[0] * left[1] * right[1]


IN_PLACE = {torch.ops.aten.addmm_: addmm_flops}  # which PyTorch's counter does not know


def spec_of(algorithm: str, **values: Any) -> RunSpec:
    data = {"uri": "sample:summarization"}
    part = {"data": data, "reward_model": "adapters/rm"} if algorithm in ("ppo", "grpo", "rloo") else {"data": data}
    more = {"batch_size": 8, "micro_batch_size": 2, "max_prompt_tokens": PROMPT, "max_response_tokens": RESPONSE, **values}
    return parse_spec({"adapter": "a", "steps": 2, "lora": {"rank": 4}, **more, algorithm: {**part, **more.pop(algorithm, {})}})


def loss_of(adapted: AdaptedModel) -> torch.Tensor:
    """Over two rows, one of them padded."""
    rows = [([1] * (PROMPT - index), [5] * RESPONSE) for index in range(ROWS)]
    return -batch_logprobs(adapted, collate(rows, pad_id=0), adapter="a").sum()


def test_activations_are_what_autograd_keeps(folder: Path) -> None:
    adapted = AdaptedModel(load_base_model(str(folder)))
    adapted.add("a", LORA, seed=0)
    weights = {parameter.untyped_storage().data_ptr() for parameter in adapted.module.parameters()}
    kept: dict[int, torch.Tensor] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.untyped_storage().data_ptr() not in weights:
            kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    batch = collate([([1] * (PROMPT - index), [5] * RESPONSE) for index in range(ROWS)], pad_id=0)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        adapted.hidden(batch.input_ids, batch.attention_mask, adapter="a", position_ids=batch.position_ids)
    counted = sum(tensor.untyped_storage().nbytes() for tensor in kept.values())
    shape, width = ModelShape.read(folder), PROMPT + RESPONSE
    foretold = 4 * shape.layers * shape.kept_floats(LORA, width) * ROWS * width
    assert counted == pytest.approx(foretold, rel=0.03)


@pytest.mark.parametrize("lora", [LORA, LORA.model_copy(update={"last_layers": 1})], ids=["all-layers", "last-layer"])
def test_operations_are_what_torch_counts(folder: Path, lora: LoraSpec) -> None:
    adapted = AdaptedModel(load_base_model(str(folder)))
    adapted.add("a", lora, seed=0)
    shape, width = ModelShape.read(folder), PROMPT + RESPONSE
    arguments = (ROWS * width, width, ROWS * RESPONSE, shape.adapter_parameters(lora))
    with FlopCounterMode(display=False, custom_mapping=IN_PLACE) as forward, torch.no_grad():
        loss_of(adapted)
    with FlopCounterMode(display=False, custom_mapping=IN_PLACE) as both:
        loss_of(adapted).backward()
    spared = (
        2.0 * ROWS * PROMPT * (3 * shape.hidden * shape.inner + 3 * lora.rank * (shape.hidden + shape.inner))
    )  # the last MLP, where nothing is read
    attention = 4.0 * shape.layers * shape.attention * width * ROWS * width
    counts_attention = any("attention" in str(name) for name in forward.get_flop_counts()["Global"])
    assert forward.get_total_flops() == pytest.approx(
        shape.forward_operations(*arguments) - spared - (0 if counts_attention else attention), rel=0.03
    )
    assert both.get_total_flops() == pytest.approx(
        shape.learning_operations(*arguments, shape.layers, shape.adapted_layers(lora))
        - 2 * spared
        - (0 if counts_attention else (1 + 2.5 * shape.adapted_layers(lora) / shape.layers) * attention),
        rel=0.05,
    )


@pytest.mark.parametrize("last_layers", [0, 1])
def test_the_adapter_has_as_many_parameters_as_told(folder: Path, last_layers: int) -> None:
    lora = LORA.model_copy(update={"last_layers": last_layers})
    adapted = AdaptedModel(load_base_model(str(folder)))
    adapted.add("a", lora, seed=0)
    shape = ModelShape.read(folder)
    assert shape.adapter_parameters(lora) == sum(parameter.numel() for parameter in adapted.parameters("a"))
    layers = sum(module.weight.numel() for path, module in adapted.module.named_modules() if path.endswith("base_layer"))
    assert shape.linear * shape.adapted_layers(lora) == layers * shape.layers
    assert shape.vocabulary_parameters == shape.vocabulary * shape.hidden


class TestLengths:
    @pytest.mark.parametrize("uri", ["sample:summarization", "sample:conversation"])
    def test_they_are_those_of_the_encoder(self, folder: Path, uri: str) -> None:
        encoder, counter, limits = load_base_model(str(folder)).encoder, TokenCounter(folder), Limits(900, 500, 4096)
        pairs = measure(read_pairs(uri).rows, counter, RowLimits(900, 500, 4096))
        known = encode_pairs(encoder, read_pairs(uri).rows, limits).rows
        assert [(row.prompt, row.responses) for row in pairs.rows] == [(len(row.prompt), len(row.chosen) + len(row.rejected)) for row in known]
        assert pairs.kept == len(known) / len(read_pairs(uri).rows)
        rows = measure(read_demonstrations(uri).rows, counter, RowLimits(900, 500, 4096)).rows
        assert [row.tokens for row in rows] == [
            len(row.prompt) + len(row.response) for row in encode_demonstrations(encoder, read_demonstrations(uri).rows, limits).rows
        ]
        prompts = measure(read_prompts(uri).rows, counter, RowLimits(900, 500, 4096)).rows
        assert [row.tokens for row in prompts] == [len(row.prompt) for row in encode_prompts(encoder, read_prompts(uri).rows, limits).rows]
        texts = measure(read_texts(uri).rows, counter, RowLimits(300, 100, 4096)).rows
        assert [row.tokens for row in texts] == [1 + len(row.response) for row in encode_texts(encoder, read_texts(uri).rows, 400).rows]
        assert max(row.tokens for row in texts) == 400

    def test_a_model_without_a_template_and_one_whose_tokenizer_is_gone(self, folder: Path, tmp_path: Path) -> None:
        other = tiny_model_folder(tmp_path / "other")
        settings = json.loads((other / "tokenizer_config.json").read_text())
        del settings["chat_template"]
        (other / "tokenizer_config.json").write_text(json.dumps(settings))
        encoder = load_base_model(str(other)).encoder
        (record, *_) = read_prompts("sample:conversation").rows
        assert TokenCounter(other).prompt(record.messages) == pytest.approx(len(encoder.encode_prompt(record.messages)), abs=12)
        (other / "tokenizer.json").unlink()
        plan = make_plan(spec_of("sft"), other, PLENTY)
        assert any("count at the limits" in note for note in plan.notes)

    def test_the_largest_micro_batch_and_the_padding_of_a_batch(self) -> None:
        lengths = Lengths((Row(10, 2, 2), Row(20, 5, 5), Row(5, 1, 1)), 1.0)
        assert lengths.largest(1, 3) == (25, 5)
        assert lengths.largest(4, 100) == (25, 5 + 2 + 1 + 5)
        same = Lengths((Row(7, 3, 3),), 1.0)
        assert same.batch(8, 2) == pytest.approx((80.0, 10.0, 24.0))
        padded, width, responses = lengths.batch(64, 64)
        assert (padded, width) == (pytest.approx(64 * 25), pytest.approx(25))
        assert responses == pytest.approx(64 * 8 / 3, rel=0.1)
        assert lengths.batch(64, 1)[0] == pytest.approx(64 * (12 + 25 + 6) / 3, rel=0.1)

    def test_the_longest_row_of_a_short_run_is_the_expected_one(self) -> None:
        rows = tuple(Row(tokens, 0, 0) for tokens in range(1, 1001))
        draw = random.Random(1)
        for drawn in (4, 40, 400, 1000):
            seen = [max(draw.sample(range(1, 1001), drawn)) for _ in range(200)]
            assert Lengths(rows, 1.0).largest(1, drawn)[0] == pytest.approx(sum(seen) / len(seen), rel=0.03)


class TestMemory:
    def test_roles_in_closed_form(self, folder: Path) -> None:
        shape = ModelShape.read(folder)
        work = Workload(spec_of("ppo"), shape, Lengths((Row(20, 0, 0),), 1.0))
        found = {item.role: item.bytes for item in work.memory()}
        adapter = 4 * shape.adapter_parameters(LORA)
        assert found["adapters"] == 3 * adapter
        assert found["gradients and Adam moments"] == 6 * adapter
        assert found["activations"] == 2 * (20 + RESPONSE) * shape.layers * shape.kept_floats(LORA, 20 + RESPONSE) * 4
        assert found["logits"] == 2 * RESPONSE * shape.vocabulary * 4 * 3
        assert found["holes"] == round(0.7 * (found["activations"] + found["logits"]))
        assert found["base weights"] == 4 * sum(tensor.numel() for tensor in load_file(folder / "model.safetensors").values())

    def test_large_blocks_leave_no_holes(self, folder: Path) -> None:
        shape = ModelShape.read(folder)
        lengths = Lengths((Row(3000, 0, 0),), 1.0)
        share = []
        for micro in (1, 30, 60):
            found = {item.role: item.bytes for item in Workload(spec_of("ppo", micro_batch_size=micro, batch_size=micro), shape, lengths).memory()}
            share.append((found["holes"] - 0.7 * found["logits"]) / found["activations"])
        assert share[0] == pytest.approx(0.7, rel=0.01)
        assert 0.1 < share[1] < 0.6
        assert share[2] == pytest.approx(0, abs=1e-6)

    def test_what_makes_it_smaller_or_larger(self, folder: Path) -> None:
        def peak(algorithm: str, **values: Any) -> int:
            values = {"max_prompt_tokens": 2000, "max_response_tokens": 900, **values}
            return make_plan(spec_of(algorithm, **values), folder, PLENTY).peak_bytes

        assert peak("sft", micro_batch_size=1) < peak("sft") < peak("sft", micro_batch_size=8)
        assert peak("reward_model", micro_batch_size=1) < peak("dpo") < peak("ppo")
        assert peak("sft", activation_checkpointing=True) < peak("sft")
        assert peak("sft", dtype="bfloat16") < peak("sft")
        assert peak("sft", distribution={"processes": 2}) > 1.5 * peak("sft")
        text = {"ptx_coefficient": 0.1, "ptx_data": {"uri": "sample:summarization"}}
        assert peak("ppo", ppo=text, max_response_tokens=10) > peak("ppo", max_response_tokens=10)

    @pytest.mark.parametrize(
        ("algorithm", "values", "words"),
        [
            ("sft", {}, "; lower micro_batch_size"),
            ("sft", {"micro_batch_size": 1}, "; set activation_checkpointing, or lower max_prompt_tokens or max_response_tokens: "),
            ("dpo", {"micro_batch_size": 8}, "; set activation_checkpointing, or lower max_prompt_tokens or max_response_tokens: "),
            ("sft", {"micro_batch_size": 1, "activation_checkpointing": True}, "; lower max_prompt_tokens or max_response_tokens: "),
        ],
    )
    def test_a_refusal_says_what_would_help(self, folder: Path, algorithm: str, values: dict[str, Any], words: str) -> None:
        """Pairs are computed one by one on a CPU, whatever micro_batch_size says."""
        assert words in plan_memory(spec_of(algorithm, **values), folder, 1).refusal()

    def test_processes_share_the_batch(self, folder: Path) -> None:
        """As `RunContext.micro_batch_size` has it: two with half of the rows each hold what one holds."""
        shape = ModelShape.read(folder)
        found = {}
        for processes, micro in ((1, 0), (2, 0), (2, 4), (3, 0)):
            spec = spec_of("sft", batch_size=8, micro_batch_size=micro, distribution={"processes": processes})
            found[processes, micro] = {item.role: item.bytes for item in Workload(spec, shape).memory()}
        assert found[2, 0] == found[2, 4]
        assert found[2, 0]["activations"] == found[1, 0]["activations"]
        assert found[3, 0]["activations"] * 8 == found[1, 0]["activations"] * 9, "three times three rows of eight"
        assert found[2, 0]["adapters"] == 2 * found[1, 0]["adapters"]

    def test_weights_in_16_bits_are_read_into_32_on_a_cpu_by_every_process(self, folder: Path, tmp_path: Path) -> None:
        """A pod of a 7B model whose files are in bfloat16 was planned with half of what it then took."""
        half = shutil.copytree(folder, tmp_path / "half")
        tensors = load_file(half / "model.safetensors")
        save_file({name: tensor.to(torch.bfloat16) for name, tensor in tensors.items()}, half / "model.safetensors")
        two = {"distribution": {"processes": 2}}

        def weights(values: dict[str, Any], of: Path = half, *, on_gpu: bool = False) -> tuple[int, str]:
            (found,) = [item for item in plan_memory(spec_of("sft", **values), of, PLENTY, on_gpu=on_gpu).memory if item.role == "base weights"]
            return found.bytes, found.arithmetic

        numbers = sum(tensor.numel() for tensor in tensors.values())
        assert weights({}) == (4 * numbers, "read from the safetensors files into 4 B a number")
        assert weights(two) == (8 * numbers, "2 processes x read from the safetensors files into 4 B a number")
        assert weights({"dtype": "bfloat16"}) == weights({}, on_gpu=True) == (2 * numbers, "mapped from the safetensors files")
        assert weights(two, folder)[0] == weights({}, folder)[0] == 4 * numbers

    def test_data_decides_where_rows_at_the_limits_do_not_fit(self, folder: Path) -> None:
        wide = spec_of("sft", max_prompt_tokens=100_000, max_response_tokens=2000, steps=1000)
        at_limits, real = Workload(wide, ModelShape.read(folder)).memory(), make_plan(wide, folder, PLENTY)
        between = (sum(item.bytes for item in at_limits) + real.peak_bytes) // 2
        assert plan_memory(wide, folder, PLENTY).memory == tuple(at_limits)
        assert plan_memory(wide, folder, between).fits
        assert plan_memory(wide, folder, between).memory == real.memory
        refused = plan_memory(wide, folder, real.peak_bytes - 1)
        longest = max(row.tokens for row in measure(read_demonstrations("sample:summarization").rows, TokenCounter(folder), LIMITS).rows)
        assert not refused.fits
        assert f"2 rows x {longest} tokens" in refused.refusal()


class TestTime:
    def test_every_algorithm_with_steps_has_a_line(self, folder: Path) -> None:
        assert set(PASSES) == set(ALGORITHMS) - {"evaluate"}
        for algorithm in PASSES:
            plan = make_plan(spec_of(algorithm, max_prompt_tokens=2000, max_response_tokens=900), folder, PLENTY, speed=FAST)
            assert plan.seconds is not None
            assert plan.step_seconds is not None
            assert plan.seconds >= 2 * plan.step_seconds > 0
            assert plan.rows > 100
            assert set(data_specs(spec_of(algorithm))) == {f"{algorithm}.data"}

    def test_it_scales_with_speed_threads_and_work(self, folder: Path) -> None:
        def step(algorithm: str, speed: Speed = FAST, threads: int = 1, **values: Any) -> float:
            found = make_plan(
                spec_of(algorithm, max_prompt_tokens=2000, max_response_tokens=900, **values), folder, PLENTY, speed=speed, threads=threads
            )
            assert found.step_seconds is not None
            return found.step_seconds

        assert step("sft", Speed(2e9, 2e9)) == pytest.approx(step("sft") / 2)
        assert step("sft", threads=4) == pytest.approx(step("sft") / 4)
        assert step("sft", batch_size=16) == pytest.approx(2 * step("sft"), rel=0.05)
        ppo = [step("ppo", ppo={"epochs": epochs}) for epochs in (1, 2, 3)]
        assert ppo[2] - ppo[1] == pytest.approx(ppo[1] - ppo[0])
        assert step("grpo", grpo={"group_size": 4}) < ppo[0]
        assert step("dpo") < 1.1 * step("online_dpo")
        rated = {"reward_model": "", "judge_reward": {"task": "summarization"}}
        elsewhere = {"reward_model": "", "judge_reward": {"task": "summarization", "judge": "another"}}
        by_base, unknown = (step("grpo", grpo={"group_size": 4, **given}) for given in (rated, elsewhere))
        assert by_base > step("grpo", grpo={"group_size": 4}) > unknown, "a rubric is longer than what a reward model reads"
        assert step("online_dpo", online_dpo={"judge": "likelihood"}) > step("online_dpo", online_dpo={"judge": "verdict"})
        for spec in (spec_of("grpo", grpo={"group_size": 4, **elsewhere}), spec_of("online_dpo", online_dpo={"judge": "verdict"})):
            assert any("leaves the judge out" in note for note in make_plan(spec, folder, PLENTY, speed=FAST).notes)
        for spec in (spec_of("grpo", grpo={"group_size": 4, **rated}), spec_of("online_dpo")):
            assert any("the judge's time is that of the base model" in note for note in make_plan(spec, folder, PLENTY, speed=FAST).notes)
        assert not any("leaves the judge out" in note for note in make_plan(spec_of("grpo"), folder, PLENTY, speed=FAST).notes)

    def test_an_evaluation_has_no_more_rows_than_its_data(self, folder: Path, tmp_path: Path) -> None:
        """A limit of a thousand counted as a thousand rows, however few there were."""
        path = tmp_path / "rows.jsonl"
        path.write_text("".join(json.dumps({"prompt": f"say {number}", "response": "a"}) + "\n" for number in range(5)))

        def seconds(limit: int) -> float:
            part = {"data": {"uri": str(path)}, "eval_data": {"uri": str(path), "limit": limit}}
            found = make_plan(spec_of("sft", max_prompt_tokens=500, sft=part), folder, PLENTY, speed=FAST).seconds
            assert found is not None
            return found

        assert seconds(1) < seconds(4) < seconds(5) == seconds(0) == seconds(1000)

    @pytest.mark.parametrize(("limit", "rows"), [(0, 5), (3, 3)])
    def test_all_rows_are_counted_where_not_all_are_measured(
        self, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: int, rows: int
    ) -> None:
        monkeypatch.setattr(planner, "_ROWS_MEASURED", 2)
        path = tmp_path / "rows.jsonl"
        path.write_text("".join(json.dumps({"prompt": f"say {number}", "response": "a"}) + "\n" for number in range(5)))
        spec = spec_of("sft", max_prompt_tokens=500, sft={"data": {"uri": str(path), "limit": limit}})
        plan = make_plan(spec, folder, PLENTY)
        assert plan.rows == make_plan(spec, None, PLENTY).rows == rows
        assert ("lengths are those of 2 of the 5 rows" in plan.notes) == (not limit)

    def test_a_run_over_groups_sees_a_prompt_for_each_group(self, folder: Path) -> None:
        """Of ten rows, two draws leave (10 - 2) / 3 = 2 longer ones: the third longest is expected; eight draws see the longest."""
        lengths = Lengths(tuple(Row(length, 0, 0) for length in range(10, 110, 10)), 1.0)

        def width(algorithm: str, **part: Any) -> str:
            spec = spec_of(algorithm, steps=2, batch_size=4, micro_batch_size=4, **({algorithm: part} if part else {}))
            (found,) = [item for item in Workload(spec, ModelShape.read(folder), lengths).memory() if item.role == "activations"]
            return found.arithmetic.split(" x ")[1]

        limit = spec_of("rloo").max_response_tokens
        assert width("rloo", group_size=4) == f"{80 + limit} tokens"
        assert width("ppo") == f"{100 + limit} tokens"

    def test_learning_costs_twice_reading_and_dpo_reads_its_reference_once(self, folder: Path) -> None:
        shape, operations_only = ModelShape.read(folder), Speed(1.0, 1e30)
        lengths = Lengths((Row(30, 8, 4),), 1.0)
        dpo = Workload(spec_of("dpo"), shape, lengths)
        read, learned = dpo.once_seconds(operations_only, 1, 8), dpo.step_seconds(operations_only, 1)
        assert read == pytest.approx(shape.forward_operations(8 * 38, 38, 64, shape.adapter_parameters(LORA)))
        assert 2 < learned / read < 2.6
        assert dpo.once_seconds(operations_only, 1, 100) == pytest.approx(2 * read)  # two steps of eight

    def test_without_a_speed_there_is_no_time_and_the_plan_says_so(self, folder: Path) -> None:
        plan = make_plan(spec_of("sft", max_prompt_tokens=2000, max_response_tokens=900), folder, PLENTY)
        assert plan.seconds is plan.step_seconds is None
        assert any("not measured" in note for note in plan.notes)


class TestCalibration:
    def test_it_is_measured_once_and_kept(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        path, calls = tmp_path / "cache" / "speed.json", []

        def measured() -> Speed:
            calls.append(1)
            return Speed(3.0, 4.0)

        monkeypatch.setattr(calibration, "measure_speed", measured)
        assert Calibration(path).speed(10) == Speed(3.0, 4.0)
        assert Calibration(path).speed(0) == Speed(3.0, 4.0)
        assert len(calls) == 1
        path.write_text("{}")
        assert Calibration(path).speed(10) == Speed(3.0, 4.0)
        assert len(calls) == 2

    def test_nobody_waits_longer_than_asked(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        go = threading.Event()
        monkeypatch.setattr(calibration, "measure_speed", lambda: (go.wait(10), Speed(1.0, 1.0))[1])
        slow, began = Calibration(tmp_path / "speed.json"), time.monotonic()
        assert slow.speed(0.05) is None
        assert time.monotonic() - began < 5
        go.set()
        assert slow.speed(10) == Speed(1.0, 1.0)

    def test_a_machine_that_cannot_be_measured_leaves_plans_without_time(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(calibration.sys, "executable", "/nowhere/python")
        assert Calibration(tmp_path / "speed.json").speed(10) is None

    def test_real_figures_are_plausible(self) -> None:
        speed = calibration.measure_speed()
        assert 1e8 < speed.operations_per_second < 1e13
        assert 1e8 < speed.bytes_per_second < 1e13


def test_shipped_recipes_have_plans(folder: Path) -> None:
    assert len(shipped_recipes()) == 8
    for name in shipped_recipes():
        recipe = load_train_recipe(name, ("max_prompt_tokens=3000", "max_response_tokens=900"))
        plan = make_plan(recipe, folder, PLENTY, speed=FAST)
        assert plan.rows >= 100
        assert plan.seconds


@pytest.mark.parametrize(
    ("part", "expected"),
    [
        ({}, 2.0),  # the reference, the old policy; the critic learns from its only minibatch and reads nothing else
        ({"minibatch_size": 2}, 2.75),
        ({"reuse_sampler_logprobs": True}, 1.125),  # one row of eight is checked
        ({"reuse_sampler_logprobs": True, "minibatch_size": 4}, 1.625),
        ({"max_staleness": 1}, 3.0),  # the policy that sampled is another one than that before the update
        ({"max_staleness": 1, "reuse_sampler_logprobs": True}, 2.125),
    ],
)
def test_passes_that_learn_nothing_are_counted_by_the_settings_of_ppo(folder: Path, part: dict[str, Any], expected: float) -> None:
    assert Workload(spec_of("ppo", ppo=part), ModelShape.read(folder)).reads == pytest.approx(expected)
