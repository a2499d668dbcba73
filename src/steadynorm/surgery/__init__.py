"""A user's model rewritten, all or nothing."""

from .changes import Change, Changes
from .convert import convert_
from .freeze import freeze_, unfreeze_
from .fuse import fuse_activations_
from .insert import insert_

__all__ = ["Change", "Changes", "convert_", "freeze_", "fuse_activations_", "insert_", "unfreeze_"]
