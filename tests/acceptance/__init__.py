"""The program as its users meet it: real processes, real signals, real brokers."""
