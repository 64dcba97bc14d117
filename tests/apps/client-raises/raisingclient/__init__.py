"""Every ClientApp raises in fit."""
