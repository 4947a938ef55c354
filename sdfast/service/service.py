"""The service: requests in, pictures out, by a worker in a process of its own."""
