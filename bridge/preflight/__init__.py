"""Check a participant's machine and its way to the server, before anything starts there. Changes nothing.

`doctor` at a site runs this in the runtime's image, with the site's kit, network, limits and data. Only the
standard library and `cryptography` are imported, so it starts fast.
"""
