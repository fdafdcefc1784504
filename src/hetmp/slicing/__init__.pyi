from .build import slice_model as slice_model
from .channel_groups import plan_from_weights as plan_from_weights
from .graph import leaf as leaf
from .graph import read_graph as read_graph
from .hooks import local_hook as local_hook
from .initialise import init_ as init_
from .merge import merge_model as merge_model
from .merge import merged_tensors as merged_tensors
from .model import SlicedModel as SlicedModel
from .plan import LayerPlan as LayerPlan
from .plan import Plan as Plan
from .rows import Rows as Rows
from .schedule import owners as owners
from .segments import Segment as Segment
from .segments import layer_segments as layer_segments
from .shares import norm as norm
from .shares import rand_like as rand_like
from .shares import randn_like as randn_like
from .shares import whole as whole
from .table import (
    SlicedTensor as SlicedTensor,
)
from .table import (
    Table as Table,
)
from .table import (
    make_table as make_table,
)
from .table import (
    tensors_of as tensors_of,
)
from .tuning import PLAIN as PLAIN
from .tuning import Tuning as Tuning
