"""Train convolutional networks across devices of unequal speed, in uneven slices of channels.

import hetmp
model = hetmp.slice_model(module, weights, comm)
...                                  # your own loop: model(x), loss.backward(), step()
state = hetmp.merge_model(model)     # the unsliced module's state_dict
"""

import lazy_loader

from hetmp.core.version import __version__ as __version__

# Importing torch takes seconds, so a name is imported when something asks for it.
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
