"""What callers may ask: both services, their requests checked, their errors mapped to statuses."""
