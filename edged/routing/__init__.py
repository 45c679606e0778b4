"""Pure decisions: time, load and config are arguments; nothing here waits, logs or reads a clock."""
