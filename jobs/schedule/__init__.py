"""When a job runs again and again: cron expressions, and what systemd and cron make of them. Pure."""
