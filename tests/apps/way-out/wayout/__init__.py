"""Every client tries to reach places, and reports which it reached."""
