"""The console: pages of the HTTP API for people, rendered on the server."""
