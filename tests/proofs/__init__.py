"""Long proofs, each with a sample among the tests: docs/proofs.md has what they showed."""
