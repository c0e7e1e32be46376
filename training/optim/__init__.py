"""How a step goes: losses, an optimizer beside torch's, and means over steps and processes."""
