"""`edged calibrate`: what one model can be trusted with in one task, measured on labelled items and certified."""
