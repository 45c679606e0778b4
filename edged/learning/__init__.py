"""What the box learns of its tasks from the cloud's answers: kept as numbers, fitted beside the daemon, certified."""
