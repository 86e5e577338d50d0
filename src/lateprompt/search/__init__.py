"""`--method auto` and `--prompt-layer auto`: methods, prompt layers and rates tried on kept states (docs/auto.md)."""
