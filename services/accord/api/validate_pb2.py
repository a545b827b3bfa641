"""Registers `buf/validate/validate.proto` with protobuf's default pool, from the descriptor inside the installed protovalidate.

protovalidate 2 ships its schema for its own runtime only, so the generated stubs (whose import `tools/protos.py` points here) find the
extension through this module. Nothing else belongs here.
"""

from google.protobuf import descriptor_pb2, descriptor_pool, duration_pb2, field_mask_pb2, timestamp_pb2
from protovalidate._gen.buf.validate import validate_pb

__all__ = ["DESCRIPTOR"]

_DEPENDENCIES = (descriptor_pb2, duration_pb2, field_mask_pb2, timestamp_pb2)  # must be in the pool first
DESCRIPTOR = descriptor_pool.Default().AddSerializedFile(validate_pb.desc().proto.to_binary())
