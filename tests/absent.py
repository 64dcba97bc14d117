"""What tests look for in a log in vain.

`tests/unit/test_absent.py` sees the product write each of them: another wording is noticed, and no such test
passes for want of the old one.
"""

CALL_REFUSED = "refused a call from"
SITE_LEFT = "left job {job}"
NOT_STARTED = "could not be started in job {job}"
STARTS_WITHOUT = "the run starts without"
NO_PROGRESS = "no progress is shown"
