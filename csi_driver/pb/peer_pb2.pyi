from csi_driver.pb import csi_pb2 as _csi_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class ServeRequest(_message.Message):
    __slots__ = ("ticket", "transfer_id", "source_id", "offset", "ended")
    TICKET_FIELD_NUMBER: _ClassVar[int]
    TRANSFER_ID_FIELD_NUMBER: _ClassVar[int]
    SOURCE_ID_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    ENDED_FIELD_NUMBER: _ClassVar[int]
    ticket: str
    transfer_id: str
    source_id: str
    offset: int
    ended: bool
    def __init__(self, ticket: _Optional[str] = ..., transfer_id: _Optional[str] = ..., source_id: _Optional[str] = ..., offset: _Optional[int] = ..., ended: _Optional[bool] = ...) -> None: ...

class ServeResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class FetchRequest(_message.Message):
    __slots__ = ("transfer_id", "source_id", "offset", "ended")
    TRANSFER_ID_FIELD_NUMBER: _ClassVar[int]
    SOURCE_ID_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    ENDED_FIELD_NUMBER: _ClassVar[int]
    transfer_id: str
    source_id: str
    offset: int
    ended: bool
    def __init__(self, transfer_id: _Optional[str] = ..., source_id: _Optional[str] = ..., offset: _Optional[int] = ..., ended: _Optional[bool] = ...) -> None: ...

class Part(_message.Message):
    __slots__ = ("offset", "data", "crc32", "last", "failure")
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    CRC32_FIELD_NUMBER: _ClassVar[int]
    LAST_FIELD_NUMBER: _ClassVar[int]
    FAILURE_FIELD_NUMBER: _ClassVar[int]
    offset: int
    data: bytes
    crc32: int
    last: bool
    failure: str
    def __init__(self, offset: _Optional[int] = ..., data: _Optional[bytes] = ..., crc32: _Optional[int] = ..., last: _Optional[bool] = ..., failure: _Optional[str] = ...) -> None: ...

class OfferResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class RetireRequest(_message.Message):
    __slots__ = ("volume_id",)
    VOLUME_ID_FIELD_NUMBER: _ClassVar[int]
    volume_id: str
    def __init__(self, volume_id: _Optional[str] = ...) -> None: ...

class RetireResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class FromNode(_message.Message):
    __slots__ = ("hello", "inventory", "reply")
    HELLO_FIELD_NUMBER: _ClassVar[int]
    INVENTORY_FIELD_NUMBER: _ClassVar[int]
    REPLY_FIELD_NUMBER: _ClassVar[int]
    hello: Hello
    inventory: Inventory
    reply: Reply
    def __init__(self, hello: _Optional[_Union[Hello, _Mapping]] = ..., inventory: _Optional[_Union[Inventory, _Mapping]] = ..., reply: _Optional[_Union[Reply, _Mapping]] = ...) -> None: ...

class FromRouter(_message.Message):
    __slots__ = ("welcome", "call", "cancel", "credit")
    WELCOME_FIELD_NUMBER: _ClassVar[int]
    CALL_FIELD_NUMBER: _ClassVar[int]
    CANCEL_FIELD_NUMBER: _ClassVar[int]
    CREDIT_FIELD_NUMBER: _ClassVar[int]
    welcome: Welcome
    call: Call
    cancel: Cancel
    credit: Credit
    def __init__(self, welcome: _Optional[_Union[Welcome, _Mapping]] = ..., call: _Optional[_Union[Call, _Mapping]] = ..., cancel: _Optional[_Union[Cancel, _Mapping]] = ..., credit: _Optional[_Union[Credit, _Mapping]] = ...) -> None: ...

class Hello(_message.Message):
    __slots__ = ("protocol", "version", "node_id", "node_key", "driver_name")
    PROTOCOL_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    NODE_ID_FIELD_NUMBER: _ClassVar[int]
    NODE_KEY_FIELD_NUMBER: _ClassVar[int]
    DRIVER_NAME_FIELD_NUMBER: _ClassVar[int]
    protocol: int
    version: str
    node_id: str
    node_key: str
    driver_name: str
    def __init__(self, protocol: _Optional[int] = ..., version: _Optional[str] = ..., node_id: _Optional[str] = ..., node_key: _Optional[str] = ..., driver_name: _Optional[str] = ...) -> None: ...

class Welcome(_message.Message):
    __slots__ = ("protocol", "version", "lifetime_seconds")
    PROTOCOL_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    LIFETIME_SECONDS_FIELD_NUMBER: _ClassVar[int]
    protocol: int
    version: str
    lifetime_seconds: int
    def __init__(self, protocol: _Optional[int] = ..., version: _Optional[str] = ..., lifetime_seconds: _Optional[int] = ...) -> None: ...

