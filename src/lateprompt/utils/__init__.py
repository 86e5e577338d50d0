"""What knows nothing of prompts: files, errors, validation, the console, random numbers."""
