"""Front ends, one file each: they turn what a framework saves into a Model."""
