from . import checkpoint as checkpoint
from . import data as data
from . import models as models
from . import ops as ops
from . import optim as optim
from . import planner as planner
from . import slicing as slicing
from .checkpoint import load as load
from .checkpoint import save as save
from .cluster import Group as Group
from .core.errors import HetmpError as HetmpError
from .core.partition import Layout as Layout
from .core.partition import Partition as Partition
from .core.partition import apportion as apportion
from .core.state import (
    FULL as FULL,
)
from .core.state import (
    PARTIAL as PARTIAL,
)
from .core.state import (
    Full as Full,
)
from .core.state import (
    Partial as Partial,
)
from .core.state import (
    Sliced as Sliced,
)
from .core.state import (
    State as State,
)
from .core.version import __version__ as __version__
from .exchange import Exchange as Exchange
from .ops import operator as operator
from .ops import register as register
from .optim import clip_grad_norm_ as clip_grad_norm_
from .slicing import (
    Plan as Plan,
)
from .slicing import (
    Rows as Rows,
)
from .slicing import (
    SlicedModel as SlicedModel,
)
from .slicing import (
    Tuning as Tuning,
)
from .slicing import (
    init_ as init_,
)
from .slicing import (
    leaf as leaf,
)
from .slicing import (
    local_hook as local_hook,
)
from .slicing import (
    merge_model as merge_model,
)
from .slicing import (
    norm as norm,
)
from .slicing import (
    plan_from_weights as plan_from_weights,
)
from .slicing import (
    rand_like as rand_like,
)
from .slicing import (
    randn_like as randn_like,
)
from .slicing import (
    read_graph as read_graph,
)
from .slicing import (
    slice_model as slice_model,
)
from .slicing import (
    whole as whole,
)
