"""What a step makes smaller, and how: losses, and an optimizer beside torch's."""
