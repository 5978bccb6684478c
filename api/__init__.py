"""The HTTP service: STAC API, OGC API - Processes, and the files of the cache.

``firnline.api.app.create_app`` puts it together; nothing here is read or opened at import.
"""

import logging

# stac-fastapi 7 makes settings of its own when it is imported and logs that they are defaults;
# firnline.api.app gives it the real ones, so the line would only mislead.
logging.getLogger("stac_fastapi.types.config").addFilter(
    lambda record: not record.getMessage().startswith("Using default values for stac_fastapi")
)
