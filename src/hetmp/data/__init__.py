"""Data sets by name, and the same batches of them on every rank.

>>> from hetmp import data
>>> digits = data.load("digits")
>>> len(digits.train), len(digits.test), digits.input_shape
(1437, 360, (1, 8, 8))
"""

import lazy_loader

# The settings are looked at on login nodes, where torch is slow to come.
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
