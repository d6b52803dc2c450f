"""Records in the formats that others read: PKU-SafeRLHF, trl, and our own; a folder ready for the hub."""
