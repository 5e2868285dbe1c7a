"""The HTTP API: records in, verdicts back. docs/operations/http.md is its page for users.

A process of the API holds no state of its own: several may run behind a load balancer.
"""
