"""A site joins from another host: one file and one command."""
