"""Property tests judge what they find, never how long one example took: the machine may be busy."""

from hypothesis import settings

settings.register_profile("octogate", deadline=None)
settings.load_profile("octogate")
