"""Model definitions: one decoder whose families differ by config alone."""
