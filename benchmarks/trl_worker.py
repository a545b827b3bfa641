"""TRL doing the work of benchmarks/training.py, in a process of its own and, for PPO, in another environment: nothing of Accord is imported.

    python benchmarks/trl_worker.py '{"kind": "dpo", "model": FOLDER, "rows": FILE, "batch_size": 4, "steps": 6, "threads": 2}'

The last line that it prints is JSON: seconds of each step, seconds of the whole training call, peak resident bytes, and tokens of the responses.
Its settings are those that are fastest here: float32 (bfloat16 is emulated on most CPUs), LoRA instead of whole weights wherever a trainer takes it,
no activation checkpointing, no reports or saves. PPO runs in two ways: as TRL's own examples do it, four whole models, and with LoRA on its policy,
which then serves as the reference too.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer, TrainerCallback

TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


class Timer(TrainerCallback):
    """Seconds between the ends of steps; the first counts from the beginning of training."""

    def __init__(self) -> None:
        self.marks: list[float] = []

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        self.marks.append(time.perf_counter())

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self.marks.append(time.perf_counter())

    @property
    def steps(self) -> list[float]:
        return [after - before for before, after in zip(self.marks, self.marks[1:], strict=False)]


def common(job: dict[str, Any], folder: str) -> dict[str, Any]:
    """Arguments of every trainer."""
    return {
        "output_dir": folder, "per_device_train_batch_size": job["batch_size"], "gradient_accumulation_steps": 1, "learning_rate": 1e-4,
        "use_cpu": True, "bf16": False, "gradient_checkpointing": False, "report_to": "none", "save_strategy": "no", "logging_strategy": "no",
        "disable_tqdm": True, "seed": 0,
    }  # fmt: skip


def lora(task: str) -> LoraConfig:
    return LoraConfig(r=16, lora_alpha=32, lora_dropout=0.0, target_modules=TARGETS, task_type=task)


def dpo(job: dict[str, Any], folder: str, timer: Timer) -> Any:
    from trl import DPOConfig, DPOTrainer

    config = DPOConfig(**common(job, folder), max_steps=job["steps"], precompute_ref_log_probs=job.get("precompute", False), max_length=None)
    model = AutoModelForCausalLM.from_pretrained(job["model"], dtype=torch.float32)
    return DPOTrainer(
        model, args=config, train_dataset=rows(job), processing_class=tokenizer(job),
        peft_config=lora("CAUSAL_LM"), callbacks=[timer],
    )  # fmt: skip


def reward_model(job: dict[str, Any], folder: str, timer: Timer) -> Any:
    from trl import RewardConfig, RewardTrainer

    config = RewardConfig(**common(job, folder), max_steps=job["steps"], max_length=None)
    model = AutoModelForSequenceClassification.from_pretrained(job["model"], num_labels=1, dtype=torch.float32)
    model.config.pad_token_id = tokenizer(job).pad_token_id
    return RewardTrainer(model, args=config, train_dataset=rows(job), processing_class=tokenizer(job), peft_config=lora("SEQ_CLS"), callbacks=[timer])


def ppo(job: dict[str, Any], folder: str, timer: Timer) -> Any:
    from trl.experimental.ppo import PPOConfig, PPOTrainer

    words = tokenizer(job)
    words.padding_side = "left"
    prompts = [words.apply_chat_template(row["prompt"], add_generation_prompt=True)["input_ids"] for row in read(job)]
    config = PPOConfig(
        **common(job, folder), total_episodes=job["batch_size"] * job["steps"], response_length=job["response_tokens"], num_ppo_epochs=1,
        num_mini_batches=1, local_rollout_forward_batch_size=job["batch_size"], num_sample_generations=0, kl_coef=0.05, temperature=0.7,
    )  # fmt: skip
    scorer, value = (AutoModelForSequenceClassification.from_pretrained(job["model"], num_labels=1, dtype=torch.float32) for _ in range(2))
    for model in (scorer, value):
        model.config.pad_token_id = words.pad_token_id
    reference = None if job["lora"] else AutoModelForCausalLM.from_pretrained(job["model"], dtype=torch.float32)
    dataset = Dataset.from_dict({"input_ids": prompts})
    return PPOTrainer(
        args=config, processing_class=words, model=AutoModelForCausalLM.from_pretrained(job["model"], dtype=torch.float32), ref_model=reference,
        reward_model=scorer, value_model=value, train_dataset=dataset, eval_dataset=dataset, callbacks=[timer],
        peft_config=lora("CAUSAL_LM") if job["lora"] else None,
    )  # fmt: skip


def read(job: dict[str, Any]) -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path(job["rows"]).read_text(encoding="utf-8").splitlines()]


def rows(job: dict[str, Any]) -> Dataset:
    return Dataset.from_list(read(job))


def tokenizer(job: dict[str, Any]) -> Any:
    return AutoTokenizer.from_pretrained(job["model"])


def peak_bytes() -> int:
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return 1024 * int(next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM")))


def main() -> None:
    """Does one job."""
    job = json.loads(sys.argv[1])
    torch.set_num_threads(job["threads"])
    timer = Timer()
    with tempfile.TemporaryDirectory() as folder:
        trainer = {"dpo": dpo, "reward_model": reward_model, "ppo": ppo}[job["kind"]](job, folder, timer)
        began = time.perf_counter()
        trainer.train()
        whole = time.perf_counter() - began
    print(json.dumps({"steps": timer.steps, "seconds": whole, "peak_bytes": peak_bytes()}))


if __name__ == "__main__":
    main()
