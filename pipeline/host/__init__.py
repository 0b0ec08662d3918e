"""An engine in a process of its own: started, fed, watched, and replaced when it dies or hangs."""
