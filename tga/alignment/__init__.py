"""The training objectives, their schedules and their centring."""
