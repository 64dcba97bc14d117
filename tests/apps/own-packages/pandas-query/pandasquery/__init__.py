"""One question about a table that each site calls what it likes, with pins that FLARE could not live with."""
