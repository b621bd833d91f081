"""What the server's refusals mean to us: JetStream error codes as typed errors.

The codes are those of nats-server's ``server/errors.json``. Whoever adds one here decides whether the same
request may be sent again.
"""

from typing import Any

from jetcron.errors import (
    ApiError,
    BatchTooLarge,
    BusError,
    JetStreamDisabled,
    KnownId,
    NotFound,
    TopologyMissing,
    TryAgain,
    WrongSequence,
)

_BY_CODE: dict[int, type[ApiError]] = {
    10071: WrongSequence,  # wrong last sequence: a fence held
    10201: KnownId,  # atomic batch holds a duplicate message id
    10199: BatchTooLarge,
    # In process elsewhere, too many open batches, or an incomplete batch: nothing is said about success.
    10158: TryAgain,
    10164: TryAgain,
    10176: TryAgain,
    10200: TryAgain,
    10207: TryAgain,
    10210: TryAgain,
    # Room, leadership and load: they pass.
    10008: TryAgain,  # JetStream system temporarily unavailable
    10009: TryAgain,  # JetStream cluster not leader
    10023: TryAgain,  # insufficient resources
    10028: TryAgain,  # memory resources exceeded
    10047: TryAgain,  # storage resources exceeded
    10077: TryAgain,  # message store failed: maximum messages, bytes, or a full disk
    10167: TryAgain,  # too many requests
}


_PLAIN: dict[int, type[BusError]] = {
    10014: NotFound,  # consumer not found
    10037: NotFound,  # no message found
    10043: NotFound,  # no message under this sequence
    10059: TopologyMissing,  # stream not found
    10039: JetStreamDisabled,  # not enabled for account
    10076: JetStreamDisabled,  # not enabled
}


def refusal(error: dict[str, Any]) -> BusError:
    """The typed error for the ``error`` object of a JetStream answer."""
    code = int(error.get("code", 0))
    err_code = int(error.get("err_code", 0))
    text = str(error.get("description", "no description"))
    if err_code in _PLAIN:
        return _PLAIN[err_code](text)
    kind = _BY_CODE.get(err_code)
    if kind is None:
        kind = TryAgain if code in (408, 429, 503) else ApiError
    return kind(code, err_code, text)
