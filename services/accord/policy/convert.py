"""Between policy.proto and the backend's requests: defaults, limits and the errors of single items.

What does not belong here: rules that the proto states itself (protovalidate has checked those).
"""

from __future__ import annotations

import secrets

from accord.api.common.v1 import common_pb2
from accord.api.policy.v1 import policy_pb2 as pb
from accord.client.messages import ModelDigests
from accord.errors import InvalidArgumentError, OutOfRangeError
from accord.models.encoding import PromptEncoder
from accord.policy.backend import BackendInfo, Chunk, GeneratedSample, GenerationRequest, LogprobsRequest, SamplingSettings
from accord.policy.config import PolicyConfig
from accord.policy.engine import INTERACTIVE, LABELLING, ROLLOUT, Terms
from accord.serving.reader import SequenceReader, digests_to_wire

_FINISH = {
    "eos": pb.FINISH_REASON_EOS,
    "stop": pb.FINISH_REASON_STOP,
    "length": pb.FINISH_REASON_LENGTH,
    "aborted": pb.FINISH_REASON_ABORTED,
}
_PRIORITY = {
    pb.PRIORITY_UNSPECIFIED: INTERACTIVE,
    pb.PRIORITY_INTERACTIVE: INTERACTIVE,
    pb.PRIORITY_ROLLOUT: ROLLOUT,
    pb.PRIORITY_LABELLING: LABELLING,
}
_DEFAULT_MAX_TOKENS = 128
_MIN_TEMPERATURE = 1e-6  # logits divided by less leave float32


class RequestReader:
    """Reads wire requests for one served model.

    Args:
        encoder: of the served model.
        info: of the backend.
        config: limits.
    """

    def __init__(self, encoder: PromptEncoder, info: BackendInfo, config: PolicyConfig) -> None:
        self._sequences = SequenceReader(encoder, vocabulary_size=info.vocabulary_size, max_bytes=config.max_prompt_bytes)
        self._info = info
        self._config = config

    def generation(self, item: pb.GenerateItem, field: str, *, stream: bool) -> GenerationRequest:
        """Returns the request of one item.

        Raises:
            InvalidArgumentError: text that cannot be tokenized, an unknown token id, or more tokens than an item may ask for.
            OutOfRangeError: the prompt leaves no room in the context.
        """
        prompt = self._sequences.prompt(item.prompt, f"{field}.prompt", allow_empty=False)
        n = item.n if item.HasField("n") else 1
        room = self._info.context_tokens - len(prompt)
        if room < 1:
            raise OutOfRangeError(
                f"the prompt has {len(prompt)} tokens; at most {self._info.context_tokens - 1} leave room for a response",
                field=f"{field}.prompt",
            )
        sampling = self._sampling(item.sampling, room, field)
        if n * sampling.max_tokens > self._config.max_item_tokens:
            raise InvalidArgumentError(
                f"n x max_tokens is {n * sampling.max_tokens}; at most {self._config.max_item_tokens} is allowed", field=f"{field}.n"
            )
        return GenerationRequest(tuple(prompt), n, sampling, stream)

    def logprobs(self, item: pb.LogprobsItem, field: str, *, temperature: float, append_eos: bool) -> LogprobsRequest:
        """Returns the request of one item. A response without tokens is refused: it has no logprobs.

        Raises:
            InvalidArgumentError, OutOfRangeError: as `generation`, for the prompt or a response.
        """
        prompt = self._sequences.prompt(item.prompt, f"{field}.prompt", allow_empty=True)
        responses = [
            self._sequences.response(response, f"{field}.responses[{index}]", append_eos=append_eos) for index, response in enumerate(item.responses)
        ]
        for index, response in enumerate(responses):
            if len(prompt) + len(response) > self._info.context_tokens:
                raise OutOfRangeError(
                    f"prompt and response have {len(prompt)} + {len(response)} tokens; at most {self._info.context_tokens} are allowed",
                    field=f"{field}.responses[{index}]",
                )
        return LogprobsRequest(tuple(prompt), tuple(tuple(response) for response in responses), temperature)

    @staticmethod
    def temperature(value: float, field: str) -> float:
        """Returns a temperature that float32 logits can be divided by.

        Raises:
            InvalidArgumentError: it is positive and below 1e-6.
        """
        if 0 < value < 0.999 * _MIN_TEMPERATURE:  # the wire's float32 of 1e-6 is a little less
            raise InvalidArgumentError(f"temperature is {value:g}; at least {_MIN_TEMPERATURE:g} is allowed, or 0 where greedy is meant", field=field)
        return value

    def _sampling(self, wire: pb.SamplingParams, room: int, field: str) -> SamplingSettings:
        if wire.stop_token_ids:
            self._sequences.token_ids(wire.stop_token_ids, f"{field}.sampling.stop_token_ids")
        return SamplingSettings(
            max_tokens=min(wire.max_tokens if wire.HasField("max_tokens") else _DEFAULT_MAX_TOKENS, room),
            temperature=self.temperature(wire.temperature if wire.HasField("temperature") else 1.0, f"{field}.sampling.temperature"),
            top_p=wire.top_p if wire.HasField("top_p") else 1.0,
            top_k=wire.top_k if wire.HasField("top_k") else 0,
            min_p=wire.min_p if wire.HasField("min_p") else 0.0,
            repetition_penalty=wire.repetition_penalty if wire.HasField("repetition_penalty") else 1.0,
            stop=tuple(wire.stop),
            stop_token_ids=frozenset(wire.stop_token_ids),
            seed=wire.seed if wire.HasField("seed") else secrets.randbits(63),
            ignore_eos=wire.ignore_eos,
            top_logprobs=wire.top_logprobs if wire.HasField("top_logprobs") else 0,
        )


def terms_of(origin: pb.Origin, version: str, deadline: float | None, peer: str, digests: ModelDigests) -> Terms:
    """Returns what holds for a call's requests; a caller that gives no name is its connection."""
    return Terms(version, deadline, _PRIORITY[origin.priority], origin.caller or peer, digests)


def sample_to_proto(sample: GeneratedSample) -> pb.Sample:
    """Returns the wire form of a sample."""
    return pb.Sample(
        index=sample.index,
        text=sample.text,
        token_ids=common_pb2.TokenIds(ids=sample.token_ids),
        logprobs=sample.logprobs,
        finish_reason=_FINISH[sample.finish_reason],
        seed=sample.seed,
        top_logprobs=[
            pb.TopLogprobs(token_ids=[token for token, _ in place], logprobs=[logprob for _, logprob in place]) for place in sample.top_logprobs
        ],
    )


def chunk_to_proto(chunk: Chunk) -> pb.GenerateChunk:
    """Returns the wire form of a chunk."""
    return pb.GenerateChunk(text=chunk.text, token_ids=common_pb2.TokenIds(ids=chunk.token_ids))


def info_to_proto(info: BackendInfo, *, max_queue_items: int, server_version: str) -> pb.GetModelInfoResponse:
    """Returns the wire form of what is served."""
    return pb.GetModelInfoResponse(
        base_model=info.base_model,
        digests=digests_to_wire(info.digests),
        context_tokens=info.context_tokens,
        vocabulary_size=info.vocabulary_size,
        eos_token_ids=info.eos_token_ids,
        backend=info.name,
        max_queue_items=max_queue_items,
        parameters=info.parameters,
        server_version=server_version,
    )
