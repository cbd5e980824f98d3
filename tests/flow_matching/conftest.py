"""Properties hold however long a busy machine takes to show them."""

from hypothesis import settings

settings.register_profile("patient", deadline=None)
settings.load_profile("patient")
