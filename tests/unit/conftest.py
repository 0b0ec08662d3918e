"""Settings of the unit tests: property tests keep nothing on disk and are never judged by the clock."""

from hypothesis import settings

settings.register_profile("unit", max_examples=100, deadline=None, database=None)
settings.load_profile("unit")
