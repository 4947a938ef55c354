"""The demo model: the scenes it draws, and how it is trained."""
