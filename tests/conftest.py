"""Settings for every test."""

from hypothesis import settings

settings.register_profile("steadynorm", deadline=None, derandomize=True)
settings.load_profile("steadynorm")
