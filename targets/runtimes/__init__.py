"""One file a target. Every public module here is found by discovery."""
