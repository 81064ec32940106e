"""A tracker that learns its target online, by BP, DFA or BDFA, and its one-pass evaluation.

::

    from torchdfa.tracking import Tracker

    tracker = Tracker()
    tracker.init(frame, (x, y, w, h))
    box, score = tracker.update(next_frame)
"""

from torchdfa.tracking.boxes import BoxError
from torchdfa.tracking.config import TrackerConfig
from torchdfa.tracking.frames import FrameError
from torchdfa.tracking.tracker import Tracker

__all__ = ["BoxError", "FrameError", "Tracker", "TrackerConfig"]
