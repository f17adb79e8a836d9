"""What the watches have shown, projected to the fields that are used."""
