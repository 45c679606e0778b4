"""From scores and labels to what a threshold lets through: metrics, heads, certificates. Pure numbers, no model."""
