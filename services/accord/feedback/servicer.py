"""FeedbackService over the labeller, the jobs and the ledger: thin, every method the same shape."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Coroutine, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from accord.api.feedback.v1 import feedback_pb2 as pb
from accord.api.feedback.v1 import feedback_pb2_grpc as rpc
from accord.client.feedback import Judge, Label, LabelPairItem
from accord.client.label_cards import card_to_proto
from accord.client.messages import messages_from_proto
from accord.errors import AccordError, InvalidArgumentError, NotFoundError
from accord.feedback import convert, convert_ledger
from accord.feedback.cards import make_cards
from accord.feedback.config import FeedbackConfig
from accord.feedback.jobs import LabelJobs
from accord.feedback.labeller import Labeller, Plan
from accord.feedback.ledger import Ledger
from accord.feedback.paging import Paging
from accord.feedback.records import ADDED, Origin, is_added
from accord.prompts import list_rubrics
from accord.rpc.calls import CallContext
from accord.rpc.streams import answer_stream
from accord.serving.holder import Holder


@dataclass(frozen=True)
class Served:
    """What the servicer needs once the ledger is open."""

    labeller: Labeller
    jobs: LabelJobs
    ledger: Ledger
    config: FeedbackConfig


class FeedbackServicer(rpc.FeedbackServiceServicer):
    """Every method of FeedbackService."""

    def __init__(self, holder: Holder[Served]) -> None:
        self._holder = holder

    async def LabelPair(self, request: pb.LabelPairRequest, context: CallContext) -> pb.LabelPairResponse:
        label = (await self._label([request.pair], ["pair"], request.judge, context))[0]
        if isinstance(label, AccordError):
            raise label
        return pb.LabelPairResponse(label=convert.label_to_proto(label))

    async def LabelPairs(self, request: pb.LabelPairsRequest, context: CallContext) -> pb.LabelPairsResponse:
        fields = [f"pairs[{index}]" for index in range(len(request.pairs))]
        labels = await self._label(request.pairs, fields, request.judge, context)
        results = [convert.result_to_proto(pair.pair_id, label) for pair, label in zip(request.pairs, labels, strict=True)]
        return pb.LabelPairsResponse(results=results)

    async def LabelStream(
        self, request_iterator: AsyncIterator[pb.LabelStreamRequest], context: CallContext
    ) -> AsyncIterator[pb.LabelStreamResponse]:
        served = self._holder.get()
        stream = _Stream(served, Origin(context.request_id))
        limit = min(served.config.max_queue_pairs, 2 * served.config.concurrency * served.config.batch_pairs)
        async for response in answer_stream(request_iterator, stream.start, limit=limit):
            yield response

    async def RateResponse(self, request: pb.RateResponseRequest, context: CallContext) -> pb.RateResponseResponse:
        labeller = self._holder.get().labeller
        judge, messages = Judge("rating", request.rubric, request.adapter, name=request.judge), messages_from_proto(request.prompt)
        with labeller.room.take(1), _fields_of_ratings():
            rating = await labeller.rate(convert.read_task(request.task), messages, request.response, judge, Origin(context.request_id))
        return convert.rating_to_proto(rating)

    async def RateResponses(self, request: pb.RateResponsesRequest, context: CallContext) -> pb.RateResponsesResponse:
        labeller = self._holder.get().labeller
        judge = Judge("rating", request.rubric, request.adapter, name=request.judge)
        items = [(messages_from_proto(item.prompt), item.response) for item in request.items]
        with labeller.room.take(len(items)), _fields_of_ratings():
            seat, results = await labeller.rate_many(convert.read_task(request.task), items, judge, Origin(context.request_id))
        return pb.RateResponsesResponse(
            results=[convert.rate_result_to_proto(result) for result in results], judge=seat.name, judge_digest=seat.digest
        )

    async def ListRubrics(self, request: pb.ListRubricsRequest, context: CallContext) -> pb.ListRubricsResponse:
        return pb.ListRubricsResponse(rubrics=[convert.rubric_to_proto(rubric) for rubric in list_rubrics()])

    async def CreateLabelJob(self, request: pb.CreateLabelJobRequest, context: CallContext) -> pb.CreateLabelJobResponse:
        job = await self._holder.get().jobs.create(convert.read_job_spec(request))
        return pb.CreateLabelJobResponse(job=convert.job_to_proto(job))

    async def GetLabelJob(self, request: pb.GetLabelJobRequest, context: CallContext) -> pb.GetLabelJobResponse:
        return pb.GetLabelJobResponse(job=convert.job_to_proto(self._holder.get().jobs.get(request.name)))

    async def WatchLabelJob(self, request: pb.WatchLabelJobRequest, context: CallContext) -> AsyncIterator[pb.WatchLabelJobResponse]:
        async for job in self._holder.get().jobs.watch(request.name):
            yield pb.WatchLabelJobResponse(job=convert.job_to_proto(job))

    async def CancelLabelJob(self, request: pb.CancelLabelJobRequest, context: CallContext) -> pb.CancelLabelJobResponse:
        return pb.CancelLabelJobResponse(job=convert.job_to_proto(await self._holder.get().jobs.cancel(request.name)))

    async def RecordHumanLabel(self, request: pb.RecordHumanLabelRequest, context: CallContext) -> pb.RecordHumanLabelResponse:
        served = self._holder.get()
        served.labeller.check_pair(convert.read_pair(request.pair), "pair")
        key = await asyncio.to_thread(served.ledger.record_human_label, convert.read_human_label(request))
        return pb.RecordHumanLabelResponse(ledger_key=key)

    async def GetLabelCard(self, request: pb.GetLabelCardRequest, context: CallContext) -> pb.GetLabelCardResponse:
        ledger = self._holder.get().ledger
        kind, task = convert.read_kind(request.kind), convert.read_any_task(request.task)
        cards = await asyncio.to_thread(lambda: make_cards(ledger.labels(job=request.job, kind=kind, task=task), ledger.pair_texts))
        if not cards:
            raise NotFoundError("no label of the ledger matches", field="job" if request.job else None)
        return pb.GetLabelCardResponse(cards=[card_to_proto(card) for card in cards])

    async def ListLabels(self, request: pb.ListLabelsRequest, context: CallContext) -> pb.ListLabelsResponse:
        ledger, query = self._holder.get().ledger, convert_ledger.read_label_query(request)
        paging = Paging(("labels", asdict(query)), request.page_size, request.page_token)
        found = await asyncio.to_thread(ledger.list_labels, query, after=paging.after or 0, limit=paging.size + 1)
        labels, token = paging.page([(place, convert_ledger.label_record_to_proto(record)) for place, record in found])
        return pb.ListLabelsResponse(labels=labels, next_page_token=token)

    async def ListHumanLabels(self, request: pb.ListHumanLabelsRequest, context: CallContext) -> pb.ListHumanLabelsResponse:
        ledger, asked = self._holder.get().ledger, {"content_key": request.content_key, "annotator_id": request.annotator_id}
        paging = Paging(("human labels", asked), request.page_size, request.page_token)
        found = await asyncio.to_thread(ledger.list_human_labels, **asked, after=paging.after or 0, limit=paging.size + 1)
        labels, token = paging.page([(place, convert_ledger.human_record_to_proto(record)) for place, record in found])
        return pb.ListHumanLabelsResponse(labels=labels, next_page_token=token)

    async def ListLabelJobs(self, request: pb.ListLabelJobsRequest, context: CallContext) -> pb.ListLabelJobsResponse:
        paging = Paging(("jobs", request.dataset_digest), request.page_size, request.page_token)
        found = self._holder.get().jobs.newest(dataset_digest=request.dataset_digest, before=paging.after, limit=paging.size + 1)
        jobs, token = paging.page([(place, convert.job_to_proto(job)) for place, job in found])
        return pb.ListLabelJobsResponse(jobs=jobs, next_page_token=token)

    async def _label(
        self, pairs: Sequence[pb.Pair], fields: Sequence[str], options: pb.JudgeOptions, context: CallContext
    ) -> list[Label | AccordError]:
        labeller = self._holder.get().labeller
        settings = labeller.settings(convert.read_judge(options))
        with labeller.room.take(len(pairs)):
            plan = await labeller.plan(settings)
            items = [_checked(labeller, pair, field) for pair, field in zip(pairs, fields, strict=True)]
            return await labeller.label_many(items, plan, Origin(context.request_id))


@contextlib.contextmanager
def _fields_of_ratings() -> Iterator[None]:
    """Errors name the fields of a request for ratings, which has those of the judge without a part of their own."""
    try:
        yield
    except AccordError as error:
        if error.field is not None:
            error.field = error.field.removeprefix("judge.")
        raise


class _Stream:
    """One LabelStream: the judge's options stay those of the last message that had any."""

    def __init__(self, served: Served, origin: Origin) -> None:
        self._labeller = served.labeller
        self._origin = origin
        self._plan: Plan | None = None

    async def start(self, request: pb.LabelStreamRequest) -> Coroutine[Any, Any, pb.LabelStreamResponse]:
        if request.HasField("judge") or self._plan is None:
            self._plan = await self._labeller.plan(self._labeller.settings(convert.read_judge(request.judge)))
        return self._answer(request.pair, self._plan)

    async def _answer(self, pair: pb.Pair, plan: Plan) -> pb.LabelStreamResponse:
        item = _checked(self._labeller, pair, "pair")
        async with self._labeller.room.wait():
            label = (await self._labeller.label_many([item], plan, self._origin))[0]
        return pb.LabelStreamResponse(result=convert.result_to_proto(pair.pair_id, label))


def _checked(labeller: Labeller, wire: pb.Pair, field: str) -> LabelPairItem | AccordError:
    try:
        pair = convert.read_pair(wire)
        if is_added(pair.pair_id):
            raise InvalidArgumentError(f"ids that begin with {ADDED} are those of pairs that jobs add; give another", field=f"{field}.pair_id")
        labeller.check_pair(pair, field)
    except AccordError as error:
        return error
    return pair
