from .cadence import Cadence as Cadence
from .folder import Folder as Folder
from .run_state import Keeping as Keeping
from .run_state import Position as Position
from .run_state import RunCheckpoints as RunCheckpoints
from .save_load import load as load
from .save_load import save as save
