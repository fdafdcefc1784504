from .augmentation import Augmentation as Augmentation
from .batching import (
    batch_indices as batch_indices,
)
from .batching import (
    batches as batches,
)
from .batching import (
    count_batches as count_batches,
)
from .dataset import Dataset as Dataset
from .dataset import Part as Part
from .dataset import Split as Split
from .feed import Feed as Feed
from .feed import Reading as Reading
from .options import Options as Options
from .registry import load as load
from .registry import names as names
from .registry import options_of as options_of
from .sets.unlabelled import load_pictures as load_pictures
