"""One request's life: decide, try, hold, commit or defer, and leave exactly one record."""
