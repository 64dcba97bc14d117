"""Code that runs in FLARE's long-lived processes and in the console, with the job and the recipe."""
