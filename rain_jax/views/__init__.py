"""What people look at: pages, plots, a live view and conversations in a terminal."""
