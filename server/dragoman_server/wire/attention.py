"""AttentionService on the wire: gRPC calls to calls of the attender, nothing else."""

from collections.abc import AsyncGenerator
from contextlib import aclosing

from dragoman.v1 import attention_pb2 as pb
from dragoman.v1 import attention_pb2_grpc
from dragoman_server.service.attention import Attender
from dragoman_server.wire.attention_messages import align_response, attention_response, read_align, read_attention
from dragoman_server.wire.context import Context, call_context
from dragoman_server.wire.guard import StreamRules

SERVICE_NAME = "dragoman.v1.AttentionService"

# A caller who takes nothing for so long is let go, for others wait for its place.
STREAM_RULES = {f"{SERVICE_NAME}/GetAttention": StreamRules(stall_seconds=60.0)}


class AttentionServicer(attention_pb2_grpc.AttentionServiceServicer):
    """Errors are raised as they are: the guard turns them into a status."""

    def __init__(self, attender: Attender) -> None:
        self._attender = attender

    async def GetAttention(
        self, request: pb.GetAttentionRequest, context: Context
    ) -> AsyncGenerator[pb.GetAttentionResponse, None]:
        """Sends attention weights."""
        async with aclosing(self._attender.attention(read_attention(request), call_context())) as parts:
            async for part in parts:
                yield attention_response(part)

    async def Align(self, request: pb.AlignRequest, context: Context) -> pb.AlignResponse:
        """Aligns texts with their translations."""
        return align_response(await self._attender.align(read_align(request), call_context()))
