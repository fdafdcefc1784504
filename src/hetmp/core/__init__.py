"""Arithmetic and text: what a laptop without torch and without MPI can run.

``partition`` cuts an axis, ``open_axis`` is one whose cut is still looked for, ``state`` says how
an activation lies over the ranks; ``errors``, ``checks``, ``documents``, ``files`` and ``text``
are what every other package needs.
"""
