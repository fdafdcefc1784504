"""The schemes, one per file: what a layer takes, gives and holds. Plans name them."""

from hetmp.ops.schemes.batch import BatchScheme
from hetmp.ops.schemes.filters import FiltersScheme
from hetmp.ops.schemes.inputs import InputsScheme
from hetmp.ops.schemes.scheme import Scheme, SchemeName
from hetmp.ops.schemes.whole import WholeScheme

SCHEMES: dict[SchemeName, Scheme] = {
    scheme.name: scheme
    for scheme in (FiltersScheme(), InputsScheme(), BatchScheme(), WholeScheme())
}
"""Name -> scheme, in the order in which they are listed to people."""

__all__ = ["SCHEMES", "Scheme", "SchemeName"]
