"""Recordings of a step on this rank: when each operation and each exchange ran."""

from hetmp.slicing.recording.first_steps import FirstSteps
from hetmp.slicing.recording.layer_times import layer_times
from hetmp.slicing.recording.memory import PeakMeter, resident
from hetmp.slicing.recording.recorder import (
    Done,
    ExchangePlace,
    ExchangeSpan,
    Recorder,
    StepRecording,
)
from hetmp.slicing.recording.stopwatch import PHASE, StepTimes, Stopwatch

__all__ = [
    "PHASE",
    "Done",
    "ExchangePlace",
    "ExchangeSpan",
    "FirstSteps",
    "PeakMeter",
    "Recorder",
    "StepRecording",
    "StepTimes",
    "Stopwatch",
    "layer_times",
    "resident",
]
