"""A run, from its configuration to its files.

Read ``config``, ``prepare``, ``step``, ``train``; ``evaluate`` and ``predict`` use what a run
kept; ``metrics`` writes what was measured and ``progress`` shows it.
"""
