"""Pure text work: chat templates, control-token shielding, UTF-8 assembly, stop strings."""