class Call(_message.Message):
    __slots__ = ("call_id", "method", "request", "timeout_milliseconds", "credit")
    CALL_ID_FIELD_NUMBER: _ClassVar[int]
    METHOD_FIELD_NUMBER: _ClassVar[int]
    REQUEST_FIELD_NUMBER: _ClassVar[int]
    TIMEOUT_MILLISECONDS_FIELD_NUMBER: _ClassVar[int]
    CREDIT_FIELD_NUMBER: _ClassVar[int]
    call_id: int
    method: str
    request: bytes
    timeout_milliseconds: int
    credit: int
    def __init__(self, call_id: _Optional[int] = ..., method: _Optional[str] = ..., request: _Optional[bytes] = ..., timeout_milliseconds: _Optional[int] = ..., credit: _Optional[int] = ...) -> None: ...

class Cancel(_message.Message):
    __slots__ = ("call_id",)
    CALL_ID_FIELD_NUMBER: _ClassVar[int]
    call_id: int
    def __init__(self, call_id: _Optional[int] = ...) -> None: ...

class Credit(_message.Message):
    __slots__ = ("call_id", "messages")
    CALL_ID_FIELD_NUMBER: _ClassVar[int]
    MESSAGES_FIELD_NUMBER: _ClassVar[int]
    call_id: int
    messages: int
    def __init__(self, call_id: _Optional[int] = ..., messages: _Optional[int] = ...) -> None: ...

class Reply(_message.Message):
    __slots__ = ("call_id", "code", "message", "response", "more")
    CALL_ID_FIELD_NUMBER: _ClassVar[int]
    CODE_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    RESPONSE_FIELD_NUMBER: _ClassVar[int]
    MORE_FIELD_NUMBER: _ClassVar[int]
    call_id: int
    code: int
    message: str
    response: bytes
    more: bool
    def __init__(self, call_id: _Optional[int] = ..., code: _Optional[int] = ..., message: _Optional[str] = ..., response: _Optional[bytes] = ..., more: _Optional[bool] = ...) -> None: ...

class Inventory(_message.Message):
    __slots__ = ("items", "removed", "pools", "complete", "alarms", "health")
    ITEMS_FIELD_NUMBER: _ClassVar[int]
    REMOVED_FIELD_NUMBER: _ClassVar[int]
    POOLS_FIELD_NUMBER: _ClassVar[int]
    COMPLETE_FIELD_NUMBER: _ClassVar[int]
    ALARMS_FIELD_NUMBER: _ClassVar[int]
    HEALTH_FIELD_NUMBER: _ClassVar[int]
    items: _containers.RepeatedCompositeFieldContainer[Item]
    removed: _containers.RepeatedScalarFieldContainer[str]
    pools: Pools
    complete: bool
    alarms: Alarms
    health: _containers.RepeatedCompositeFieldContainer[_csi_pb2.VolumeHealth]
    def __init__(self, items: _Optional[_Iterable[_Union[Item, _Mapping]]] = ..., removed: _Optional[_Iterable[str]] = ..., pools: _Optional[_Union[Pools, _Mapping]] = ..., complete: _Optional[bool] = ..., alarms: _Optional[_Union[Alarms, _Mapping]] = ..., health: _Optional[_Iterable[_Union[_csi_pb2.VolumeHealth, _Mapping]]] = ...) -> None: ...

class Item(_message.Message):
    __slots__ = ("volume", "snapshot", "name")
    VOLUME_FIELD_NUMBER: _ClassVar[int]
    SNAPSHOT_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    volume: _csi_pb2.Volume
    snapshot: _csi_pb2.Snapshot
    name: str
    def __init__(self, volume: _Optional[_Union[_csi_pb2.Volume, _Mapping]] = ..., snapshot: _Optional[_Union[_csi_pb2.Snapshot, _Mapping]] = ..., name: _Optional[str] = ...) -> None: ...

class Pools(_message.Message):
    __slots__ = ("pools",)
    POOLS_FIELD_NUMBER: _ClassVar[int]
    pools: _containers.RepeatedCompositeFieldContainer[Pool]
    def __init__(self, pools: _Optional[_Iterable[_Union[Pool, _Mapping]]] = ...) -> None: ...

class Pool(_message.Message):
    __slots__ = ("name", "available_bytes")
    NAME_FIELD_NUMBER: _ClassVar[int]
    AVAILABLE_BYTES_FIELD_NUMBER: _ClassVar[int]
    name: str
    available_bytes: int
    def __init__(self, name: _Optional[str] = ..., available_bytes: _Optional[int] = ...) -> None: ...

class Alarms(_message.Message):
    __slots__ = ("alarms",)
    ALARMS_FIELD_NUMBER: _ClassVar[int]
    alarms: _containers.RepeatedCompositeFieldContainer[Alarm]
    def __init__(self, alarms: _Optional[_Iterable[_Union[Alarm, _Mapping]]] = ...) -> None: ...

class Alarm(_message.Message):
    __slots__ = ("reason", "message", "volume_name")
    REASON_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    VOLUME_NAME_FIELD_NUMBER: _ClassVar[int]
    reason: str
    message: str
    volume_name: str
    def __init__(self, reason: _Optional[str] = ..., message: _Optional[str] = ..., volume_name: _Optional[str] = ...) -> None: ...
