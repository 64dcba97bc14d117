"""A site's update is clipped, measured, and blurred before it leaves."""
