"""How many false alarms a threshold gives, and how they are rationed."""
