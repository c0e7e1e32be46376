"""Test the audit with dishonest and honest model files, and the sandbox from inside."""
