"""The audit, tried: dishonest and honest model files, and what the sandbox lets through."""
