"""Days of cycles at speed over real services: everything goes wrong, and in the end every row is there once."""
