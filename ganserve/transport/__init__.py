"""How calls reach the services, and how replies leave: ports, gRPC's core, and their limits."""
