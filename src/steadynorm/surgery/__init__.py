"""A user's model rewritten, all or nothing."""

from .changes import Change, Changes
from .convert import convert_
from .folding import Folded, fold
from .freeze import freeze_, unfreeze_
from .fuse import fuse_activations_
from .insert import insert_

__all__ = ["Change", "Changes", "Folded", "convert_", "fold", "freeze_", "fuse_activations_", "insert_", "unfreeze_"]
