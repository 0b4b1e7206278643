"""What each place of deployment executes: schemes, where it rounds, what its files may hold; one file a target."""
