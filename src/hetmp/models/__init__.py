"""Networks by name: ``models.build("vgg11", (3, 32, 32), classes=10)``.

A name is one of ``names()``, or ``package.module:function`` for a network of your own. Of the
shipped networks the chains of layers are (nested) ``nn.Sequential``, and those with branches have
modules with a ``forward`` of their own.
"""

from hetmp.models.layerwise_start import layer_by_layer
from hetmp.models.outline import outline
from hetmp.models.registry import CatalogRow, build, catalog, names, published

__all__ = ["CatalogRow", "build", "catalog", "layer_by_layer", "names", "outline", "published"]
