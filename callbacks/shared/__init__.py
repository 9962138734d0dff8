"""What the adapters have in common: arguments, the subject that is measured, stand-ins."""
