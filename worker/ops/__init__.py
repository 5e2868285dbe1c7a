"""What operators watch: metrics, and whether the process is alive and ready."""
