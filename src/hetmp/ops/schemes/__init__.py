"""The schemes, one per file: what a layer takes, gives and holds. Plans name them."""

from hetmp.ops.schemes.filters import Filters
from hetmp.ops.schemes.inputs import Inputs
from hetmp.ops.schemes.scheme import Scheme, SchemeName
from hetmp.ops.schemes.whole import WholeLayer

SCHEMES: dict[SchemeName, Scheme] = {
    scheme.name: scheme for scheme in (Filters(), Inputs(), WholeLayer())
}
"""Name -> scheme, in the order in which they are listed to people."""

__all__ = ["SCHEMES", "Scheme", "SchemeName"]
