"""Exchanges: the only place that moves activations and parameters between ranks."""

from hetmp.exchange.exchange import Entry, Exchange, Pending, dual, leave, save_token
from hetmp.exchange.moves import Counter, Move, collective
from hetmp.exchange.tensors import collect, distribute, share_of, share_shape
from hetmp.exchange.volume import received

__all__ = [
    "Counter",
    "Entry",
    "Exchange",
    "Move",
    "Pending",
    "collect",
    "collective",
    "distribute",
    "dual",
    "leave",
    "received",
    "save_token",
    "share_of",
    "share_shape",
]
