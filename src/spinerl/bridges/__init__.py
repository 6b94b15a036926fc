"""Our method inside other trainers' loops.  Each file is the only one to import its trainer."""
