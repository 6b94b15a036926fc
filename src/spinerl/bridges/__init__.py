"""Our method inside other trainers' loops.  Each file alone imports its trainer, and nothing here imports the file."""
