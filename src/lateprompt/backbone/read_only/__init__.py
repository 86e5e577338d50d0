"""Read-only late prompts: vectors that read a frozen text after layer p and are never seen by it."""
