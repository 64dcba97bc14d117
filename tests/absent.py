"""Texts that tests expect not to find in a log.

`tests/unit/test_absent.py` sees the product write each of them. So a change of wording is noticed, and no
such test passes because the old text is gone.
"""

CALL_REFUSED = "refused a call from"
SITE_LEFT = "left job {job}"
NOT_STARTED = "could not be started in job {job}"
STARTS_WITHOUT = "the run starts without"
NO_PROGRESS = "no progress until"
