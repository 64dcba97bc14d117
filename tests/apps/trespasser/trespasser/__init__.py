"""An app that tries what it must not be able to do."""
