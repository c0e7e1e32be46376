"""What makes training fast on a CPU: memory that is kept, and convolutions that wait less for it."""
