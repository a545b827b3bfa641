"""Services that behave, over real gRPC in threads of this process: what they answer follows from what they are asked."""

from __future__ import annotations

import contextlib
import math
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import grpc

from accord.api.feedback.v1 import feedback_pb2 as feedback_pb
from accord.api.feedback.v1 import feedback_pb2_grpc as feedback_rpc
from accord.api.policy.v1 import policy_pb2 as policy_pb
from accord.api.policy.v1 import policy_pb2_grpc as policy_rpc
from accord.api.reward.v1 import reward_pb2 as reward_pb
from accord.api.reward.v1 import reward_pb2_grpc as reward_rpc
from accord.api.trainer.v1 import trainer_pb2 as trainer_pb
from accord.api.trainer.v1 import trainer_pb2_grpc as trainer_rpc
from accord.errors import AccordError, InvalidArgumentError, NotFoundError, UnavailableError, UnimplementedError
from accord.rpc.status import item_status, to_status

KNOWN_ADAPTER = "adapters/x/versions/1"


@contextlib.contextmanager
def serving(add: Callable[[grpc.Server], None]) -> Iterator[str]:
    """The address of a server with these services."""
    server = grpc.server(ThreadPoolExecutor(8))
    add(server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        server.stop(0).wait()


def refuse(context: Any, error: AccordError) -> None:
    context.abort_with_status(to_status(error))


class FakePolicy(policy_rpc.PolicyServiceServicer):
    """Says what it was asked, with the sampling numbers; an empty adapter is the base."""

    def Generate(self, request: policy_pb.GenerateRequest, context: Any) -> policy_pb.GenerateResponse:
        self._check(request.adapter, context)
        reply = policy_pb.GenerateResponse(adapter_version=request.adapter)
        for item in request.items:
            if _prompt_text(item.prompt) == "bad":
                error = InvalidArgumentError("the prompt is bad", field="items[0].prompt")
                reply.items.add(status=item_status(error))
                continue
            samples = [self._sample(request.adapter, item, index) for index in range(item.n)]
            reply.items.add(item_id=item.item_id, samples=samples)
        return reply

    def GenerateStream(self, request: policy_pb.GenerateStreamRequest, context: Any) -> Iterator[policy_pb.GenerateStreamResponse]:
        self._check(request.adapter, context)
        (item,) = request.items
        for index in range(item.n):
            sample = self._sample(request.adapter, item, index)
            for word in sample.text.split(" "):
                yield policy_pb.GenerateStreamResponse(sample_index=index, chunk=policy_pb.GenerateChunk(text=word + " "))
            yield policy_pb.GenerateStreamResponse(
                sample_index=index, complete=policy_pb.GenerateComplete(sample=sample, adapter_version=request.adapter)
            )

    def _check(self, adapter: str, context: Any) -> None:
        if adapter not in ("", KNOWN_ADAPTER):
            refuse(context, NotFoundError(f"{adapter} is not in the artefact store; versions of that adapter: {KNOWN_ADAPTER}"))

    def _sample(self, adapter: str, item: policy_pb.GenerateItem, index: int) -> policy_pb.Sample:
        sampling = item.sampling
        given = [f"{name}={getattr(sampling, name):g}" for name in ("temperature", "top_p", "top_k", "max_tokens", "seed") if sampling.HasField(name)]
        text = " ".join([adapter or "base", f"<{_prompt_text(item.prompt)}>", *given, *sampling.stop, f"#{index}"])
        finish = policy_pb.FINISH_REASON_LENGTH if sampling.max_tokens == 1 else policy_pb.FINISH_REASON_EOS
        return policy_pb.Sample(index=index, text=text, logprobs=[-0.5], finish_reason=finish, seed=sampling.seed)


class FakeReward(reward_rpc.RewardServiceServicer):
    """Scores length; each further member of an ensemble scores one more."""

    def Score(self, request: reward_pb.ScoreRequest, context: Any) -> reward_pb.ScoreResponse:
        self._check(request.reward_model, context)
        members = len(request.reward_model.members)
        reply = reward_pb.ScoreResponse(reward_model_versions=request.reward_model.members)
        for item in request.items:
            scores = [float(len(item.response.text) + member) for member in range(members)]
            reply.items.add(score=sum(scores) / members, member_scores=scores, tokens=len(_prompt_text(item.prompt)))
        return reply

    def Compare(self, request: reward_pb.CompareRequest, context: Any) -> reward_pb.CompareResponse:
        self._check(request.reward_model, context)
        reply = reward_pb.CompareResponse(reward_model_versions=request.reward_model.members)
        for pair in request.pairs:
            a, b = float(len(pair.response_a.text)), float(len(pair.response_b.text))
            reply.pairs.add(probability_a=1 / (1 + math.exp(b - a)), score_a=a, score_b=b)
        return reply

    def _check(self, selector: reward_pb.RewardModelSelector, context: Any) -> None:
        for member in selector.members:
            if "unknown" in member:
                refuse(context, NotFoundError(f"{member} is not in the artefact store"))


class FakeFeedback(feedback_rpc.FeedbackServiceServicer):
    """Prefers the longer response; a job labels a pair every few milliseconds, the first attempt of a job may fail."""

    def __init__(self, *, fail_first: bool = False, pairs: int = 5, hold: bool = False) -> None:
        self.jobs: dict[str, feedback_pb.LabelJob] = {}
        self.requests: list[feedback_pb.CreateLabelJobRequest] = []
        self.changes = ""
        self.cancelled: list[str] = []
        self._fail_first = fail_first
        self._pairs = pairs
        self._hold = hold

    def LabelPair(self, request: feedback_pb.LabelPairRequest, context: Any) -> feedback_pb.LabelPairResponse:
        pair = request.pair
        longer = len(pair.response_a) - len(pair.response_b)
        outcome = feedback_pb.OUTCOME_A if longer > 0 else feedback_pb.OUTCOME_B
        preference = 1 / (1 + math.exp(-longer))
        judgement = feedback_pb.Judgement(a_first=True, probability_a=preference, evidence_a=-1.5, prompt_tokens=7, response_tokens=3)
        label = feedback_pb.Label(
            pair_id=pair.pair_id, preference=preference, outcome=outcome, judgements=[judgement], kind=request.judge.kind,
            judge=f"fake for task {pair.task}: {pair.prompt.messages[-1].content[:9]}",
        )  # fmt: skip
        return feedback_pb.LabelPairResponse(label=label)

    def ListRubrics(self, request: feedback_pb.ListRubricsRequest, context: Any) -> feedback_pb.ListRubricsResponse:
        verdict, rating = feedback_pb.JUDGE_KIND_VERDICT, feedback_pb.JUDGE_KIND_RATING
        summarization, conversation = feedback_pb.TASK_SUMMARIZATION, feedback_pb.TASK_CONVERSATION
        rubrics = (
            ("conversation/base/1", conversation, verdict), ("conversation/cot/1", conversation, verdict),
            ("conversation/detailed/1", conversation, verdict), ("conversation/rating/1", conversation, rating),
            ("summarization/detailed/1", summarization, verdict),
        )  # fmt: skip
        return feedback_pb.ListRubricsResponse(
            rubrics=[feedback_pb.Rubric(id=name, task=task, kind=kind, rationale="cot" in name) for name, task, kind in rubrics]
        )

    def CreateLabelJob(self, request: feedback_pb.CreateLabelJobRequest, context: Any) -> feedback_pb.CreateLabelJobResponse:
        if request.judge.consistency_samples > 1:
            refuse(context, UnimplementedError("no self-consistency here", field="judge.consistency_samples"))
        self.requests.append(request)
        name = f"labelJobs/{request.request_id}"
        if name not in self.jobs:
            running = feedback_pb.LABEL_JOB_STATE_RUNNING
            job = feedback_pb.LabelJob(name=name, state=running, total_pairs=self._pairs, source_uri=request.dataset_uri)
            if self._fail_first and not self.jobs:
                job.state, job.message = feedback_pb.LABEL_JOB_STATE_FAILED, "the judge was away"
            self.jobs[name] = job
        found = feedback_pb.LabelJob()
        found.CopyFrom(self.jobs[name])
        if found.state == feedback_pb.LABEL_JOB_STATE_SUCCEEDED:
            found.message = self.changes
        return feedback_pb.CreateLabelJobResponse(job=found)

    def WatchLabelJob(self, request: feedback_pb.WatchLabelJobRequest, context: Any) -> Iterator[feedback_pb.WatchLabelJobResponse]:
        job = self.jobs[request.name]
        while job.state == feedback_pb.LABEL_JOB_STATE_RUNNING:
            if not self._hold:
                job.done_pairs += 1
                job.tokens += 10
            if job.done_pairs == job.total_pairs:
                job.state, job.dataset_uri, job.card_uri = feedback_pb.LABEL_JOB_STATE_SUCCEEDED, "/out/labels.jsonl", "/out/card.json"
                job.rejected_rows["prompt is missing"] = 2
            yield feedback_pb.WatchLabelJobResponse(job=job)
            time.sleep(0.005)

    def CancelLabelJob(self, request: feedback_pb.CancelLabelJobRequest, context: Any) -> feedback_pb.CancelLabelJobResponse:
        self.cancelled.append(request.name)
        self.jobs[request.name].state = feedback_pb.LABEL_JOB_STATE_CANCELLED
        return feedback_pb.CancelLabelJobResponse(job=self.jobs[request.name])

    def GetLabelCard(self, request: feedback_pb.GetLabelCardRequest, context: Any) -> feedback_pb.GetLabelCardResponse:
        job = self.jobs[request.job]
        share = feedback_pb.Share(value=0.8, low=0.4, high=0.96, n=job.done_pairs)
        card = feedback_pb.LabelCard(
            judge="fake", kind=feedback_pb.JUDGE_KIND_LIKELIHOOD, task=feedback_pb.TASK_SUMMARIZATION, pairs=job.done_pairs,
            human_agreement=share, tokens=job.tokens, kappa=feedback_pb.Kappa(value=0.625, low=0.5, high=0.75, n=5), cost_per_thousand_pairs=1.5, notes=["a small number of pairs: the interval is wide"],
        )  # fmt: skip
        return feedback_pb.GetLabelCardResponse(cards=[card])


@dataclass
class FakeRun:
    """One run and the events that its stream has; offsets are positions in the list."""

    run: trainer_pb.Run
    events: list[trainer_pb.WatchRunResponse] = field(default_factory=list)


class FakeTrainer(trainer_rpc.TrainerServiceServicer):
    """Runs are done at once. As the real one, a state line of a run that has ended already says so.

    Args:
        breaks: how many streams break off after two events.
        outcome: how runs end.
        endless: runs never end.
        late: plans and creations are answered when the caller has left.
    """

    def __init__(
        self, *, breaks: int = 0, outcome: int = trainer_pb.RUN_STATE_SUCCEEDED, endless: bool = False, fits: bool = True, late: bool = False
    ) -> None:
        self.runs: dict[str, FakeRun] = {}
        self.tokens: list[str] = []
        self.cancelled: list[str] = []
        self.resumed: list[str] = []
        self._breaks = breaks
        self._outcome = outcome
        self._endless = endless
        self._fits = fits
        self._late = late
        self.watched = threading.Event()

    def PlanRun(self, request: trainer_pb.PlanRunRequest, context: Any) -> trainer_pb.PlanRunResponse:
        self._wait(context)
        memory = [trainer_pb.MemoryItem(role="base weights", bytes=2**30, arithmetic="one file"), trainer_pb.MemoryItem(role="logits", bytes=2**29)]
        plan = trainer_pb.RunPlan(
            memory=memory, peak_memory_bytes=3 * 2**29, available_memory_bytes=2**34 if self._fits else 2**20, fits=self._fits, rows=140,
            notes=["measured on no machine"], manifest=f"steps: {request.spec.steps}\n",
        )  # fmt: skip
        return trainer_pb.PlanRunResponse(plan=plan)

    def CreateRun(self, request: trainer_pb.CreateRunRequest, context: Any) -> trainer_pb.CreateRunResponse:
        name = f"runs/{request.spec.adapter}-{request.request_id[:6]}"
        run = trainer_pb.Run(name=name, spec=request.spec, state=trainer_pb.RUN_STATE_QUEUED, total_steps=request.spec.steps, directory="/srv/r")
        self.runs.setdefault(name, FakeRun(run, self._script(run)))
        self._wait(context)
        return trainer_pb.CreateRunResponse(run=run)

    def GetRun(self, request: trainer_pb.GetRunRequest, context: Any) -> trainer_pb.GetRunResponse:
        return trainer_pb.GetRunResponse(run=self._find(request.name, context).run)

    def ListRuns(self, request: trainer_pb.ListRunsRequest, context: Any) -> trainer_pb.ListRunsResponse:
        found = [known.events[-1].run for known in self.runs.values() if not request.states or known.events[-1].run.state in request.states]
        return trainer_pb.ListRunsResponse(runs=found)

    def WatchRun(self, request: trainer_pb.WatchRunRequest, context: Any) -> Iterator[trainer_pb.WatchRunResponse]:
        known = self._find(request.name, context)
        self.tokens.append(request.resume_token)
        self.watched.set()
        start = int(request.resume_token or 0)
        for sent, event in enumerate(known.events[start:]):
            if self._breaks and sent == 2:
                self._breaks -= 1
                refuse(context, UnavailableError("the trainer is draining"))
            yield event
        while self._endless:
            yield trainer_pb.WatchRunResponse(resume_token=str(len(known.events)), heartbeat=trainer_pb.Heartbeat(idle_seconds=1))
            time.sleep(0.05)

    def ReadRunFile(self, request: trainer_pb.ReadRunFileRequest, context: Any) -> trainer_pb.ReadRunFileResponse:
        text = "".join(f"line {number} of the {request.file}\n" for number in range(1, 31)).encode()
        return trainer_pb.ReadRunFileResponse(content=text[request.offset :], size_bytes=len(text))

    def CancelRun(self, request: trainer_pb.CancelRunRequest, context: Any) -> trainer_pb.CancelRunResponse:
        self.cancelled.append(request.name)
        run = self._find(request.name, context).run
        run.state = trainer_pb.RUN_STATE_CANCELLING
        return trainer_pb.CancelRunResponse(run=run)

    def ResumeRun(self, request: trainer_pb.ResumeRunRequest, context: Any) -> trainer_pb.ResumeRunResponse:
        self.resumed.append(request.name + (f" on {request.processes} processes" if request.HasField("processes") else ""))
        return trainer_pb.ResumeRunResponse(run=self._find(request.name, context).run)

    def _wait(self, context: Any) -> None:
        left = threading.Event()
        if self._late and context.add_callback(left.set):
            left.wait(10)

    def _find(self, name: str, context: Any) -> FakeRun:
        if name not in self.runs:
            refuse(context, NotFoundError(f"there is no run {name}", field="name"))
        return self.runs[name]

    def _script(self, run: trainer_pb.Run) -> list[trainer_pb.WatchRunResponse]:
        """Two states, a message, two steps, an alarm, and the end."""
        ended = trainer_pb.Run(
            name=run.name, spec=run.spec, state=self._outcome, message="the disk is full" if self._outcome == trainer_pb.RUN_STATE_FAILED else "",
            step=run.total_steps, total_steps=run.total_steps, directory=run.directory, metrics={"loss": 1.25, "seconds": 0.5, "zeta": 3},
        )  # fmt: skip
        ended.start_time.seconds, ended.end_time.seconds = 1_800_000_000, 1_800_000_065
        if self._outcome == trainer_pb.RUN_STATE_SUCCEEDED:
            ended.adapter_version = f"adapters/{run.spec.adapter}/versions/1"
        loading, training = trainer_pb.Run(), trainer_pb.Run()
        for state, phase, waiting in ((loading, "loading", ""), (training, "train", "reward service: UNAVAILABLE")):
            state.CopyFrom(ended)
            state.phase, state.waiting_on = phase, waiting
        events = [
            trainer_pb.WatchRunResponse(run=loading),
            trainer_pb.WatchRunResponse(message="sample:summarization (train): 140 demonstrations"),
            trainer_pb.WatchRunResponse(run=training),
            trainer_pb.WatchRunResponse(metrics=trainer_pb.StepMetrics(step=1, values={"loss": 2.5, "zeta": 4})),
            trainer_pb.WatchRunResponse(message="alarm: mean k1 is -0.700"),
            trainer_pb.WatchRunResponse(metrics=trainer_pb.StepMetrics(step=2, values={"loss": 1.25})),
        ]
        if not self._endless:
            events.append(trainer_pb.WatchRunResponse(run=ended))
        else:
            events[0].run.state = events[2].run.state = trainer_pb.RUN_STATE_RUNNING
        for number, event in enumerate(events, start=1):
            event.resume_token = str(number)
        return events


def _prompt_text(prompt: Any) -> str:
    if prompt.WhichOneof("form") == "text":
        return f"raw:{prompt.text}"
    return "/".join(message.content for message in prompt.messages.messages)


def add_policy(servicer: FakePolicy) -> Callable[[grpc.Server], None]:
    return lambda server: policy_rpc.add_PolicyServiceServicer_to_server(servicer, server)


def add_reward(servicer: FakeReward) -> Callable[[grpc.Server], None]:
    return lambda server: reward_rpc.add_RewardServiceServicer_to_server(servicer, server)


def add_feedback(servicer: FakeFeedback) -> Callable[[grpc.Server], None]:
    return lambda server: feedback_rpc.add_FeedbackServiceServicer_to_server(servicer, server)


def add_trainer(servicer: FakeTrainer) -> Callable[[grpc.Server], None]:
    return lambda server: trainer_rpc.add_TrainerServiceServicer_to_server(servicer, server)
