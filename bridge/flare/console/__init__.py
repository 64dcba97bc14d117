"""The researcher's tool inside a console container: verbs that ask the server under the console's own
identity.

The verbs of `flowerbed` run `client.py` there, so that the host needs neither that identity nor a name for
the server. The client hands a request, one JSON object, to the daemon (`daemon.py`), which keeps FLARE
sessions open (`sessions.py`). It passes on the daemon's answer: JSON lines, text or a tar. An app or a job
comes as a tar. Errors are `{"error": ...}`, the last line of stderr, with exit code 1 (failed) or 2 (wrong
use).

`python -m bridge.flare.console REQUEST` answers one request without a daemon.
"""
