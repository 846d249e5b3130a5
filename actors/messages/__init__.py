"""Every message that actors exchange: frozen, tagged structs, one union per inbox.

Commands are imperatives (`StartPrefill`), events past tense (`PrefillFinished`). A message about a request carries its
`Key` and a deadline or answers one that did. Bulk arrays never ride in a message: `handle` names an entry of the
carrier's array table. Times are seconds on the carrier's clock.

They are defined by who talks, and imported from here.
"""

from actors.messages.base import (
    GATEWAY,
    SCHEDULER,
    TRANSFER,
    Address,
    ErrorInfo,
    FinishReason,
    Held,
    Key,
    MailboxClass,
    Message,
    TokenRecord,
    WorkerState,
)
from actors.messages.clients import Completed, Delta, Disconnect, Drain, Drained, Failed, Submit
from actors.messages.kv import ChunkAcked, ChunkLost, KvChunkReady, MoveChunk, StartAcked, StartDecode
from actors.messages.operators import (
    AskDrain,
    ChunkCorrupt,
    DrainAnswer,
    DrainWorker,
    ForgetPrefixes,
    GetStatus,
    PrefixesForgotten,
    ResumeWorker,
    Status,
)
from actors.messages.placing import (
    AbortGroup,
    Admit,
    Cancel,
    Inventory,
    PrefixesChanged,
    Refused,
    Released,
    ResendPrefixes,
    Reserve,
    Reserved,
    ReserveRefused,
    SchedulerReport,
    StartPrefill,
)
from actors.messages.results import DecodeStarted, Preempted, PrefillStarted, Rejected, SampledToken, TokensSampled
from actors.messages.workers import WorkerDown, WorkerStatus, WorkerUp

GatewayMessage = (
    Submit
    | Disconnect
    | Drain
    | Refused
    | SchedulerReport
    | PrefillStarted
    | DecodeStarted
    | TokensSampled
    | Preempted
    | Rejected
    | WorkerDown
    | WorkerUp
    | GetStatus
    | AskDrain
    | ChunkCorrupt
)
SchedulerMessage = (
    Admit
    | AbortGroup
    | Reserved
    | ReserveRefused
    | Released
    | Inventory
    | PrefixesChanged
    | WorkerDown
    | WorkerUp
    | DrainWorker
    | ResumeWorker
)
WorkerMessage = (
    Reserve
    | StartPrefill
    | Cancel
    | ResendPrefixes
    | ForgetPrefixes
    | KvChunkReady
    | ChunkAcked
    | ChunkLost
    | StartDecode
    | StartAcked
    | WorkerDown
)
TransferMessage = MoveChunk | Cancel | WorkerDown
ClientMessage = Delta | Completed | Failed | Drained | Status | DrainAnswer | PrefixesForgotten
AnyMessage = GatewayMessage | SchedulerMessage | WorkerMessage | TransferMessage | ClientMessage

_CONTROL = (
    Drain, Refused, SchedulerReport, Reserved, ReserveRefused, Released, Inventory, PrefixesChanged, ResendPrefixes,
    PrefillStarted, ChunkAcked, ChunkLost, StartAcked, WorkerDown, WorkerUp, GetStatus, Status, Drained, Preempted,
    DrainWorker, ResumeWorker, AskDrain, DrainAnswer, ChunkCorrupt,
    ForgetPrefixes, PrefixesForgotten,
)  # fmt: skip
_CANCEL = (Disconnect, AbortGroup, Cancel)
_TOKEN = (TokensSampled, Rejected, DecodeStarted, StartDecode, KvChunkReady, Delta, Completed, Failed)


def mailbox_class(message: Message) -> MailboxClass:
    """The class by which an inbox orders and bounds this message: control, then cancel, then token, then work."""
    if isinstance(message, _CONTROL):
        return "control"
    if isinstance(message, _CANCEL):
        return "cancel"
    if isinstance(message, _TOKEN):
        return "token"
    return "work"


__all__ = [
    "AbortGroup",
    "Address",
    "Admit",
    "AnyMessage",
    "AskDrain",
    "Cancel",
    "ChunkAcked",
    "ChunkCorrupt",
    "ChunkLost",
    "ClientMessage",
    "Completed",
    "DecodeStarted",
    "Delta",
    "Disconnect",
    "Drain",
    "DrainAnswer",
    "DrainWorker",
    "Drained",
    "ErrorInfo",
    "Failed",
    "FinishReason",
    "ForgetPrefixes",
    "GATEWAY",
    "GatewayMessage",
    "GetStatus",
    "Held",
    "Inventory",
    "Key",
    "KvChunkReady",
    "MailboxClass",
    "Message",
    "MoveChunk",
    "Preempted",
    "PrefillStarted",
    "PrefixesChanged",
    "PrefixesForgotten",
    "Refused",
    "Rejected",
    "Released",
    "ResendPrefixes",
    "Reserve",
    "ReserveRefused",
    "Reserved",
    "ResumeWorker",
    "SCHEDULER",
    "SampledToken",
    "SchedulerMessage",
    "SchedulerReport",
    "StartAcked",
    "StartDecode",
    "StartPrefill",
    "Status",
    "Submit",
    "TRANSFER",
    "TokenRecord",
    "TokensSampled",
    "TransferMessage",
    "WorkerDown",
    "WorkerMessage",
    "WorkerState",
    "WorkerStatus",
    "WorkerUp",
    "mailbox_class",
]
