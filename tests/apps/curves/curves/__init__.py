"""Curves as `apps/pytorch-tracking` logs them, without torch."""
