"""A user's module -> its slices and exchanges, and back: ``slice_model`` and ``merge_model``.

Read ``graph`` (the module as operations), ``plan`` and ``channel_groups`` (how each layer is cut),
``schedule`` (what runs in which order), ``build`` and ``forward`` (the slices, and running them);
``recording`` watches a step.
"""

import lazy_loader

# The modules import one another, and not this list: a name is imported when it is asked for.
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
