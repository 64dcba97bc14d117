"""Keep what the server sends to a site, in a process without a network (`docs/security/sites.md`)."""
