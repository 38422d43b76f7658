"""Pure decisions: windows, types, fingerprints, plans. Standard library only, no input or output."""
