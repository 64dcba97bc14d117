"""What a site learned is clipped, measured, and blurred before it leaves."""
