"""What people who run this look at: metrics, and whether the process is alive and ready."""
