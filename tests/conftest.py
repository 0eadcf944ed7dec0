"""What all tests share."""

from __future__ import annotations

import os

from hypothesis import settings

# The suite says the same of the same code each time; HYPOTHESIS_PROFILE=search looks further, with new examples.
settings.register_profile("suite", derandomize=True, deadline=None)
settings.register_profile("search", max_examples=2000, deadline=None)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "suite"))
