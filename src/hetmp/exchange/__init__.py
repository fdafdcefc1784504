"""Exchanges: the only place that moves activations and parameters between ranks."""

from hetmp.exchange.entry import (
    BackwardSum,
    EnteredParameters,
    ParameterEntry,
    any_pending,
    is_pending,
)
from hetmp.exchange.exchange import Exchange, Pending, alias, dual, leave, save_token
from hetmp.exchange.moves import Carriage, Counter, Move, collective
from hetmp.exchange.plain_tensors import plain_tensors, users_tensors
from hetmp.exchange.shared import ROUND_BYTES, free_slots, take_back, tidy
from hetmp.exchange.volume import (
    received,
    received_by_all,
    received_of_batch,
    received_of_sum,
)
from hetmp.exchange.whole_tensors import collect, distribute, share_of, share_shape

__all__ = [
    "ROUND_BYTES",
    "BackwardSum",
    "Carriage",
    "Counter",
    "EnteredParameters",
    "Exchange",
    "Move",
    "ParameterEntry",
    "Pending",
    "alias",
    "any_pending",
    "collect",
    "collective",
    "distribute",
    "dual",
    "free_slots",
    "is_pending",
    "leave",
    "plain_tensors",
    "received",
    "received_by_all",
    "received_of_batch",
    "received_of_sum",
    "save_token",
    "share_of",
    "share_shape",
    "take_back",
    "tidy",
    "users_tensors",
]
