"""Write the tables of the reference pages."""

from dev import reference

reference.write()
