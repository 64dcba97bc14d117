"""Runs in FLARE's long-lived processes and in the console; also the job and the recipe."""
